"""What the repository's index and the refusals say of versions that serve and of those that do not."""

from idl.codes import ServingError
from idl.messages import ModelIndex
from inference_server import errors
from inference_server.load_states import LoadStates
from inference_server.pipelines import Pipelines
from inference_server.repository import Repository
from inference_server.repository_poll import RepositoryPoll
from inference_server.served import ServedVersion
from inference_server.served_models import ServedModels


class Index:
    """Looks at what others own. `poll` as `Library` has it."""

    def __init__(
        self, repository: Repository, served: ServedModels, states: LoadStates, pipelines: Pipelines, poll: RepositoryPoll | None
    ) -> None:
        self._repository = repository
        self._served = served
        self._states = states
        self._pipelines = pipelines
        self._poll = poll

    def why_not(self, name: str, version: str = "") -> ServingError:
        """The refusal for what does not serve: never heard of, failed, or not loaded."""
        model = self._repository.peek(name)
        if model is None and name not in self._served.table:
            return errors.model_not_found(short(name))
        if version and version not in map(str, model.versions if model else ()):
            return errors.version_not_found(name, short(version))
        failure = self._states.why(name, int(version or 0))
        what = f"model {name!r}" + (f" version {version}" if version else "")
        if self._states.is_loading(name):
            return errors.not_ready(f"{what} is loading")
        return errors.not_ready(f"{what} failed to load: {failure}" if failure else f"{what} is not loaded")

    def entries(self) -> list[ModelIndex]:
        """Every version that lies in the repository or serves, by name and version. A model of which nothing can be loaded has one entry,
        without a version.
        """
        found: list[ModelIndex] = []
        table = self._served.table
        for name in sorted({*self._repository.names(), *table}):
            model = self._repository.peek(name)
            loaded = table[name].versions if name in table else {}
            for version in sorted({*(model.versions if model else ()), *loaded}):
                found.append(ModelIndex(name, str(version), *self._state(name, version, loaded.get(version))))
            if not loaded and (model is None or not model.versions):
                found.append(ModelIndex(name, "", "UNAVAILABLE", model.problem if model else "gone from the repository"))
        return found

    def _state(self, name: str, version: int, served: ServedVersion | None) -> tuple[str, str]:
        if served is not None:
            if served.ready:
                why = self._pipelines.why_not(served)
                return ("UNAVAILABLE", why) if why else ("READY", "")
            return "UNAVAILABLE", served.failure or "its process is starting again"
        if self._states.is_loading(name, version):
            return "LOADING", ""
        if any(leaving.name == name and leaving.version == version for leaving in self._served.leaving()):
            return "UNLOADING", ""
        if self._poll is not None and version in self._poll.unfinished(name):
            return "UNAVAILABLE", "its files are still changing"
        return "UNAVAILABLE", self._states.why(name, version) or self._states.before_a_version(name) or "not loaded"


def short(text: str) -> str:
    return text if len(text) <= 128 else text[:128] + "..."
