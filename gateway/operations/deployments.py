"""Deployments as callers name them: which one is meant, and whether it may be called."""

import json
from dataclasses import dataclass

from gateway.operations import names
from gateway.operations.access import Access, Can, Shared
from gateway.storage import Storage
from gateway.storage.deployments import DELETING, RUNNING, DeploymentRecord
from gateway.types import Principal
from idl.codes import Code, ServingError


@dataclass(frozen=True, slots=True)
class Target:
    """A deployment that somebody calls. `rpc_name`: what the model host calls it; `script_name` "": it has no script, else `script_version` is its
    version there, and `functions` says which of preprocess and postprocess there are. `state` is as the reconciler saw it last."""

    id: int
    owner_id: int
    owner: str
    name: str
    model: str
    version: int
    visibility: str
    team_id: int | None
    state: str
    reason: str
    is_wanted: bool
    script_name: str = ""
    script_version: int = 0
    functions: tuple[str, ...] = ()

    @property
    def rpc_name(self) -> str:
        return f"{self.owner}.{self.name}"

    @property
    def is_running(self) -> bool:
        return self.is_wanted and self.state == RUNNING

    @property
    def shared(self) -> Shared:
        return Shared(self.owner_id, self.visibility, self.team_id)


def target_of(record: DeploymentRecord, *, wanted: bool = False) -> Target:
    """As it serves, where it does; with `wanted` as it will: until a script is on the hosts calls go on with the one before, or none."""
    serves = record.state == RUNNING and record.serving_version_id is not None and not wanted
    script = record.serving_script_id if serves else record.script_version_id
    functions = record.serving_functions if serves else record.script_functions
    return Target(
        record.id,
        record.owner_id,
        record.owner,
        record.name,
        record.model,
        record.serving_version or record.version,
        record.visibility,
        record.team_id,
        record.state,
        record.reason,
        record.desired_state == RUNNING and bool(record.owner_active),
        script_name(record) if script is not None else "",
        script or 0,
        tuple(json.loads(functions)) if functions else (),
    )


def script_name(record: DeploymentRecord) -> str:
    """What the model host calls its script: a model beside it."""
    return f"{record.rpc_name}.script"


def find(storage: Storage, principal: Principal | None, name: str) -> DeploymentRecord | None:
    """The deployment that `name` means in a path of `/v1`: a plain name is the caller's own, `owner.name` anybody's."""
    asked = names.addressed(name)
    if asked.owner:
        found = storage.deployments.find(asked.owner, asked.name)
    else:
        found = storage.deployments.of_owner(principal.user_id, asked.name) if principal is not None else None
    return found


def require(storage: Storage, access: Access, principal: Principal | None, name: str, wanted: Can) -> DeploymentRecord:
    """The same, where the caller may do `wanted` with it. Raises not_found, unauthenticated and forbidden as `Access.require`."""
    found = find(storage, principal, name)
    shared = None if found is None else Shared(found.owner_id, found.visibility, found.team_id)
    access.require(principal, shared, wanted, f"deployment {name[:140]!r}")
    assert found is not None, "there is nothing that somebody may do with nothing"
    return found


def resolve(storage: Storage, access: Access, principal: Principal | None, name: str) -> Target:
    """The deployment that the caller may call by `name`. Raises as `require`; what state it is in is another matter."""
    found = require(storage, access, principal, name, Can.CALL)
    if found.state == DELETING:
        raise ServingError(Code.NOT_FOUND, f"there is no deployment {name[:140]!r}")
    return target_of(found)
