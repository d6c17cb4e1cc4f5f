"""What owners do with deployments: every verb writes what is wanted, and the reconciler makes it so."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway import clock
from gateway.errors import ChangedMeanwhile, InvalidFields
from gateway.models_rpc import Models
from gateway.operations import admission, deployments, names, sharing
from gateway.operations.access import Access, Can, Shared
from gateway.storage import Storage
from gateway.storage.audit import Doer
from gateway.storage.deployments import DELETED, DELETING, FAILED, PAUSED, PAUSING, RUNNING, SLEEPING, STARTING, DeploymentRecord
from gateway.storage.model_records import ModelRecord
from gateway.types import Principal
from idl.codes import Code, ServingError

_PLAIN = ("instances", "min_instances", "max_instances", "cpus", "memory", "sleep_after_s", "golden_tolerance")
"""Fields that are columns."""
_TRIES = 10
_OWNERS = frozenset({"visibility", "team"})
_OPERATORS = frozenset({"desired_state"})
"""What its owner alone may change, and what operators may, for the host's sake."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a list is of. `shared`: also what others let the caller see; `state` "": any."""

    model: str = ""
    state: str = ""
    shared: bool = False


class Deployments:
    """Thread-safe. `nudge` tells the reconciler that something is to be done."""

    def __init__(self, storage: Storage, models: Models, access: Access, nudge: Callable[[], None], now: clock.Clock = clock.now) -> None:
        self._storage = storage
        self._rows = storage.deployments
        self._models = models
        self._access = access
        self._nudge = nudge
        self._now = now

    def find(self, principal: Principal | None, name: str, wanted: Can = Can.READ) -> DeploymentRecord:
        """Raises not_found, unauthenticated, forbidden."""
        return deployments.require(self._storage, self._access, principal, name, wanted)

    def listed(self, principal: Principal, wanted: Wanted, after: int, limit: int) -> list[DeploymentRecord]:
        """The caller's own, or with `shared` all that he may see. Raises model_not_found for a model that he may not."""
        model_id = self._model(principal, wanted.model, Can.READ).id if wanted.model else None
        teams = self._storage.teams.roles_of(principal.user_id) if wanted.shared else {}
        everything = wanted.shared and principal.may_operate
        return self._rows.listed(
            principal.user_id,
            teams,
            shared=wanted.shared,
            everything=everything,
            model_id=model_id,
            state=wanted.state,
            after=after,
            limit=limit,
        )

    def create(self, principal: Principal, values: Mapping[str, Any], doer: Doer) -> DeploymentRecord:
        """`values`: name, model, and what `change` takes but a canary. It starts, unless it is to be paused.

        Raises invalid_input by field, model_not_found, version_not_found, already_exists, insufficient_capacity.
        """
        names.refuse("name", values["name"])
        model = self._model(principal, values["model"], Can.CHANGE)
        full_name = f"{principal.name}.{values['name']}"
        columns = {"instances": 1, **self._plain(values, None)}
        columns |= sharing.columns(self._storage, principal, values, "private", None)
        columns["version_id"] = self._version(model, values.get("version"))
        if "script" in values:
            columns["script_version_id"] = self._script(principal, values["script"])
        desired = values.get("desired_state", RUNNING)
        columns |= {"desired_state": desired, "state": STARTING if desired == RUNNING else PAUSED, "shown_time": values.get("time", "")}
        if self._rows.of_owner(principal.user_id, values["name"]) is None:
            self._refuse_operators(full_name)
        if desired == RUNNING:
            admission.require(self._models, full_name, columns.get("cpus"), columns.get("memory"), columns["instances"])
        columns |= {"owner_id": principal.user_id, "name": values["name"], "model_id": model.id}
        most, instances = (self._storage.quotas.limit(principal.user_id, kind) for kind in ("deployments", "instances"))
        made = self._rows.create(columns, doer, self._now(), most, instances)
        self._nudge()
        return made

    def change(
        self, principal: Principal, name: str, values: Mapping[str, Any], doer: Doer, revision: int | None = None
    ) -> DeploymentRecord:
        """`values`: desired_state, version, instances, min_instances, max_instances, cpus, memory, sleep_after_s, script ({name, version} or
        None), canary ({version, percent} or None), golden_tolerance, visibility, team. Raises as `create`, and conflict (ChangedMeanwhile)."""
        return self._repeated(revision, lambda: self._change(principal, name, values, doer, revision))

    def _change(self, principal: Principal, name: str, values: Mapping[str, Any], doer: Doer, revision: int | None) -> DeploymentRecord:
        found = self.find(principal, name, _needed(values))
        columns = self._plain(values, found) | sharing.columns(self._storage, principal, values, found.visibility, found.team_id)
        model = self._storage.models.by_id(found.model_id)
        assert model is not None, "a deployment names it"
        if "version" in values:
            columns |= {"version_id": self._version(model, values["version"]), "check_golden": 1}
        if "canary" in values:
            columns |= self._canary(model, values["canary"], columns.get("version_id", found.version_id))
        if "script" in values:
            columns["script_version_id"] = self._script(principal, values["script"], found)
        desired = values.get("desired_state", found.desired_state)
        columns |= _states(found, desired, "desired_state" in values)
        if desired == RUNNING and ({"cpus", "memory", "instances"} & columns.keys() or found.desired_state != RUNNING):
            wanted = [columns.get(key, getattr(found, key)) for key in ("cpus", "memory", "instances")]
            admission.require(self._models, found.rpc_name, *wanted)
        return self._changed(found, columns, doer, revision, "deployment.change", values)

    def promote(self, principal: Principal, name: str, doer: Doer, revision: int | None = None) -> DeploymentRecord:
        """The canary's version becomes the one that serves, at once; one that has not begun yet is asked the golden requests before. Raises
        conflict where there is no canary."""

        def promote() -> DeploymentRecord:
            found = self.find(principal, name, Can.CHANGE)
            if found.canary_version_id is None:
                raise ServingError(Code.CONFLICT, f"deployment {found.name!r} has no canary")
            columns = {"version_id": found.canary_version_id, "canary_version_id": None, "canary_percent": 0}
            # a change that is not carried out yet may be the one that made it the canary
            columns["check_golden"] = int(found.generation != found.observed_generation)
            return self._changed(found, columns, doer, revision, "deployment.promote", {"version": found.canary_version})

        return self._repeated(revision, promote)

    def roll_back(self, principal: Principal, name: str, doer: Doer, revision: int | None = None) -> DeploymentRecord:
        """Without its canary, or where there is none with the version that served before, at once: nothing is replayed.

        Raises conflict where there is neither.
        """

        def roll_back() -> DeploymentRecord:
            found = self.find(principal, name, Can.CHANGE)
            columns: dict[str, Any] = {"canary_version_id": None, "canary_percent": 0}
            if found.canary_version_id is None:
                before = found.serving_version_id if found.serving_version_id != found.version_id else found.previous_version_id
                if before is None:
                    raise ServingError(Code.CONFLICT, f"deployment {found.name!r} has neither a canary nor an earlier version")
                columns |= {"version_id": before, "check_golden": 0}
            return self._changed(found, columns, doer, revision, "deployment.rollback", {})

        return self._repeated(revision, roll_back)

    def delete(self, principal: Principal, name: str, doer: Doer, revision: int | None = None) -> None:
        """It is refused from now on, and gone when the model hosts have nothing of it any more."""

        def delete() -> DeploymentRecord:
            found = self.find(principal, name, Can.OWN)
            if found.state == DELETING:
                return found
            columns = {"desired_state": DELETED, "state": DELETING, "canary_version_id": None, "canary_percent": 0}
            return self._changed(found, columns, doer, revision, "deployment.delete", {})

        self._repeated(revision, delete)

    # inside ----------------------------------------------------------------------------------------------------------------------

    def _repeated(self, revision: int | None, change: Callable[[], DeploymentRecord]) -> DeploymentRecord:
        """A change that was looked into while somebody else made one is looked into again, unless it is of one revision only."""
        for _ in range(_TRIES if revision is None else 1):
            try:
                return change()
            except ChangedMeanwhile as error:
                last = error
        raise last

    def _changed(
        self, found: DeploymentRecord, columns: Mapping[str, Any], doer: Doer, revision: int | None, action: str, detail: Mapping[str, Any]
    ) -> DeploymentRecord:
        if found.state == DELETING:
            raise ServingError(Code.NOT_FOUND, f"there is no deployment {found.name!r}")
        if revision not in (None, found.revision):
            raise ChangedMeanwhile
        # whatever was looked at must still be so: two changes at once are one after the other, and the second sees the first
        most = self._storage.quotas.limit(found.owner_id, "instances")
        made = self._rows.change(
            found.id, columns, doer, self._now(), revision=found.revision, action=action, detail=detail, most_instances=most
        )
        if made is None:
            raise ChangedMeanwhile
        self._nudge()
        return made

    def _plain(self, values: Mapping[str, Any], now: DeploymentRecord | None) -> dict[str, Any]:
        columns = {key: values[key] for key in _PLAIN if key in values}
        low, high, count = (
            columns.get(key, getattr(now, key) if now else default)
            for key, default in (("min_instances", None), ("max_instances", None), ("instances", 1))
        )
        if (low is None) != (high is None):
            if {"min_instances", "max_instances"} <= columns.keys() or now is None or now.max_instances is None:
                low, high = (low or 1, high) if high is not None else (low, max(low or 1, count or 1))
            else:  # one of them was taken back, and so was the other
                low = high = None
            columns |= {"min_instances": low, "max_instances": high}
        if low is not None and high is not None:
            if low > high:
                raise InvalidFields({"min_instances": f"is {low}, above max_instances, which is {high}"})
            columns["instances"] = min(max(count, low), high)
        return columns

    def _model(self, principal: Principal, name: str, wanted: Can) -> ModelRecord:
        asked = names.addressed(name)
        rows = self._storage.models
        found = rows.find(asked.owner, asked.name) if asked.owner else rows.of_owner(principal.user_id, asked.name)
        shared = None if found is None else Shared(found.owner_id, found.visibility, found.team_id)
        self._access.require(principal, shared, wanted, f"model {name[:140]!r}", Code.MODEL_NOT_FOUND)
        assert found is not None, "there is nothing that somebody may do with nothing"
        return found

    def _version(self, model: ModelRecord, number: int | None) -> int:
        """Its id; None: the newest."""
        number = model.latest if number is None else number
        found = None if number is None else self._storage.models.version(model.id, number)
        if found is None:
            which = "a version" if number is None else f"version {number}"
            raise ServingError(Code.VERSION_NOT_FOUND, f"model {model.name!r} does not have {which}")
        return found.id

    def _canary(self, model: ModelRecord, given: Mapping[str, Any] | None, stable_id: int) -> dict[str, Any]:
        if given is None:
            return {"canary_version_id": None, "canary_percent": 0}
        version_id = self._version(model, given["version"])
        if version_id == stable_id:
            raise InvalidFields({"canary.version": f"is {given['version']}, which is the version that serves"})
        return {"canary_version_id": version_id, "canary_percent": given["percent"], "check_golden": 1}

    def _script(self, principal: Principal, given: Mapping[str, Any] | None, now: DeploymentRecord | None = None) -> int | None:
        """The id of a version of a script: one's own."""
        if given is None:
            return None
        script = self._storage.scripts.of_owner(principal.user_id, given["name"])
        number = given.get("version")
        found = None if script is None else self._storage.scripts.version(script.id, script.latest if number is None else number)
        if found is None:
            which = "" if script is None else f" with version {number}"
            raise InvalidFields({"script": f"there is no script {given['name']!r}{which}"})
        return found.id

    def _refuse_operators(self, full_name: str) -> None:
        """Raises already_exists where an operator has a model of that name. What is not known now is found out by the host, later."""
        try:
            is_taken = not self._models.declaration(full_name).user
        except ServingError:
            return
        if is_taken:
            raise ServingError(Code.ALREADY_EXISTS, f"name: the operators have a model {full_name!r}")


def _needed(values: Mapping[str, Any]) -> Can:
    if _OWNERS & values.keys():
        return Can.OWN
    return Can.OPERATE if values and values.keys() <= _OPERATORS else Can.CHANGE


def _states(found: DeploymentRecord, desired: str, is_said: bool) -> dict[str, Any]:
    """The columns of a change to what it should do. Whatever failed is tried again."""
    if desired == PAUSED:
        return {"desired_state": PAUSED, "state": PAUSED if found.state == PAUSED else PAUSING}
    begins = found.state in (PAUSED, PAUSING, FAILED) or (is_said and found.state == SLEEPING)
    return {"desired_state": RUNNING, **({"state": STARTING, "reason": ""} if begins else {})}
