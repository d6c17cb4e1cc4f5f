"""Makes the model hosts agree with what the database wants of deployments.

One look after the other; what each finds to do is done beside, a deployment at a time for each name. Everything here may be killed at any
moment and is done again by the next look: steps on hosts can be repeated, and what came of them is written only where nobody has wanted
something else meanwhile.

Of several hosts those that answer are made to agree; one that does not is seen to when it is there again, and differs. Only what is deleted
waits for all of them: its name must not mean two things.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gateway import clock
from gateway.models_rpc import Models
from gateway.operations import deployments
from gateway.operations.deployment_plans import planned
from gateway.operations.host_side import NOTHING, HostSide, Plan, Seen, look
from gateway.storage import Storage
from gateway.storage.deployments import DELETING, FAILED, PAUSED, PAUSING, RUNNING, SLEEPING, STARTING, DeploymentRecord
from idl.codes import Code, ServingError

_log = logging.getLogger(__name__)
LOOK_AT_HOSTS_S = 5.0
"""How often what runs is compared with what should."""
_SIDE_BY_SIDE, _OF_ONE_OWNER = 8, 4
"""Deployments that are seen to at once: those of one owner, however slow, leave room for others'."""
_LOOK_TIMEOUT_S = 5.0
_LONGEST_WAIT_S, _LONGEST_WAIT_OF_HOST_S = 300.0, 5.0
_PASSING = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.NOT_READY, Code.OVERLOADED, Code.CANCELLED})
"""What says nothing of the deployment: the host is away, or busy."""
Check = Callable[[DeploymentRecord, int], str]
"""Why a version that is loaded must not serve, by the golden requests; "" where it may."""


class Refused(Exception):
    """A version that answers its golden requests otherwise; the message says which."""


class Reconciler:
    """Belongs to the worker's process: there is one of it for a data folder. `step` is for one thread. `done` is called, by any thread, when
    something that was under way has ended."""

    def __init__(
        self, storage: Storage, models: Models, check: Check, now: clock.Clock = clock.now, done: Callable[[], None] = lambda: None
    ) -> None:
        self._storage = storage
        self._models = models
        self._check = check
        self._now = now
        self._done = done
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Thread] = {}
        self._away: set[str] = set()
        """Hosts that did not answer, the last time."""
        self._looked_at = 0.0

    def step(self) -> int:
        """Begins what is to be done and not under way; returns how many are under way."""
        moment = self._now().timestamp()
        records = self._storage.deployments.alive()
        leaving = {record.rpc_name.lower(): record for record in records if record.state == DELETING}
        hosts = self._look(moment, records)
        for record in records:
            if record.state != DELETING and (before := leaving.get(record.rpc_name.lower())) is not None:
                self._wait_for(record, before)
                continue
            if moment >= record.retry_at and (_is_due(record) or (hosts is not None and _differs(record, hosts))):
                self._begin(record, hosts)
        with self._lock:
            return len(self._busy)

    def wait(self, timeout_s: float) -> bool:
        """True where nothing is under way any more."""
        until = time.monotonic() + timeout_s
        while True:
            with self._lock:
                running = list(self._busy.values())
            if not running or time.monotonic() >= until:
                return not running
            running[0].join(max(0.0, until - time.monotonic()))

    def _wait_for(self, record: DeploymentRecord, before: DeploymentRecord) -> None:
        """Its name is still another one's on some host. Says so, where that takes longer than a moment."""
        reason = f"the deployment that had its name before has to go first: {before.reason}" if before.failures else ""
        if reason and reason != record.reason:
            self._storage.deployments.settle(record, {"reason": reason}, self._now())

    def _look(self, moment: float, records: list[DeploymentRecord]) -> list[dict[str, Seen]] | None:
        """What each host has that answers, now and then; None for not now, or where none does."""
        settled = any(record.state in (RUNNING, PAUSED, SLEEPING) for record in records)
        if not settled or 0 <= moment - self._looked_at < LOOK_AT_HOSTS_S:
            return None
        self._looked_at = moment
        with ThreadPoolExecutor(len(self._models.hosts)) as pool:
            found = dict(zip(self._models.hosts, pool.map(self._seen_on, self._models.hosts), strict=True))
        for address, said in found.items():
            if isinstance(said, ServingError) and address not in self._away:
                _log.warning("model_host_unseen", extra={"host": address, "reason": said.message})
        self._away = {address for address, said in found.items() if isinstance(said, ServingError)}
        return [said for said in found.values() if not isinstance(said, ServingError)] or None

    def _seen_on(self, address: str) -> dict[str, Seen] | ServingError:
        try:
            return look(self._models.on(address), timeout_s=_LOOK_TIMEOUT_S)
        except ServingError as error:
            return error

    def _begin(self, record: DeploymentRecord, hosts: list[dict[str, Seen]] | None) -> None:
        name = record.rpc_name.lower()
        broken = _broken(record, hosts) if hosts is not None else ""
        with self._lock:
            owners = sum(other.startswith(f"{record.owner.lower()}.") for other in self._busy)
            if name in self._busy or len(self._busy) >= _SIDE_BY_SIDE or owners >= _OF_ONE_OWNER:
                return
            # a daemon: what it does may be left half-way
            thread = threading.Thread(target=self._run, args=(name, record, broken), name="reconcile", daemon=True)
            self._busy[name] = thread
        thread.start()

    def _run(self, name: str, record: DeploymentRecord, broken: str) -> None:
        try:
            self._carry_out(record, broken)
        except Exception:  # noqa: BLE001 - the database is away: the next look begins anew
            _log.exception("reconcile_failed", extra={"deployment": record.rpc_name})
        finally:
            with self._lock:
                self._busy.pop(name, None)
            self._done()

    # one deployment --------------------------------------------------------------------------------------------------------------

    def _carry_out(self, record: DeploymentRecord, broken: str) -> None:
        try:
            if broken and record.state == RUNNING:
                self._fail(record, ServingError(Code.MODEL_FAILED, broken))
                return
            if record.state == DELETING:
                self._remove(record)
            elif record.wants_to_run:
                self._serve(record)
            else:
                self._stop(record)
        except Refused as refused:
            self._go_back(record, str(refused))
        except ServingError as error:
            self._failed(record, error)
        except OSError as error:
            self._failed(record, ServingError(Code.UNAVAILABLE, f"its files cannot be read: {error.strerror}"))
        except Exception:  # noqa: BLE001 - the others are still to be seen to
            _log.exception("reconcile_failed", extra={"deployment": record.rpc_name})
            self._failed(record, ServingError(Code.INTERNAL, "the gateway made a mistake; the worker's log has it"))

    def _remove(self, record: DeploymentRecord) -> None:
        for side in self._sides(self._models.hosts):
            side.remove(record.rpc_name, deployments.script_name(record))
        self._storage.deployments.removed(record, self._now())
        _log.info("deployment_removed", extra={"deployment": record.rpc_name})

    def _stop(self, record: DeploymentRecord) -> None:
        # whoever asks from now on is told so, and what is inside goes on
        is_told = record.state in (SLEEPING, PAUSING) or self._storage.deployments.settle(record, {"state": PAUSING}, self._now())
        if not is_told:
            return
        for side in self._sides(self._there()):
            side.stop(record.rpc_name, deployments.script_name(record))
        state = SLEEPING if record.state == SLEEPING else PAUSED
        reason = "" if record.owner_active else "its owner's account is closed"
        self._settle(record, {"state": state, "reason": reason}, f"deployment_{state}")

    def _serve(self, record: DeploymentRecord) -> None:
        sides = self._sides(self._there())
        with planned(self._storage, record) as plan:
            for side in sides:
                side.prepare(plan, record.serving_version or 0)
            self._check_new(record, plan, sides)
            for side in sides:
                side.switch(plan)
        self._models.forget(record.rpc_name)
        changes: dict[str, Any] = {"state": RUNNING, "serving_version_id": record.version_id, "check_golden": 1, "reason": ""}
        changes["serving_script_id"] = record.script_version_id
        if record.serving_version_id not in (None, record.version_id):
            changes["previous_version_id"] = record.serving_version_id
        if self._settle(record, changes | self._resized(record, plan, sides), "deployment_running"):
            for side in sides:
                side.tidy_script(plan)

    def _resized(self, record: DeploymentRecord, plan: Plan, sides: list[HostSide]) -> dict[str, Any]:
        """As many instances as are wanted. What there is no room for does not stop those that are there."""
        try:
            for side in sides:
                side.resize(plan)
        except ServingError as error:
            if error.code is not Code.INSUFFICIENT_CAPACITY:
                raise
            if record.max_instances is not None:
                return {"instances": min(side.instances(plan.name) for side in sides)}
            delayed = {"failures": record.failures + 1, "retry_at": self._retry_at(record, _LONGEST_WAIT_S)}
            return {"reason": error.message} | delayed
        return {}

    def _check_new(self, record: DeploymentRecord, plan: Plan, sides: list[HostSide]) -> None:
        """Versions that have not served yet answer the golden requests as these say, or are refused."""
        if record.serving_version is None or not record.check_golden or record.observed_generation == record.generation:
            return
        for version in plan.versions:
            if version == record.serving_version or not self._storage.golden.of(record.id):
                continue
            for side in sides:
                side.load_beside(plan, version)
            if reason := self._check(record, version):
                for side in sides:
                    side.take_back(plan, record.serving_version)
                raise Refused(f"version {version} was refused: {reason}")

    def _sides(self, addresses: Sequence[str]) -> list[HostSide]:
        return [HostSide(self._models.on(address)) for address in addresses]

    def _there(self) -> Sequence[str]:
        """Of several hosts those that answer. Raises what the first says where none does."""
        addresses = self._models.hosts
        if len(addresses) == 1:  # it says so itself
            return addresses
        with ThreadPoolExecutor(len(addresses)) as pool:
            said = list(pool.map(self._why_away, addresses))
        there = [address for address, error in zip(addresses, said, strict=True) if error is None]
        if not there:
            raise next(error for error in said if error is not None)
        return there

    def _why_away(self, address: str) -> ServingError | None:
        try:
            self._models.on(address).server_live(timeout_s=_LOOK_TIMEOUT_S)
        except ServingError as error:
            return error
        return None

    # what came of it -------------------------------------------------------------------------------------------------------------

    def _settle(self, record: DeploymentRecord, changes: Mapping[str, Any], event: str) -> bool:
        """False where something else is wanted by now."""
        done = {"observed_generation": record.generation, "failures": 0, "retry_at": 0.0}
        is_written = self._storage.deployments.settle(record, {**done, **changes}, self._now())
        if is_written:
            _log.info(event, extra={"deployment": record.rpc_name, "version": record.version})
        return is_written

    def _failed(self, record: DeploymentRecord, error: ServingError) -> None:
        if error.code in _PASSING or not record.wants_to_run or record.state == DELETING:
            self._try_again(record, error.message, _LONGEST_WAIT_OF_HOST_S)
        elif record.serving_version_id is None or not self._serves(record):
            self._fail(record, error)
        elif record.serving_version_id != record.version_id:
            self._go_back(record, f"version {record.version} was refused: {error.message}")
        elif record.canary_version_id is not None and record.observed_generation != record.generation:
            self._go_back(record, f"version {record.canary_version} was refused: {error.message}")
        else:  # it goes on as it was: more memory than there is, say
            self._try_again(record, error.message, _LONGEST_WAIT_S)

    def _fail(self, record: DeploymentRecord, error: ServingError) -> None:
        changes = {"state": FAILED, "reason": error.message, "failures": record.failures + 1}
        self._storage.deployments.settle(record, changes | {"retry_at": self._retry_at(record, _LONGEST_WAIT_S)}, self._now())
        _log.warning("deployment_failed", extra={"deployment": record.rpc_name, "code": error.code.value, "reason": error.message})

    def _try_again(self, record: DeploymentRecord, reason: str, longest_s: float) -> None:
        changes = {"reason": reason, "failures": record.failures + 1, "retry_at": self._retry_at(record, longest_s)}
        self._storage.deployments.settle(record, changes, self._now())
        _log.warning("deployment_delayed", extra={"deployment": record.rpc_name, "reason": reason})

    def _retry_at(self, record: DeploymentRecord, longest_s: float) -> float:
        return self._now().timestamp() + min(longest_s, 2.0 ** min(record.failures, 20))

    def _go_back(self, record: DeploymentRecord, reason: str) -> None:
        """What served goes on serving, and is what is wanted again; why stands beside it."""
        changes = {
            "version_id": record.serving_version_id,
            "canary_version_id": None,
            "canary_percent": 0,
            "notice": reason,
            "reason": "",
            "retry_at": 0.0,
            "failures": 0,
            "generation": record.generation + 1,
        }
        state = {} if record.state == RUNNING else {"state": STARTING}
        self._storage.deployments.settle(record, changes | state, self._now())
        _log.warning("version_refused", extra={"deployment": record.rpc_name, "reason": reason})

    def _serves(self, record: DeploymentRecord) -> bool:
        """Whether the version that served before still does, on some host."""
        found = [self._seen_on(address) for address in self._models.hosts]
        seen = [said.get(record.rpc_name, NOTHING) for said in found if not isinstance(said, ServingError)]
        return any(record.serving_version in each.ready for each in seen)


def _is_due(record: DeploymentRecord) -> bool:
    """Whether the database alone says that something is to be done."""
    if record.state == DELETING or record.generation != record.observed_generation:
        return True
    return record.state not in ((RUNNING,) if record.wants_to_run else (PAUSED, SLEEPING))


def _differs(record: DeploymentRecord, hosts: list[dict[str, Seen]]) -> bool:
    """Whether some host has another idea of it."""
    for host in hosts:
        seen, script = host.get(record.rpc_name, NOTHING), host.get(deployments.script_name(record), NOTHING)
        if not record.wants_to_run:
            if seen.ready or seen.broken or script.ready:
                return True
            continue
        wanted = {number for number in (record.version, record.canary_version) if number}
        # a process that died is started again by its host; one that is given up has a reason
        is_recovering = set(seen.ready) | set(seen.broken) == wanted and not any(seen.broken.values()) and bool(seen.broken)
        if not is_recovering and (set(seen.ready) != wanted or set(seen.ready.values()) != {record.instances}):
            return True
        if set(script.ready) | set(script.broken) != ({record.script_version_id} if record.script_version_id is not None else set()):
            return True
    return False


def _broken(record: DeploymentRecord, hosts: list[dict[str, Seen]]) -> str:
    """Why its version serves no more on any host; "" where it does on one: the others are made to agree."""
    seen = [host.get(record.rpc_name, NOTHING) for host in hosts]
    if record.state != RUNNING or any(record.version in each.ready for each in seen):
        return ""
    return next(filter(None, (each.broken.get(record.version, "") for each in seen)), "")
