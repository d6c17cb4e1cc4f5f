"""One deployment on one model host: the steps that make the host agree, each of which may be done again.

Files first, then `model.toml`, then the load: a host that is killed in between comes back with what it served before, or with nothing.
What moves traffic is one verb of the host's each: a load that names the version, or the labels `stable` and `canary`.
"""

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.operations import host_settings
from gateway.operations.model_files import Placed
from idl.codes import Code, ServingError

if TYPE_CHECKING:
    from inference_client import Client

LOAD_TIMEOUT_S = 600.0
SETTINGS_FILE = "model.toml"
STABLE, CANARY = "stable", "canary"
_NOT_THERE = (Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND)


@dataclass(frozen=True, slots=True)
class ScriptPlan:
    """`version`: a number that no other bytes ever have; `before` is the one that calls still ask for, 0: none."""

    name: str
    version: int
    source: Path
    before: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be there. `declared`: the model's own `model.toml`; `files` are those of the versions, without it. `canary` 0: none;
    `kept`: versions whose files stay although they do not serve; `proven` is one that serves, 0: none, whose files are whole wherever they are."""

    name: str
    stable: int
    canary: int
    percent: int
    files: Sequence[Placed]
    declared: bytes
    instances: int
    cpus: float | None
    memory: int | None
    script: ScriptPlan | None
    kept: Collection[int] = ()
    proven: int = 0

    def missing(self, lying: Collection[int]) -> list[Placed]:
        """Of the files those that a host has to get which has these versions. What lies beside the versions belongs to the stable one."""
        if self.proven not in lying:
            return list(self.files)
        return [file for file in self.files if (file.version or self.stable) != self.proven]

    @property
    def versions(self) -> tuple[int, ...]:
        return (self.stable, self.canary) if self.canary else (self.stable,)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a host has of one name: version -> instances that take requests; versions that serve no more -> why; every version that lies there."""

    ready: dict[int, int]
    broken: dict[int, str]
    lying: frozenset[int]


NOTHING = Seen({}, {}, frozenset())


def look(client: "Client", prefix: str = "", timeout_s: float | None = None) -> dict[str, Seen]:
    """Everything that a host has, by name; of names that begin with `prefix`. Raises what the host says. `timeout_s`: of each question."""
    found: dict[str, Seen] = {}
    for entry in client.repository_index(timeout_s=timeout_s):
        if entry.name.startswith(prefix):
            seen = found.setdefault(entry.name, Seen({}, {}, frozenset()))
            if entry.version:
                found[entry.name] = Seen(seen.ready, seen.broken, seen.lying | {int(entry.version)})
    for model in client.capacity(timeout_s=timeout_s).models:
        if model.name in found and model.state == "READY":
            found[model.name].ready[int(model.version)] = model.instances
        elif model.name in found:
            found[model.name].broken[int(model.version)] = model.reason
    return found


class HostSide:
    """Over one host's client. Every method raises ServingError."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def prepare(self, plan: Plan, before: int) -> None:
        """Everything is there and loaded, and requests go where they went: to version `before`, where that serves."""
        seen = look(self._client, plan.name).get(plan.name, NOTHING)
        self._put_script(plan)
        for file in plan.missing(seen.lying):
            self._client.put_file(file.path, plan.name, file.version, file.name, user=True)
        if before in seen.ready and before not in plan.versions:
            self._settings(plan, (before, *plan.versions))
            self._load(plan.name, before)
        elif before in seen.ready and len(plan.versions) > 1:
            self._settings(plan, plan.versions)
            self._load(plan.name, before)

    def switch(self, plan: Plan) -> None:
        """Requests go where they should, and nothing else is loaded."""
        self._settings(plan, plan.versions)
        self._load(plan.name, plan.stable)
        labels = {STABLE: plan.stable, CANARY: plan.canary} if plan.canary else {}
        if labels or self._has_labels(plan.name):
            self._client.set_labels(plan.name, labels, plan.percent if labels else 0)
        seen = look(self._client, plan.name).get(plan.name, NOTHING)
        if not labels and set(seen.ready) - {plan.stable}:  # those had labels
            self._load(plan.name, plan.stable)
        for version in seen.lying - {*plan.versions, *plan.kept}:
            self._client.remove_model(plan.name, version)

    def tidy_script(self, plan: Plan) -> None:
        """Nothing asks any more for the scripts before: they go."""
        name = _script_of(plan)
        seen = look(self._client, name).get(name, NOTHING)
        if plan.script is None:
            if seen.lying:
                self._client.remove_model(name)
            return
        if others := seen.lying - {plan.script.version}:
            self._put_text(name, host_settings.of_script(plan.script.version))
            self._load(name, plan.script.version)
            for version in others:
                self._client.remove_model(name, version)

    def resize(self, plan: Plan) -> None:
        """As many instances as are wanted. Raises insufficient_capacity, and then there are some of them."""
        seen = look(self._client, plan.name).get(plan.name, NOTHING)
        if set(seen.ready.values()) != {plan.instances}:
            self._client.set_instances(plan.name, plan.instances, timeout_s=LOAD_TIMEOUT_S)

    def instances(self, name: str) -> int:
        """How many there are of each version, at least 1."""
        return max(1, min(look(self._client, name).get(name, NOTHING).ready.values(), default=1))

    def load_beside(self, plan: Plan, version: int) -> None:
        """A version can be asked by its number, whatever serves by default."""
        seen = look(self._client, plan.name).get(plan.name, NOTHING)
        if version not in seen.ready:
            self._settings(plan, plan.versions)
            self._load(plan.name, version)

    def take_back(self, plan: Plan, before: int) -> None:
        """After a `prepare` that led to nothing: as it was, with version `before` alone."""
        self._settings(plan, (before,))
        self._load(plan.name, before)
        for version in set(plan.versions) - {before, *plan.kept}:
            self._client.remove_model(plan.name, version)

    def stop(self, name: str, script: str) -> None:
        """Its processes are gone after what is inside them, its files stay."""
        for each in (name, script):
            try:
                self._client.unload_model(each, timeout_s=LOAD_TIMEOUT_S)
            except ServingError as error:
                if error.code not in _NOT_THERE:
                    raise

    def remove(self, name: str, script: str) -> None:
        """Nothing of it is left. An operator's model of that name is none of ours."""
        for each in (name, script):
            try:
                self._client.remove_model(each, timeout_s=LOAD_TIMEOUT_S)
            except ServingError as error:
                if error.code is not Code.FORBIDDEN:
                    raise

    def _put_script(self, plan: Plan) -> None:
        """It is there, beside the one before where that serves."""
        script = plan.script
        if script is None:
            return
        seen = look(self._client, script.name).get(script.name, NOTHING)
        if script.version in seen.ready:
            return
        self._client.put_file(script.source, script.name, script.version, "script.py", user=True)
        self._put_text(script.name, host_settings.of_script(script.version, *({script.before} & seen.ready.keys())))
        self._load(script.name, script.version)

    def _has_labels(self, name: str) -> bool:
        return "version_labels" in self._client.model_metadata(name).properties

    def _settings(self, plan: Plan, versions: Sequence[int]) -> None:
        self._put_text(plan.name, host_settings.merged(plan.declared, versions, plan.cpus, plan.memory))

    def _put_text(self, name: str, content: bytes) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            self._client.put_file(file.name, name, 0, SETTINGS_FILE, user=True)

    def _load(self, name: str, version: int) -> None:
        self._client.load_model(name, {"version": version}, timeout_s=LOAD_TIMEOUT_S)


def _script_of(plan: Plan) -> str:
    return f"{plan.name}.script" if plan.script is None else plan.script.name
