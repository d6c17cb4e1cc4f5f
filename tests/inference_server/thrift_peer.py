"""A Thrift client down to the bytes: what the transport's tests send frames with."""

import socket
import struct
from typing import Any

from idl.thrift_binary import CALL, REPLY, Reader, message
from idl.thrift_schema import Inference, schema


def frame(method: str, request: Any, sequence: int = 1) -> bytes:
    """One call, its length first."""
    arguments = getattr(Inference, f"{method}_args")(request=request)
    return b"".join(message(method, CALL, sequence, arguments))


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def infer(model: str = "echo", data: bytes = b"\0" * 24, **fields: Any) -> Any:
    """A request with one UINT8 tensor `x` of `data`."""
    tensor = schema.Tensor(name="x", datatype="UINT8", shape=[len(data)], data=data)
    return schema.InferRequest(**{"model_name": model, "id": "7", "inputs": [tensor], **fields})


class Peer:
    """A connection to a server, with a time-out so that a test ends."""

    def __init__(self, address: Any) -> None:
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.sock.settimeout(10)
        self.sock.connect(address)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self) -> bytes:
        """One frame's body."""
        (size,) = struct.unpack(">I", self._exactly(4))
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self.sock.recv(min(size - len(parts), 1 << 20))
            if not part:
                raise EOFError("the server closed the connection")
            parts += part
        return bytes(parts)

    def reply(self) -> tuple[str, int, int, Any]:
        """(method, message type, sequence id, result structure); the structure of an exception is not read."""
        reader = Reader(self.receive())
        method, kind, sequence = reader.message_begin()
        result = reader.struct(getattr(Inference, f"{method}_result")()) if kind == REPLY else reader
        return method, kind, sequence, result

    def call(self, method: str, request: Any) -> Any:
        """The result structure: `success` or `error`."""
        self.send(frame(method, request))
        got, kind, sequence, result = self.reply()
        assert (got, kind, sequence) == (method, REPLY, 1)
        return result

    def error(self, method: str, request: Any) -> Any:
        result = self.call(method, request)
        assert result.success is None
        return result.error

    def alive(self) -> bool:
        return bool(self.call("ServerLive", schema.ServerLiveRequest()).success.live)

    def closed(self) -> bool:
        """Waits until the server closes; anything else that it sends fails."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True
