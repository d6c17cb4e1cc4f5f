"""Scripts that users put around their deployments' models: looked at by a model host, then kept in versions."""

from collections.abc import Sequence

from gateway import clock
from gateway.errors import ChangedMeanwhile
from gateway.models_rpc import Models
from gateway.operations import names
from gateway.storage import Storage
from gateway.storage.audit import Doer
from gateway.storage.scripts import ScriptRecord, ScriptVersionRecord
from gateway.types import Principal
from idl.codes import Code, ServingError

MOST_BYTES = 256 * 1024
MOST_SCRIPTS = 1000
_LAST = 1 << 62


class Scripts:
    """The verbs on scripts, each of the caller's own. Thread-safe."""

    def __init__(self, storage: Storage, models: Models, now: clock.Clock = clock.now) -> None:
        self._storage = storage
        self._rows = storage.scripts
        self._models = models
        self._now = now

    def put(
        self, caller: Principal, name: str, source: bytes, doer: Doer, *, description: str | None = None, new: bool = False
    ) -> tuple[ScriptRecord, ScriptVersionRecord]:
        """A new version, or the first one. Raises invalid_input (with the line), already_exists, too_large, unsupported (no box there),
        unavailable."""
        names.refuse("name", name)
        known = self._rows.of_owner(caller.user_id, name)
        if known is not None and new:  # before the costly part; the store asks again
            raise ServingError(Code.ALREADY_EXISTS, f"name: there is a script {name!r}")
        if known is None and len(self._rows.listed(caller.user_id, 0, MOST_SCRIPTS)) >= MOST_SCRIPTS:
            raise ServingError(Code.INSUFFICIENT_CAPACITY, f"there are {MOST_SCRIPTS} scripts, which are as many as a user may have")
        functions = self.check(source)
        sha256, _ = self._storage.blobs.put([source], self._now())
        return self._rows.put(caller.user_id, name, description, sha256, functions, doer, self._now(), new=new)

    def check(self, source: bytes) -> Sequence[str]:
        """What a model host finds in it: preprocess, postprocess or both. Nothing is kept. Raises as `put` where it cannot be used."""
        if len(source) > MOST_BYTES:
            raise ServingError(Code.TOO_LARGE, f"a script has at most {MOST_BYTES} bytes, this one has {len(source)}")
        return self._models.validate_script(source).functions

    def read(self, caller: Principal, name: str) -> ScriptRecord:
        """Raises not_found."""
        found = self._rows.of_owner(caller.user_id, name)
        if found is None:
            raise ServingError(Code.NOT_FOUND, f"there is no script {name[:80]!r}")
        return found

    def listed(self, caller: Principal, after: int, limit: int) -> list[ScriptRecord]:
        return self._rows.listed(caller.user_id, after, limit)

    def versions(self, script: ScriptRecord, below: int | None, limit: int) -> list[ScriptVersionRecord]:
        """Newest first."""
        return self._rows.versions(script.id, _LAST if below is None else below, limit)

    def version(self, script: ScriptRecord, number: int | None) -> ScriptVersionRecord:
        """None: the newest. Raises version_not_found."""
        found = self._rows.version(script.id, script.latest if number is None else number)
        if found is None:
            raise ServingError(Code.VERSION_NOT_FOUND, f"script {script.name!r} has no version {number}")
        return found

    def source(self, version: ScriptVersionRecord) -> bytes:
        return self._storage.blobs.read(version.sha256)

    def describe(self, caller: Principal, name: str, description: str, doer: Doer, revision: int | None) -> ScriptRecord:
        """Raises not_found, conflict (ChangedMeanwhile)."""
        found = self.read(caller, name)
        if not self._rows.describe(found.id, description, doer, self._now(), revision):
            raise ChangedMeanwhile
        return self.read(caller, name)

    def delete(self, caller: Principal, name: str, doer: Doer) -> None:
        """Raises not_found; conflict while deployments use it."""
        self._rows.delete(self.read(caller, name).id, doer, self._now())
