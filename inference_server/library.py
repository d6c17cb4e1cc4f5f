"""Loading and unloading: what of the repository serves, and how that changes.

Loads of one model run one after the other; loads of different models side by side. What serves is replaced in one step, when the new
versions are ready; a load that fails changes nothing.
"""

import logging
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from idl.codes import Code, ServingError
from idl.messages import ModelIndex
from inference_server import errors, load_order
from inference_server.index import Index, short
from inference_server.load_order import MODEL_NAME, LoadOrder
from inference_server.load_states import LoadStates
from inference_server.metrics import Metrics
from inference_server.pipelines import Pipelines
from inference_server.repository import Repository
from inference_server.repository_model import SENT, RepositoryModel
from inference_server.repository_poll import Change, RepositoryPoll
from inference_server.reservations import Reservation
from inference_server.served import ServedVersion, resize_all
from inference_server.served_labels import ServedLabels
from inference_server.served_models import ServedModel, ServedModels, served_model
from inference_server.spool import Spool
from inference_server.types import Signature

log = logging.getLogger("outboard.server")

_MAY_PASS = frozenset({Code.NOT_READY, Code.UNAVAILABLE, Code.INSUFFICIENT_CAPACITY})
"""Why a load failed that may go well the next time with the same files."""


class Starter(Protocol):
    """What loads versions. `start` returns one that is ready, or raises ServingError; `replaces`: reservations whose place it takes."""

    def start(
        self, model: RepositoryModel, number: int, instances: int, replaces: Collection[Reservation], steps: Sequence[Signature]
    ) -> ServedVersion: ...

    def holding(self, name: str) -> Collection[Reservation]: ...


class Library:
    """Thread-safe. `poll`: None where changes on disk wait for somebody to ask."""

    def __init__(
        self, repository: Repository, starter: Starter, served: ServedModels, metrics: Metrics, spool: Spool, poll: RepositoryPoll | None
    ) -> None:
        self.repository = repository
        self._starter = starter
        self.pipelines = Pipelines(self.route, repository.peek)
        self._served = served
        self._metrics = metrics
        self._spool = spool
        self._poll = poll
        self._lock = threading.Lock()
        self._loading_locks: dict[str, threading.Lock] = {}
        self._states = LoadStates()
        self._index = Index(repository, served, self._states, self.pipelines, poll)
        self._instances: dict[str, int] = {}
        """Model -> instances, where an operator has changed what its settings say."""
        self._labels = ServedLabels(repository, served, self._index)
        self._wanted: frozenset[str] = frozenset()
        """Models that this server should serve: those of the repository at its start, and what was loaded since, less what was unloaded."""

    @property
    def complete(self) -> bool:
        """Everything that should be loaded is. A user's model is no matter of the whole server."""
        return all(name in self._served.table or self.repository.is_user(name) for name in self._wanted)

    # loading ---------------------------------------------------------------------------------------------------------------------

    def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Loads or reloads: what the repository holds now, or what the request brings (see `load_order`).

        A `version` serves by default from now on, also after a restart, until the next load; what is loaded and unchanged is not loaded
        again for it. Raises invalid_input and too_large (parameters), model_not_found, version_not_found, invalid_model, not_ready (the
        server is closing), insufficient_capacity.
        """
        order = load_order.read(name, parameters, self._spool.most_bytes)
        if not MODEL_NAME.fullmatch(name):
            raise errors.model_not_found(short(name))
        with self._loading_lock(name):
            self.repository.check_one_owner(name)
            spooled = self._spool.put(name, order.files) if order.files else None
            try:
                model = self._ordered(name, order, spooled)
                kept = self._unchanged(model, model.wanted()) if order == LoadOrder(order.version) and order.version else {}
                self._load(model, model.wanted(), kept)
            finally:
                if spooled is not None:
                    spooled.release()
            kept_over = spooled is not None or (self.repository.pin(model, order.version) and self.repository.mark(name, loaded=True))
            if not kept_over:
                log.warning("the version that serves cannot be remembered over a restart", extra={"fields": {"model": name}})
        self._wake(name)

    def _ordered(self, name: str, order: LoadOrder, spooled: Any) -> RepositoryModel:
        model = self.repository.ordered(name, order, spooled)
        if model is None:
            raise errors.model_not_found(short(name))
        if order.version and order.version not in model.versions:
            raise errors.version_not_found(name, str(order.version))
        if model.problem.startswith(SENT):
            raise errors.invalid_input(f"model {name!r}: {model.problem}")
        return self._labels.labelled(model)

    def load_all(self, unchanged_since_ns: int) -> None:
        """Loads every model of the repository; one that fails is logged and named by the index, and the others serve.

        Of the users' models what was loaded on order. With polling, what has changed since `unchanged_since_ns` (of the clock of file times) may still be on its way: it waits for `poll`.
        """
        if self._poll is not None:
            changes = self._look(lambda poll: poll.first(unchanged_since_ns))
            self._want(*(change.name for change in changes), *self._poll.waiting)
            self._follow_all(changes)
        else:
            names = self.repository.operators()
            self._want(*names)
            for wave in self.pipelines.waves(names):
                self._each(self._first_load, wave)
        self._each(self._first_load, self.repository.on_order())

    def _want(self, *names: str) -> None:
        with self._lock:
            self._wanted |= frozenset(names)

    def _unwant(self, *names: str) -> None:
        with self._lock:
            self._wanted -= frozenset(names)

    def _first_load(self, name: str) -> None:
        with self._loading_lock(name):
            model = self.repository.read(name)
            if model is not None:
                self._load_best(model)
        self._wake(name)

    def _wake(self, name: str) -> None:
        """Loads the pipelines that waited for a model that serves now."""
        for waiting in self.pipelines.woken(name) if name in self._served.table else ():
            if waiting in self._wanted and waiting not in self._served.table:
                self._first_load(waiting)

    def _each(self, work: Callable[[Any], None], items: Collection[Any]) -> None:
        if items:
            with ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="load") as pool:
                list(pool.map(work, items))

    def poll(self) -> None:
        """One look at the repository, and what follows from it; to be called by one thread, every few seconds."""
        assert self._poll is not None
        changes = self._look(RepositoryPoll.step)
        self._unwant(*self._poll.dropped)
        self._follow_all(changes)

    def _follow_all(self, changes: Collection[Change]) -> None:
        by_name = {change.name: change for change in changes}
        for wave in self.pipelines.waves(list(by_name)):
            self._each(self._follow, [by_name[name] for name in wave])

    def _look(self, look: Callable[[RepositoryPoll], list[Change]]) -> list[Change]:
        assert self._poll is not None
        try:
            return look(self._poll)
        except OSError as error:
            log.warning("the repository cannot be looked at", extra={"fields": {"reason": error.strerror or str(error)}})
            return []

    def _follow(self, change: Change) -> None:
        name = change.name
        with self._loading_lock(name):
            model = self.repository.read(name) if change.versions else None
            if model is not None:
                if not self._load_best(model.only(change.versions)) and self._poll is not None:
                    self._poll.again(name)
            else:
                self._unwant(name)
                log.info("gone from the repository", extra={"fields": {"model": name}})
                for served in self._served.change(name, lambda old: None):
                    self._served.retire_beside(served)
        self._wake(name)

    def _load_best(self, model: RepositoryModel) -> bool:
        """What a start and a poll load: of what is wanted, what can be loaded, and in the place of the rest the newest that can.

        False where something failed that may go well the next time.
        """
        model = self._labels.labelled(model)
        if model.problem or not model.wanted():
            self._failed(model, (), _unusable(model))
            return True
        kept, fresh, may_pass = self._unchanged(model, model.versions), {}, False
        replaced = self._replaced(model.name, [version for version in model.wanted() if version in kept])
        tried: set[int] = set()
        for wanted in reversed(model.wanted()):
            for version in (wanted, *model.instead(wanted)):
                if version in tried:
                    continue
                tried.add(version)
                if version in kept:
                    fresh[version] = kept[version]
                    break
                try:
                    fresh |= self._start_all(model, (version,), replaced)
                    break
                except ServingError as error:
                    may_pass = may_pass or error.code in _MAY_PASS
                    self._failed(model, (version,), error)
        if fresh:
            self._serve(model, fresh)
        return not may_pass

    def _unchanged(self, model: RepositoryModel, versions: Collection[int]) -> dict[int, ServedVersion]:
        """Of `versions` those that serve already, made of the same files and settings."""
        old = self._served.table.get(model.name)
        if old is None:
            return {}
        return {
            version: served
            for version, served in old.versions.items()
            if version in versions and not served.failure and served.fingerprint == model.fingerprint(version)
        }

    def _load(self, model: RepositoryModel, wanted: tuple[int, ...], kept: Mapping[int, ServedVersion]) -> None:
        """All of `wanted`, or nothing changes."""
        missing = tuple(version for version in wanted if version not in kept)
        try:
            if model.problem or not wanted:
                raise _unusable(model)
            fresh = self._start_all(model, missing, self._replaced(model.name, kept))
        except ServingError as error:
            self._failed(model, missing, error)
            raise
        self._serve(model, {**kept, **fresh})

    def _failed(self, model: RepositoryModel, versions: tuple[int, ...], error: ServingError) -> None:
        reason = error.message.removeprefix(f"model {model.name!r}: ")
        self._states.failed(model.name, versions, reason)
        self._metrics.loaded(model.name, "failed")
        fields = {"model": model.name, "versions": versions, "code": error.code.value, "reason": error.message}
        log.warning("load failed", extra={"fields": fields})

    def _replaced(self, name: str, staying: Collection[int]) -> list[Reservation]:
        """What a load takes the place of; to be asked before it starts the first of its versions."""
        return [held for held in self._starter.holding(name) if int(held.version) not in staying]

    def _start_all(self, model: RepositoryModel, versions: tuple[int, ...], replaces: Collection[Reservation]) -> dict[int, ServedVersion]:
        fresh: dict[int, ServedVersion] = {}
        instances = self._instances.get(model.name, model.settings.instances)
        with self._states.loading(model.name, versions):
            try:
                for version in versions:
                    fresh[version] = self._starter.start(model, version, instances, replaces, self.pipelines.signatures(model))
                return fresh
            except BaseException:
                for served in fresh.values():
                    served.close(0.0)
                raise

    def _serve(self, model: RepositoryModel, versions: Mapping[int, ServedVersion]) -> None:
        """Puts `versions` in the place of what serves."""
        name = model.name

        def change(old: ServedModel | None) -> ServedModel:
            current = self._labels.labelled(model)  # they may have been set while the versions were loading
            named = set(current.labels.versions.values())
            staying = {version: served for version, served in (old.versions if old else {}).items() if version in named}
            return served_model(current, {**staying, **versions})

        self._want(name)
        self._states.loaded(name, versions)
        was = self._served.table.get(name)
        for old in self._served.change(name, change):
            self._served.retire_beside(old)
        now = self._served.table.get(name)
        if was is not None and set(versions.values()) <= set(was.versions.values()):  # nothing was loaded
            if now is not None and now.default != was.default:
                log.info("default version", extra={"fields": {"model": name, "default": now.default}})
            return
        self._metrics.loaded(name, "ok")
        unused = sorted({*model.unused, *(key for served in versions.values() for key in model.settings.unmet(served.providers))})
        log.info("loaded", extra={"fields": {"model": name, "versions": tuple(sorted(versions)), "unused_settings": unused}})

    def unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Returns when the requests inside have finished (or the drain time-out passed) and its processes are gone.

        Raises invalid_input (a parameter), model_not_found. Nothing here depends on another model, so `unload_dependents` adds nothing.
        """
        for key in parameters:
            if key != "unload_dependents":
                raise errors.invalid_input(f"unload parameter {short(key)!r} is not known")
        with self._loading_lock(name):
            known = name in self._served.table or self.repository.peek(name) is not None
            self._stop(name)
        if not known:
            raise errors.model_not_found(short(name))

    def _stop(self, name: str) -> None:
        """As `unload`, with the lock of its loads."""
        self._unwant(name)
        self.pipelines.forget(name)
        self._states.forget(name)
        self._instances.pop(name, None)
        self._labels.forget(name)
        if not self.repository.mark(name, loaded=False):
            log.warning("a restart will serve what was unloaded", extra={"fields": {"model": name}})
        for served in self._served.change(name, lambda old: None):
            self._served.retire(served)

    def remove(self, name: str, version: int) -> bool:
        """Unloads a user's model, or one version of it (0: all), and removes its files. False where it was not there.

        Raises unsupported (no users' repository), invalid_input (a version), forbidden (an operator's model), internal.
        """
        if (users := self.repository.users) is None:
            raise errors.unsupported("this host has no repository of users' models (OUTBOARD_SERVER_USER_MODELS)")
        if not 0 <= version < 10**18:
            raise errors.invalid_input(f"version {version} is not a whole number from 1, or 0 for the whole model")
        if self.repository.is_operators(name):
            raise ServingError(Code.FORBIDDEN, f"model {short(name)!r} is an operator's: its files are removed on the host")
        if not users.has(name):
            return False
        with self._loading_lock(name):
            self._stop_version(name, version) if version else self._stop(name)
            removed = users.remove(name, version)
            self._metrics.forget(name, str(version or ""))
            self.repository.forget(name)
        log.info("removed", extra={"fields": {"model": name, "version": version or "all", "was_there": removed}})
        return removed

    def _stop_version(self, name: str, version: int) -> None:
        serving = self._served.table.get(name)
        if (model := self.repository.peek(name)) is not None and model.pinned == version:
            self.repository.pin(model, 0)
        if serving is None or version not in serving.versions:
            return
        if len(serving.versions) == 1:
            self._stop(name)
            return

        def change(old: ServedModel | None) -> ServedModel | None:
            rest = {number: served for number, served in old.versions.items() if number != version} if old else {}
            return served_model(old.model.only(set(old.model.versions) - {version}), rest) if old and rest else None

        for served in self._served.change(name, change):
            self._served.retire(served)

    def _loading_lock(self, name: str) -> threading.Lock:
        with self._lock:
            return self._loading_locks.setdefault(name, threading.Lock())

    # what is changed while it serves ---------------------------------------------------------------------------------------------

    def set_instances(self, name: str, version: str, count: int) -> None:
        """Of one version, or of every one that serves; returns when they take requests. Kept over reloads, until an unload."""
        if not 1 <= count <= 1024:
            raise errors.invalid_input(f"{count} instances are not a whole number from 1 to 1024")
        with self._loading_lock(name):
            chosen = [self.route(name, version)] if version else None
            if chosen is None:
                self.route(name, "")
                chosen = list(self._served.table[name].versions.values())
            resize_all(chosen, count)
            if not version:
                self._instances[name] = count
            log.info("instances", extra={"fields": {"model": name, "version": version, "count": count}})

    def set_labels(self, name: str, versions: Mapping[str, int], canary_percent: int) -> None:
        """As `ServedLabels.set`."""
        self._labels.set(name, versions, canary_percent)

    # what there is ---------------------------------------------------------------------------------------------------------------

    def route(self, name: str, version: str) -> ServedVersion:
        """What serves a request. Raises model_not_found, version_not_found, not_ready."""
        model = self._served.table.get(name)
        if model is None:
            raise self._index.why_not(name)
        served = model.choose(version)
        if served is None:
            raise self._index.why_not(name, version)
        return served

    def index(self) -> list[ModelIndex]:
        """Every version that lies in the repository or serves."""
        return self._index.entries()


def _unusable(model: RepositoryModel) -> ServingError:
    return errors.invalid_model(model.name, model.why_none())
