"""The way to the model hosts: owns the RPC client and remembers for a moment what models look like.

A prediction needs the model's declaration and metadata besides the inference itself; asking for them anew with each request would
triple the calls. They are kept for CACHE_S seconds, so a reload that changes them shows here after at most that long.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, Protocol, TypeVar

from gateway import model_declaration
from gateway.model_declaration import Declaration
from idl.codes import Code, ServingError
from idl.messages import (
    Capacity,
    InferRequest,
    InferResponse,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ScriptReport,
    ServerMetadata,
    SharedRegion,
    Validation,
)

if TYPE_CHECKING:
    from inference_client import Client

CACHE_S = 2.0
_MAX_CACHED = 4096
_ANOTHER_MAY = frozenset({Code.UNAVAILABLE, Code.NOT_READY, Code.OVERLOADED, Code.INSUFFICIENT_CAPACITY, Code.UNSUPPORTED})
"""What one host says and another need not: it is away, or busy, or has not what a format needs."""

Value = TypeVar("Value")
Connect = Callable[[Sequence[str]], "Client"]


class Answers(Protocol):
    """Several answers to one request; not thread-safe."""

    def next(self, until: float | None = None) -> InferResponse | None:
        """The next one, None after the last. Raises ServingError; TimeoutError where none has come by `until` (monotonic seconds)."""
        ...

    def close(self) -> None:
        """What is left is not computed. Idempotent."""
        ...


class Models:
    """The verbs that operations need of the model hosts. Thread-safe; opens nothing before the first call, `close` is idempotent.

    `connect` makes a client for a list of addresses. It is called at the first use and not in the constructor, so that a process that
    forks afterwards shares no connection with its children. Every method raises `ServingError` and nothing else; times are seconds.
    """

    def __init__(self, addresses: Sequence[str], connect: Connect, clock: Callable[[], float] = time.monotonic) -> None:
        self._addresses = tuple(addresses)
        self._connect = connect
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, ...], Client] = {}
        self._closed = False
        self._turn = 0
        self._metadata: _Fresh[ModelMetadata] = _Fresh(clock)
        self._configs: _Fresh[Mapping[str, Any]] = _Fresh(clock)
        self._declarations: _Fresh[Declaration] = _Fresh(clock)

    def infer(self, request: InferRequest, connection: int = -1) -> InferResponse:
        """Blocks until the answer, a refusal, the request's deadline, or the hang-up of the descriptor `connection` (cancelled)."""
        return self._client().infer_raw(request, watch=connection)

    def stream(self, request: InferRequest, connection: int = -1) -> Answers:
        """Several answers; returns when the first is there. The rest as `infer`."""
        return self._client().stream_raw(request, watch=connection)

    def metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Names, types and shapes; up to CACHE_S old."""
        return self._metadata.get((name, version), lambda: self._client().model_metadata(name, version))

    def recall_metadata(self, name: str, version: str = "") -> ModelMetadata | None:
        """What is remembered of it; asks nobody."""
        known = self._metadata.recall((name, version))
        return known[0] if known is not None else None

    def config(self, name: str, version: str = "") -> Mapping[str, Any]:
        """The model configuration in protobuf's JSON mapping; up to CACHE_S old."""
        return self._configs.get((name, version), lambda: self._client().model_config(name, version))

    def declaration(self, name: str, version: str = "") -> Declaration:
        """What the owner declares; up to CACHE_S old."""
        return self._declarations.get((name, version), lambda: model_declaration.read(name, self.config(name, version)))

    def recall_declaration(self, name: str, version: str = "") -> tuple[Declaration, bool] | None:
        """What is remembered of it, and whether it will be for a while yet; asks nobody."""
        return self._declarations.recall((name, version))

    def renew_declaration(self, name: str, version: str = "") -> None:
        """Asks again, however much is remembered."""
        config = self._configs.renew((name, version), lambda: self._client().model_config(name, version))
        self._declarations.renew((name, version), lambda: model_declaration.read(name, config))

    def server_live(self) -> bool:
        return bool(self._client().server_live())

    def server_ready(self) -> bool:
        return bool(self._client().server_ready())

    def model_ready(self, name: str, version: str = "") -> bool:
        return bool(self._client().model_ready(name, version))

    def server_metadata(self) -> ServerMetadata:
        return self._client().server_metadata()

    def statistics(self, name: str = "", version: str = "") -> Sequence[ModelStatistics]:
        """Of one model, or of every one where `name` is empty."""
        return self._client().model_statistics(name, version)

    def index(self, *, ready: bool = False) -> Sequence[ModelIndex]:
        return self._client().repository_index(ready=ready)

    def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Returns when the model serves on every host. One host's failure does not spare the others, and is raised at the end."""
        self._on_every_host(name, lambda client: client.load_model(name, parameters))

    def unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        """The same for taking it out."""
        self._on_every_host(name, lambda client: client.unload_model(name, parameters))

    def validate(self, files: "Sequence[tuple[str, BinaryIO]]", timeout_s: float) -> Validation:
        """One host tries a model that lies in no repository and says what it is, or refuses it: see `inference_client.Client.validate`."""
        begin = [file.tell() for _, file in files]
        until = time.monotonic() + timeout_s

        def ask(client: "Client") -> Validation:
            for (_, file), position in zip(files, begin, strict=True):
                file.seek(position)
            return client.validate(files, timeout_s=max(0.001, until - time.monotonic()))

        try:
            return self._on_one_host(ask)
        except OSError as error:
            raise _unreadable(error) from error

    def validate_script(self, source: bytes) -> ScriptReport:
        """One host looks at a script: see `inference_client.Client.validate_script`."""
        return self._on_one_host(lambda client: client.validate_script(source))

    def put_file(self, path: Path, model: str, version: int, file_name: str) -> None:
        """Copies a file into the users' repository of every host; `version` 0: beside the versions. Raises already_exists where a
        version's file has other bytes there."""
        try:
            self._on_every_host(model, lambda client: client.put_file(path, model, version, file_name, user=True))
        except OSError as error:
            raise _unreadable(error) from error

    def remove_model(self, name: str, version: int = 0) -> None:
        """Unloads a model of the users' repository on every host, and removes its files; `version` 0: all of it. What is not there is a
        success."""
        self._on_every_host(name, lambda client: client.remove_model(name, version))

    @property
    def max_message_bytes(self) -> int:
        """Of a request to a model host."""
        return self._client().max_message_bytes

    @property
    def local(self) -> bool:
        """Whether there is one model host, and that this machine."""
        scheme, _, rest = self._addresses[0].rpartition("://")
        host = rest.rpartition(":")[0]
        return len(self._addresses) == 1 and (scheme.endswith("+unix") or host in ("localhost", "[::1]") or host.startswith("127."))

    def shared_memory_status(self, name: str = "") -> Sequence[SharedRegion]:
        """The regions that are registered; never remembered."""
        return self._client().shared_memory_status(name)

    def register_shared_memory(self, region: SharedRegion) -> None:
        self._client().register_shared_memory(region)

    def unregister_shared_memory(self, name: str = "") -> None:
        """ "" for every region."""
        self._client().unregister_shared_memory(name)

    def trace_settings(self, model: str, settings: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
        """Changes them on every host; what counts now on the last one."""
        return [self._client((address,)).trace_settings(model, settings) for address in self._addresses][-1]

    def log_settings(self, settings: Mapping[str, bool | int | str]) -> Mapping[str, bool | int | str]:
        """The same."""
        return [self._client((address,)).log_settings(settings) for address in self._addresses][-1]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Their addresses."""
        return self._addresses

    def on(self, address: str) -> "Client":
        """One host alone, for verbs that change it. Raises unavailable while the gateway stops."""
        return self._client((address,))

    def ready(self, timeout_s: float) -> Sequence[tuple[str, bool, str]]:
        """(address, ready, reason) of each host, asked side by side; raises nothing."""
        with ThreadPoolExecutor(len(self._addresses)) as pool:
            return tuple(pool.map(lambda address: (address, *self._is_ready(address, timeout_s)), self._addresses))

    def capacities(self, timeout_s: float) -> Sequence[tuple[str, Capacity | ServingError]]:
        """(address, what the host has, or why it does not say) of each, asked side by side; raises nothing."""
        with ThreadPoolExecutor(len(self._addresses)) as pool:
            return tuple(pool.map(lambda address: (address, self._capacity(address, timeout_s)), self._addresses))

    def _capacity(self, address: str, timeout_s: float) -> Capacity | ServingError:
        try:
            return self._client((address,)).capacity(timeout_s=timeout_s)
        except ServingError as error:
            return error

    def _is_ready(self, address: str, timeout_s: float) -> tuple[bool, str]:
        try:
            is_ready = self._client((address,)).server_ready(timeout_s=timeout_s)
        except ServingError as error:
            return False, error.message
        return is_ready, "" if is_ready else "not all of its models are ready"

    def close(self) -> None:
        with self._lock:
            self._closed = True
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def _on_one_host(self, ask: "Callable[[Client], Value]") -> Value:
        """What one host says, of several the next one each time; where it cannot, or not now, another one is asked. Of refusals only the
        first is raised, but what a host said goes before that one cannot be reached."""
        self._turn += 1
        said: ServingError | None = None
        for place in range(len(self._addresses)):
            try:
                return ask(self._client((self._addresses[(self._turn + place) % len(self._addresses)],)))
            except ServingError as error:
                if error.code not in _ANOTHER_MAY:
                    raise
                said = error if said is None or said.code is Code.UNAVAILABLE else said
        assert said is not None, "there is a host"
        raise said

    def _on_every_host(self, name: str, change: "Callable[[Client], object]") -> None:
        failure: ServingError | None = None
        for address in self._addresses:
            try:
                change(self._client((address,)))
            except ServingError as error:
                failure = failure or error
        self.forget(name)
        if failure is not None:
            raise failure

    def forget(self, name: str) -> None:
        """What is remembered of a model is asked again."""
        for cache in (self._metadata, self._configs, self._declarations):
            cache.forget(name)

    def _client(self, addresses: tuple[str, ...] = ()) -> "Client":
        client = self._clients.get(addresses)
        if client is not None:
            return client
        with self._lock:
            if self._closed:
                raise ServingError(Code.UNAVAILABLE, "the gateway is stopping")
            if addresses not in self._clients:
                self._clients[addresses] = self._connect(addresses or self._addresses)
            return self._clients[addresses]


def _unreadable(error: OSError) -> ServingError:
    return ServingError(Code.INTERNAL, f"a file of the gateway's cannot be read: {error.strerror}")


class _Fresh(Generic[Value]):
    """Values by (model, version) for CACHE_S seconds. Failures are not kept: a model that appears is seen at once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, str], tuple[float, Value]] = {}

    def get(self, key: tuple[str, str], fetch: Callable[[], Value]) -> Value:
        known = self.recall(key)
        return known[0] if known is not None else self.renew(key, fetch)

    def recall(self, key: tuple[str, str]) -> tuple[Value, bool] | None:
        """The value, and whether less than half of its time is over."""
        entry = self._entries.get(key)
        if entry is None or (left := entry[0] - self._clock()) <= 0:
            return None
        return entry[1], left > CACHE_S / 2

    def renew(self, key: tuple[str, str], fetch: Callable[[], Value]) -> Value:
        now = self._clock()
        value = fetch()  # outside the lock: it waits for the network
        with self._lock:
            if len(self._entries) >= _MAX_CACHED:
                self._entries.clear()
            self._entries[key] = (now + CACHE_S, value)
        return value

    def forget(self, name: str) -> None:
        with self._lock:
            for key in [key for key in self._entries if key[0] == name]:
                del self._entries[key]
