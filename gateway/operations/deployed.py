"""Deployments as their callers meet them: who may call one, remembered; what to tell where it does not run; and waking it where it sleeps.

A deployment lies on the model hosts beside the operators' models, under `owner.name`. Names without a dot are never looked up here, so that an
operator's model costs nothing more. What is remembered is dropped when `storage.sharing` changes: every change of who may call what, and
of what runs, changes it, in every process of the gateway.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from gateway import clock
from gateway.models_rpc import Models
from gateway.operations import deployments
from gateway.operations.access import Access, Can
from gateway.operations.deployment_errors import DeploymentErrors
from gateway.operations.deployments import Target
from gateway.storage import Storage
from gateway.storage.deployments import DELETING, FAILED, SLEEPING
from gateway.types import Principal
from idl.codes import Code, ServingError

_MOST_REMEMBERED = 4096
_LOOK_EVERY_S = 0.02
_LOOK_AT_LEAST_S = 1.0
"""How often a waiting call looks at the mark, and, should that not be readable, at the database."""
_RETRY_MS = 1000
_MOMENT_S = 1.0
"""How long a call waits where as many wait already as may for as long as their time allows."""
_NOT_SERVED = frozenset({Code.NOT_READY, Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND})
"""How a host refuses what it has just stopped to serve: the request did not run."""


class _Seen(NamedTuple):
    """What was known of a name and a caller at a mark. `target` None: there is no such deployment."""

    mark: int
    target: Target | None
    can: Can


class Deployed:
    """Thread-safe. `nudge` tells the reconciler that somebody waits; `most_waiting` calls of this process wait as long as their time allows, and what is beyond for a moment."""

    def __init__(
        self,
        storage: Storage,
        models: Models,
        access: Access,
        nudge: Callable[[], None],
        most_waiting: int,
        now: clock.Clock = clock.now,
    ) -> None:
        self._storage = storage
        self._models = models
        self._access = access
        self._nudge = nudge
        self._now = now
        self._waiting = threading.BoundedSemaphore(max(1, most_waiting))
        self._seen: dict[tuple[str, int, str], _Seen] = {}
        self._versions: dict[str, tuple[int, int]] = {}
        self.errors = DeploymentErrors(storage, now)

    def recall(self, principal: Principal | None, name: str) -> tuple[Target | None, Can] | None:
        """What is remembered, None for nothing; asks nobody."""
        seen = self._seen.get(_key(principal, name))
        return None if seen is None or seen.mark != self._storage.sharing.read() else (seen.target, seen.can)

    def recall_id(self, name: str) -> int | None:
        """Of the deployment that hosts call `name`, where it was looked up; asks nobody."""
        known = self._versions.get(name)
        return None if known is None else known[0]

    def look_up(self, principal: Principal | None, name: str) -> tuple[Target | None, Can]:
        """The deployment called `name` as hosts call it, None where there is none, and what the caller may do with it."""
        known = self.recall(principal, name)
        return known if known is not None else self.renew(principal, name)

    def renew(self, principal: Principal | None, name: str) -> tuple[Target | None, Can]:
        """The same, whatever is remembered."""
        mark = self._storage.sharing.read()  # before what it stands for
        target, can = self._found(principal, name)
        if mark is not None:
            if len(self._seen) >= _MOST_REMEMBERED:
                self._seen = {}
            self._seen[_key(principal, name)] = _Seen(mark, target, can)
        return target, can

    def _found(self, principal: Principal | None, name: str) -> tuple[Target | None, Can]:
        owner, _, own = name.partition(".")
        record = None if "." in own else self._storage.deployments.find(owner, own)
        if record is None or record.state == DELETING or record.rpc_name != name:  # hosts tell capital letters from small ones
            return None, Can(0)
        target = deployments.target_of(record)
        if self._versions.get(name) != (target.id, target.version):  # another one: what was known of its signature is not its own
            self._models.forget(name)
            if len(self._versions) >= _MOST_REMEMBERED:
                self._versions = {}
            self._versions[name] = (target.id, target.version)
        return target, self._access.of(principal, target.shared)

    def admit(self, principal: Principal | None, name: str, version: str = "") -> Target | None:
        """The deployment that the caller may call by its name on the hosts; None for a model of the operators'.

        Raises model_not_found for what is there and not to be seen, in the words for what is not there, forbidden, and unauthenticated
        where nobody is signed in.
        """
        if "." not in name:
            return None
        target, can = self.look_up(principal, name)
        if target is None:
            if self._is_users(name, version):  # to be tried, or on its way out
                raise _hidden(principal, name)
            return None
        if Can.CALL in can:
            return target
        if Can.READ in can:
            raise ServingError(Code.FORBIDDEN, f"deployment {name!r}: you may see it, and not call it")
        raise _hidden(principal, name)

    def target(self, principal: Principal | None, name: str) -> Target:
        """The deployment that the caller may call by `name` in a path of `/v1`: a plain name is his own. Raises as `deployments.resolve`."""
        if principal is not None or "." in name:
            full_name = name if "." in name or principal is None else f"{principal.name}.{name}"
            target, can = self.look_up(principal, full_name)
            if target is not None and Can.CALL in can:
                return target
        return deployments.resolve(self._storage, self._access, principal, name)

    def again(self, target: Target, error: ServingError, deadline: float) -> Target:
        """The host has just refused a call of `target` with `error`: the same once it runs, where it does not any more as was remembered.

        Raises `error` where it does, and as `ready`.
        """
        if error.code not in _NOT_SERVED:
            raise error
        now = self._now_of(target)
        if not now.is_running or (now.version, now.script_version) != (target.version, target.script_version):
            return self.ready(now, deadline)
        if error.code is Code.MODEL_NOT_FOUND:  # the host has come back without it, and is about to get it again
            raise ServingError(Code.NOT_READY, f"deployment {target.rpc_name!r} is being put on a model host", retry_after_ms=_RETRY_MS)
        raise error

    def _is_users(self, name: str, version: str) -> bool:
        try:
            return self._models.declaration(name, version).user
        except ServingError as error:
            if error.code in (Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND, Code.NOT_READY, Code.INVALID_MODEL):
                # why it does not serve is its owner's to know
                return bool(name.partition(".")[0]) and self._storage.users.by_name(name.partition(".")[0]) is not None
            raise

    def ready(self, target: Target, deadline: float) -> Target:
        """The same once it runs; `deadline` in seconds of `time.monotonic()`. One that sleeps is woken.

        Raises deployment_paused, not_ready (it failed, with why, or it did not start in time), overloaded (the same, and many wait), not_found.
        """
        if target.is_running:
            return target
        _refuse(target)
        if not self._waiting.acquire(blocking=False):  # the threads are for quick calls as well: the rest waits for a moment only
            return self._awaited(target, min(deadline, time.monotonic() + _MOMENT_S), Code.OVERLOADED)
        try:
            return self._awaited(target, deadline, Code.NOT_READY)
        finally:
            self._waiting.release()

    def _awaited(self, target: Target, deadline: float, late: Code) -> Target:
        mark, looked_at = self._storage.sharing.read(), time.monotonic()
        while True:
            target = self._now_of(target)
            if target.is_running:
                return target
            _refuse(target)
            if target.state == SLEEPING and self._storage.deployments.wake(target.id, self._now()):
                self._nudge()
            while True:
                if (moment := time.monotonic()) >= deadline:
                    reason = f": {target.reason}" if target.reason else ""
                    raise ServingError(late, f"deployment {target.rpc_name!r} is {target.state}{reason}", retry_after_ms=_RETRY_MS)
                if (seen := self._storage.sharing.read()) != mark or moment >= looked_at + _LOOK_AT_LEAST_S:
                    mark, looked_at = seen, moment
                    break
                time.sleep(min(_LOOK_EVERY_S, deadline - moment))

    def _now_of(self, target: Target) -> Target:
        record = self._storage.deployments.by_id(target.id)
        if record is None or record.deleted_at is not None or record.state == DELETING:
            raise ServingError(Code.NOT_FOUND, f"there is no deployment {target.rpc_name!r}")
        return deployments.target_of(record)


def _refuse(target: Target) -> None:
    """Where waiting does not help."""
    if not target.is_wanted:
        raise ServingError(Code.DEPLOYMENT_PAUSED, f"deployment {target.rpc_name!r} is paused")
    if target.state == FAILED:
        raise ServingError(Code.NOT_READY, f"deployment {target.rpc_name!r} failed: {target.reason}", retry_after_ms=_RETRY_MS)


def _hidden(principal: Principal | None, name: str) -> ServingError:
    if principal is None:
        return ServingError(Code.UNAUTHENTICATED, f"model {name!r}: sign in to use it")
    return ServingError(Code.MODEL_NOT_FOUND, f"model {name!r} is not in the repository")


def _key(principal: Principal | None, name: str) -> tuple[str, int, str]:
    return (name, 0, "") if principal is None else (name, principal.user_id, principal.role.value)
