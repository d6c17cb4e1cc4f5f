"""The operators' models on the model hosts, as `/v1` lists them beside those of users."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gateway.models_rpc import Models
from gateway.operations import names
from gateway.storage import Storage
from gateway.types import Principal
from idl.codes import Code, ServingError
from idl.messages import ModelMetadata

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class HostModel:
    """`version`: the newest that serves, "" where none does. `metadata` None: it does not serve, or nobody asked."""

    name: str
    version: str
    public: bool
    description: str
    metadata: ModelMetadata | None = None


class HostModels:
    """Thread-safe."""

    def __init__(self, models: Models, storage: Storage) -> None:
        self._models = models
        self._users = storage.users

    def find(self, principal: Principal | None, name: str) -> HostModel:
        """Raises model_not_found, also for a private one and nobody signed in, and what the host says of one that does not serve."""
        if self._of_a_user(name):
            raise _missing(name)
        metadata, declaration = self._models.metadata(name), self._models.declaration(name)
        if principal is None and not declaration.public:
            raise _missing(name)
        version = max(metadata.versions, key=lambda each: int(each) if each.isdigit() else 0, default="")
        return HostModel(name, version, declaration.public, declaration.description, metadata)

    def listed(self, principal: Principal | None, text: str, visibility: str, after: str, limit: int) -> list[HostModel]:
        """By name, those after `after` that serve and that the caller may see; none while no host can be reached."""
        try:
            found = {entry.name for entry in self._models.index(ready=True)}
        except ServingError as error:
            if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.NOT_READY):
                return []
            raise
        wanted = sorted(name for name in found if name > after and not self._of_a_user(name))
        made: list[HostModel] = []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for at in range(0, len(wanted), _AT_ONCE):
                for one in pool.map(lambda name: self._seen(principal, name), wanted[at : at + _AT_ONCE]):
                    if one is not None and _fits(one, text, visibility):
                        made.append(one)
                if len(made) >= limit:
                    break
        return made[:limit]

    def _seen(self, principal: Principal | None, name: str) -> HostModel | None:
        try:
            return self.find(principal, name)
        except ServingError:
            return None

    def _of_a_user(self, name: str) -> bool:
        """Users' deployments lie on the hosts as well, under `user.deployment`: they have lists of their own."""
        owner = names.addressed(name).owner
        return bool(owner) and self._users.by_name(owner) is not None


def _fits(model: HostModel, text: str, visibility: str) -> bool:
    if visibility and visibility != ("public" if model.public else "private"):
        return False
    return text.lower() in model.name.lower() or text.lower() in model.description.lower()


def _missing(name: str) -> ServingError:
    return ServingError(Code.MODEL_NOT_FOUND, f"there is no model {name[:140]!r}")
