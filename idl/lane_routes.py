"""Where the models of this host are served: what a supervisor publishes in its run folder, and the caller that follows it.

    <folder>/routes/generation    two int64: a number that changes with every change (-1: this supervisor has ended), and 1 while requests
                                  are taken
    <folder>/routes/<model>.json  {"default": [[version, weight], ...], "labels": {label: version}, "versions": {version: [socket, ...]},
                                  "limit": bytes}
    <folder>/<socket>             the local lane of one instance

Files are written beside and renamed. Who may open the folder may call the models: no token is asked for.
"""

import json
import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idl import affinity, last_words
from idl.codes import Code, ServingError
from idl.lane import LaneError
from idl.lane_calls import Answered, ExecutorGone, LaneAnswer, LaneConnection, Moved
from idl.lane_pool import LanePool, Result
from idl.lane_streams import LaneStream
from idl.messages import InferRequest, InferResponse
from idl.shared_cells import map_cells

FOLDER, GENERATION = "routes", "generation"
ENDED = -1
_TRIES = 4
_MOST_MODELS = 4096
_RETRY_MS = 500


@dataclass(frozen=True, slots=True)
class Route:
    """One version that serves. `sockets`: paths, one for each instance; `limit`: most bytes of tensors in a request."""

    model: str
    version: str
    sockets: tuple[str, ...]
    limit: int


@dataclass(frozen=True, slots=True)
class ModelRoutes:
    """One model. `default`: (version, weight) of requests that name none."""

    versions: Mapping[str, Route]
    labels: Mapping[str, str]
    default: tuple[tuple[str, int], ...]

    def choose(self, version: str, chance: Callable[[], float] = random.random) -> Route | None:
        """The route of a version, a label, or "" for the default."""
        if not version:
            version = split(self.default, chance)
        return self.versions.get(self.labels.get(version, version))


def split(weights: Sequence[tuple[str, int]], chance: Callable[[], float] = random.random) -> str:
    """One of several versions by their weights; "" where there is none."""
    if len(weights) == 1:
        return weights[0][0]
    point = chance() * sum(weight for _, weight in weights)
    for version, weight in weights:
        point -= weight
        if point < 0:
            return version
    return weights[-1][0] if weights else ""


class Routes:
    """Reads what a supervisor publishes in `folder`. Thread-safe; asking costs a look at shared memory unless something changed."""

    def __init__(self, folder: str, limit_cache: int = _MOST_MODELS, *, while_draining: bool = False) -> None:
        """`while_draining`: also while no new requests are taken, for those that are parts of one that was."""
        self._folder = Path(folder)
        self._while_draining = while_draining
        self._most = limit_cache
        self._lock = threading.Lock()
        self._cells: memoryview | None = None
        self._models: dict[str, tuple[int, ModelRoutes | None]] = {}

    def find(self, model: str, version: str) -> Route | None:
        """None where the lane has no answer: the supervisor is away or draining, or it does not serve that. RPC says why."""
        cells = self._cells
        if cells is None or cells[0] == ENDED:
            cells = self._attach()
        if cells is None or not (cells[1] or self._while_draining):
            return None
        generation = cells[0]
        known = self._models.get(model)
        if known is None or known[0] != generation:
            known = (generation, self._read(model))
            with self._lock:
                if len(self._models) >= self._most:
                    self._models.clear()
                self._models[model] = known
        routes = known[1]
        return routes.choose(version) if routes is not None else None

    def _attach(self) -> memoryview | None:
        try:
            descriptor = os.open(self._folder / FOLDER / GENERATION, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if os.fstat(descriptor).st_size != 16:
                return None
            cells = map_cells(descriptor, 2, writable=False)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        if cells[0] == ENDED:
            return None
        with self._lock:
            self._models.clear()
            self._cells = cells
        return cells

    def _read(self, model: str) -> ModelRoutes | None:
        if "/" in model or "\0" in model or not model or len(model) > 200:
            return None
        try:
            return self._parse(model, json.loads((self._folder / FOLDER / f"{model}.json").read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _parse(self, model: str, said: Any) -> ModelRoutes:
        versions = {
            version: Route(model, version, tuple(str(self._folder / name) for name in sockets), said["limit"])
            for version, sockets in said["versions"].items()
        }
        default = tuple((str(version), int(weight)) for version, weight in said["default"])
        return ModelRoutes(versions, {str(label): str(version) for label, version in said["labels"].items()}, default)


class LocalLane:
    """Asks the models of this host directly, by the routes in `folder`. Thread-safe; a forked child starts with no connections."""

    def __init__(self, folder: str, memory_limit: int, *, while_draining: bool = False) -> None:
        """`memory_limit`: most bytes of tensors in an answer. `while_draining`: see Routes."""
        self._routes = Routes(folder, while_draining=while_draining)
        self._memory_limit = memory_limit
        self._lock = threading.Lock()
        self._pools: dict[str, LanePool] = {}
        self._sockets: dict[tuple[str, str], tuple[str, ...]] = {}
        self._closed = False

    def route(self, model: str, version: str) -> Route | None:
        """Where a version, a label, or "" for the default is served; no sockets: its processes are starting again."""
        return self._routes.find(model, version)

    def infer(self, request: InferRequest, watch: int = -1) -> InferResponse | None:
        """The answer; None where it was certainly not run and RPC is to be asked. Raises ServingError.

        `watch`: a descriptor whose hang-up ends the call with cancelled; what still waits is then not run.
        """
        found = self.answer(request, watch)
        return response(request, *found) if found is not None else None

    def answer(self, request: InferRequest, watch: int = -1) -> tuple[str, LaneAnswer] | None:
        """(version, what its executor gave), otherwise as `infer`."""
        size = sum([len(tensor.data) for tensor in request.inputs])
        return self.lend(
            request.model_name,
            request.model_version,
            size,
            lambda connection: connection.call(request, watch),
            affinity.of(request.parameters),
        )

    def lend(
        self, model: str, version: str, size: int, use: Callable[[LaneConnection], Result], sequence: str = ""
    ) -> tuple[str, Result] | None:
        """(version, what `use` makes of a connection to one of its instances), or None as `infer`. `size`: bytes of the request's tensors;
        `sequence`: see `idl.affinity`.
        """
        for _ in range(_TRIES):
            route = self._routes.find(model, version)
            if route is None or not route.sockets or size > route.limit:
                return None
            try:
                return route.version, self._pool(route, sequence).lend(model, use)
            except Moved:
                continue
            except ExecutorGone as gone:
                if gone.ran:
                    raise Answered(Code.MODEL_FAILED, last_words.message(model, last_words.wait(gone.path))) from gone
                continue
            except ServingError as error:
                if isinstance(error, Answered):
                    raise
                return None  # it was not even sent: the server refuses it in its own words, and counts it
            except LaneError as error:
                raise ServingError(Code.INTERNAL, f"the lane to model {model!r} broke: {error}") from error
        return None

    def stream(self, request: InferRequest, watch: int = -1) -> "RoutedStream | None":
        """Several answers; None where RPC is to be asked. Nothing has been sent yet where this raises."""
        route = self._routes.find(request.model_name, request.model_version)
        size = sum([len(tensor.data) for tensor in request.inputs])
        if route is None or not route.sockets or size > route.limit:
            return None
        return RoutedStream(self, request, watch)

    def open_stream(self, request: InferRequest, watch: int) -> tuple[str, LaneStream]:
        """(version, the stream). Raises ExecutorGone where no instance is there now, and as LaneStream does."""
        route = self._routes.find(request.model_name, request.model_version)
        if route is None or not route.sockets:
            raise ExecutorGone(ran=False)
        return route.version, LaneStream(self._pool(route, affinity.of(request.parameters)), request, watch)

    def _pool(self, route: Route, sequence: str) -> LanePool:
        key = (route.model, route.version)
        if self._sockets.get(key) != route.sockets:
            self._follow(key, route.sockets)
        pools = self._pools
        if len(route.sockets) == 1:
            pool = pools.get(route.sockets[0])
        elif sequence:
            pool = pools.get(affinity.choose([(path, path) for path in route.sockets], sequence))
        else:
            pool = min((pool for path in route.sockets if (pool := pools.get(path))), key=_outstanding, default=None)
        if pool is None:
            raise ExecutorGone(ran=False)
        return pool

    def _follow(self, key: tuple[str, str], sockets: tuple[str, ...]) -> None:
        with self._lock:
            if self._closed:
                return
            self._prune()
            for path in sockets:
                self._pools.setdefault(path, LanePool(path, self._memory_limit))
            self._sockets[key] = sockets

    def _prune(self) -> None:
        """Forgets instances that are no more: their sockets are gone."""
        for path in [path for path in self._pools if not Path(path).exists()]:
            self._pools.pop(path).close()
        for key in [key for key, sockets in self._sockets.items() if not any(path in self._pools for path in sockets)]:
            del self._sockets[key]

    def trim(self, idle_since: float) -> None:
        """Closes what was last used before `idle_since` (monotonic seconds); to be called every few seconds."""
        with self._lock:
            self._prune()
        for pool in list(self._pools.values()):
            pool.trim(idle_since)

    def close(self) -> None:
        """Idempotent. Calls under way finish."""
        with self._lock:
            self._closed = True
            pools, self._pools, self._sockets = list(self._pools.values()), {}, {}
        for pool in pools:
            pool.close()


class RoutedStream:
    """The answers to one request, from an instance that the routes name. Not thread-safe; to be closed."""

    def __init__(self, lane: LocalLane, request: InferRequest, watch: int) -> None:
        self._lane, self._request, self._watch = lane, request, watch
        self._stream: LaneStream | None = None
        self._version = ""
        self._tries = 0
        self.steps: tuple[str, ...] = ()
        """Of the last answer: see `idl.steps`."""

    def next(self, until: float | None = None) -> InferResponse | None:
        """The next answer, None after the last. Raises ServingError; TimeoutError where none has come by `until` (monotonic seconds)."""
        model = self._request.model_name
        while self._tries < _TRIES:
            try:
                if self._stream is None:
                    self._version, self._stream = self._lane.open_stream(self._request, self._watch)
                answer = self._stream.next(until)
            except Moved:
                pass
            except ExecutorGone as gone:
                if gone.ran or (self._stream is not None and self._stream.begun):
                    raise Answered(Code.MODEL_FAILED, last_words.message(model, last_words.wait(gone.path))) from gone
            except LaneError as error:
                raise ServingError(Code.INTERNAL, f"the lane to model {model!r} broke: {error}") from error
            else:
                if answer is None:
                    return None
                self.steps = answer.steps
                return response(self._request, self._version, answer)
            self._stream = None
            self._tries += 1
        raise ServingError(Code.NOT_READY, f"model {model!r}: its process is starting again", retry_after_ms=_RETRY_MS)

    def close(self) -> None:
        """Idempotent."""
        if self._stream is not None:
            self._stream.close()


def _outstanding(pool: LanePool) -> int:
    return pool.outstanding


def response(request: InferRequest, version: str, answer: LaneAnswer) -> InferResponse:
    """The contract's answer, made of an executor's."""
    parameters = timed(answer.parameters, answer.queue_ns, answer.compute_ns)
    return InferResponse(request.model_name, version, request.id, answer.outputs, parameters)


def timed(parameters: Mapping[str, Any], queue_ns: int, compute_ns: int) -> dict[str, Any]:
    """A backend's parameters, and where the time went."""
    return {**parameters, "queue_us": queue_ns // 1000, "compute_us": compute_ns // 1000}
