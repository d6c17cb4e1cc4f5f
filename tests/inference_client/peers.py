"""Small real servers whose manners a test decides: a Thrift one that is given each connection, a gRPC one that is given each call."""

import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc

from idl import thrift_binary
from idl.thrift_schema import Inference, schema

Serve = Callable[[socket.socket], None]


class ThriftPeer:
    """Accepts connections and runs `serve(connection)` for each in a thread of its own; closes it afterwards."""

    def __init__(self, serve: Serve, path: str = "", port: int = 0) -> None:
        self._serve = serve
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM)
        if not path:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(path or ("127.0.0.1", port))
        self._listener.listen(128)
        self.port = 0 if path else self._listener.getsockname()[1]
        self.address = f"thrift+unix://{path}" if path else f"thrift://127.0.0.1:{self.port}"
        self.accepted = 0
        self.open = 0
        self.most_open = 0
        self._changed = threading.Condition()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self._closing:
                connection.close()
                return
            with self._changed:
                self.accepted += 1
                self.open += 1
                self.most_open = max(self.most_open, self.open)
                self._connections.add(connection)
                self._changed.notify_all()
            self._start(self._run, connection)

    def _run(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._serve(connection)
        with self._changed:
            self._connections.discard(connection)
            connection.close()
            self.open -= 1
            self._changed.notify_all()

    def wait_until(self, is_so: Callable[["ThriftPeer"], bool]) -> None:
        """Returns when the counts are what the test waits for."""
        with self._changed:
            assert self._changed.wait_for(lambda: is_so(self), 10), f"accepted {self.accepted}, open {self.open}"

    def close(self) -> None:
        """Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def __enter__(self) -> "ThriftPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Call:
    """What a client sent."""

    method: str
    sequence: int
    request: Any


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError
        data += part
    return data


def read_call(connection: socket.socket) -> Call | None:
    """The next request, None at the end."""
    try:
        frame = _exactly(connection, int.from_bytes(_exactly(connection, 4)))
    except ConnectionError:
        return None
    reader = thrift_binary.Reader(frame)
    method, kind, sequence = reader.message_begin()
    assert kind == thrift_binary.CALL
    arguments = reader.struct(getattr(Inference, f"{method}_args")())
    assert reader.position == reader.end
    return Call(method, sequence, arguments.request)


def reply_bytes(call: Call, success: Any = None, error: Any = None, *, sequence: int | None = None, method: str = "") -> bytes:
    """A framed reply to `call`."""
    result = getattr(Inference, f"{call.method}_result")(success=success, error=error)
    number = call.sequence if sequence is None else sequence
    return b"".join(thrift_binary.message(method or call.method, thrift_binary.REPLY, number, result))


def echo(request: Any, **changes: Any) -> Any:
    """An InferResponse that gives the inputs back as outputs."""
    values = {"model_name": request.model_name, "model_version": "1", "id": request.id, "outputs": request.inputs, "parameters": {}}
    return schema.InferResponse(**(values | changes))


def serve_echo(connection: socket.socket) -> None:
    """Good manners: echoes every inference, is live and ready."""
    while (call := read_call(connection)) is not None:
        connection.sendall(reply_bytes(call, answer(call)))


class Held:
    """The same when it may: `entered` is set by the first request, `leave` lets all of them be answered."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()

    def serve(self, connection: socket.socket) -> None:
        while (call := read_call(connection)) is not None:
            self.entered.set()
            assert self.leave.wait(10)
            connection.sendall(reply_bytes(call, answer(call)))


def answer(call: Call) -> Any:
    """What a well-behaved server says."""
    if call.method == "ModelInfer":
        return echo(call.request)
    kind = getattr(schema, f"{call.method}Response")
    return {"ServerLive": lambda: kind(live=True), "ServerReady": lambda: kind(ready=True), "ModelReady": lambda: kind(ready=True)}.get(
        call.method, kind
    )()


Handle = Callable[[Any, grpc.ServicerContext], bytes]


class GrpcPeer:
    """A gRPC server over a TCP port or a unix socket; `handlers`: method name -> handler of raw messages (of a list, for a stream)."""

    def __init__(self, handlers: dict[str, Handle], path: str = "", port: int = 0, streams: tuple[str, ...] = ("PutFile",)) -> None:
        class Generic(grpc.GenericRpcHandler):
            def service(self, details: grpc.HandlerCallDetails) -> Any:
                name = details.method.rpartition("/")[2]
                if name not in handlers:
                    return None
                if name in streams:
                    return grpc.stream_unary_rpc_method_handler(handlers[name])
                return grpc.unary_unary_rpc_method_handler(handlers[name])

        self._pool = futures.ThreadPoolExecutor(8)
        self._server = grpc.server(
            self._pool, handlers=[Generic()], options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 1 << 26)]
        )
        self.port = self._server.add_insecure_port(f"unix:{path}" if path else f"127.0.0.1:{port}")
        self.address = f"grpc+unix://{path}" if path else f"grpc://127.0.0.1:{self.port}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()

    def __enter__(self) -> "GrpcPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
