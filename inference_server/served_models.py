"""What serves: an immutable table, replaced whole. A request reads one pointer; what is no longer in the table drains beside it."""

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from idl.lane_routes import split
from inference_server.metrics import Metrics
from inference_server.repository_model import RepositoryModel
from inference_server.routing import RoutePublisher
from inference_server.served import ServedVersion
from inference_server.version_labels import Labels

log = logging.getLogger("outboard.server")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What serves of one model. `default`: (version, weight) of the requests that name none; `labels`: of versions that are here."""

    model: RepositoryModel
    versions: Mapping[int, ServedVersion]
    default: tuple[tuple[int, int], ...]
    labels: Labels

    def choose(self, version: str) -> ServedVersion | None:
        """Of a number, a label, or "" for the default."""
        if not version:
            if len(self.default) == 1:
                return self.versions.get(self.default[0][0])
            version = split([(str(number), weight) for number, weight in self.default])
        if version in self.labels.versions:
            return self.versions.get(self.labels.versions[version])
        return self.versions.get(int(version)) if version.isascii() and version.isdigit() and len(version) < 19 else None


def served_model(model: RepositoryModel, versions: Mapping[int, ServedVersion]) -> ServedModel:
    """`versions` as `model` says that they are reached."""
    return ServedModel(model, versions, model.default(versions), model.labels.only(versions))


class ServedModels:
    """Owns every loaded version from the moment that it serves until its processes are gone. Thread-safe. Times in seconds."""

    def __init__(self, metrics: Metrics, routes: RoutePublisher, drain_timeout_s: float) -> None:
        self._metrics = metrics
        self._routes = routes
        self._drain_timeout_s = drain_timeout_s
        self._lock = threading.RLock()
        self._publishing = threading.Lock()
        self._leaving: set[ServedVersion] = set()
        self.table: Mapping[str, ServedModel] = {}

    def versions(self) -> list[ServedVersion]:
        return [version for model in self.table.values() for version in model.versions.values()]

    def leaving(self) -> Collection[ServedVersion]:
        """Those that drain."""
        return tuple(self._leaving)

    def in_flight(self) -> int:
        """Requests inside the server, those in versions on their way out included."""
        return sum(version.in_flight for version in (*self.versions(), *self.leaving()))

    def change(self, name: str, change: Callable[[ServedModel | None], ServedModel | None]) -> list[ServedVersion]:
        """Puts what `change` makes of a model's entry in its place. Returns the versions that are no longer reached, to be retired.

        One change at a time, so nothing in `change` may wait.
        """
        with self._lock:
            old = self.table.get(name)
            new = change(old)
            table = {key: value for key, value in self.table.items() if key != name}
            if new is not None:
                table[name] = new
            self.table = table
            kept = set(new.versions.values()) if new else set()
            leaving = [version for version in (old.versions.values() if old else ()) if version not in kept]
            fresh = [version for version in kept if old is None or version not in old.versions.values()]
            self._leaving.update(leaving)
        for version in fresh:
            version.on_death = lambda: self._metrics.died(name)
            version.on_change = lambda: self._publish(name)
            version.watch()
        self._publish(name)
        return leaving

    def _publish(self, name: str) -> None:
        """Tells callers on this host where a model is served now."""
        with self._publishing:
            model = self.table.get(name)
            if model is None:
                self._routes.withdraw(name)
                return
            lanes = {number: served.lanes() for number, served in model.versions.items()}
            self._routes.publish(name, lanes, model.labels.versions, model.default)

    def retire(self, served: ServedVersion) -> None:
        """Returns when the requests inside have finished (or the drain time-out passed) and its processes are gone."""
        drained = False
        try:
            drained = served.close(self._drain_timeout_s)
        finally:
            with self._lock:
                self._leaving.discard(served)
        log.info("unloaded", extra={"fields": {"model": served.name, "version": served.version, "drained": drained}})

    def retire_beside(self, served: ServedVersion) -> None:
        """The same in a thread of its own."""
        threading.Thread(target=self.retire, args=(served,), name=f"retire-{served.name}", daemon=True).start()

    def close(self) -> None:
        """Ends every executor; the requests inside fail. Idempotent."""
        with self._lock:
            versions = [*self.versions(), *self._leaving]
            self.table = {}
        self._routes.close()
        for served in versions:
            served.close(0.0)
