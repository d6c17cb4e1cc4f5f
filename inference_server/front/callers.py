"""ModelInfer as nginx brings it: each call one HTTP request on a connection that stays open."""

from idl.codes import ServingError
from idl.lane_loop import Lane
from idl.nginx_http import Connection
from inference_server.front import http_heads
from inference_server.front.calls import Call, Calls
from inference_server.transports.grpc_infer import Buffer

FRAME_BYTES = 5
"""gRPC's own, before each message: whether it is compressed, and its length."""


class Callers:
    """Satisfies `nginx_http.Service`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.most_bytes = calls.max_message_bytes + FRAME_BYTES
        self.parse = http_heads.parse

    def begin(self, caller: Connection, head: http_heads.HttpHead, body: bytes | memoryview) -> Call | None:
        asked = Asked(caller)
        if len(body) < FRAME_BYTES or body[0] or int.from_bytes(body[1:FRAME_BYTES], "big") != len(body) - FRAME_BYTES:
            asked.decline()  # compressed, several messages or none: grpcio knows what to do with them
            return None
        return self._calls.begin(asked, head.said, body[FRAME_BYTES:])


class Asked:
    """One call that nginx waits for. Satisfies `calls.Caller`."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def succeed(self, parts: list[Buffer], size: int, lane: Lane) -> None:
        parts.insert(0, http_heads.success(size))
        self._connection.reply(parts, lane.give_back)

    def fail(self, error: ServingError) -> None:
        self._connection.reply((http_heads.failure(error),))

    def decline(self) -> None:
        self._connection.reply((http_heads.DECLINED,))
