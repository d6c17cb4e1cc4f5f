"""Control verbs over Thrift: protobuf messages, sent one after the other, then asked for the answer until it is there."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from idl.codes import Code, ServingError
from inference_client.channel import CONTROL as TURN
from inference_client.channel import ControlReply, ControlTurn, Lost, Unreachable, Verb
from inference_client.deadline import Deadline, passed
from inference_client.grpc_codec import CODECS, FileMessages

WAIT_MS = 1000
CALL_S = 30.0
"""What one call may take, its wait included."""
_CANCEL_S = 2.0
_PAUSE_S = 0.01
_MOST_TIMEOUT_MS = 2**31 - 1
PATH = "/outboard.Control/"

Turn = Callable[[Verb[ControlTurn, ControlReply], ControlTurn, Deadline], ControlReply]


def is_control(name: str) -> bool:
    """Whether the verb is one of outboard.Control."""
    return name in CODECS and CODECS[name].path.startswith(PATH)


@dataclass(slots=True)
class ControlCall:
    """One verb, done by `turn`, the channel's own call."""

    turn: Turn
    name: str
    deadline: Deadline
    call: str = ""
    begun: bool = False

    def run(self, request: Any) -> Any:
        """Raises as `Channel.call`."""
        codec = CODECS[self.name]
        encoded = codec.encode(request)
        files = encoded if isinstance(encoded, FileMessages) else None
        messages: Iterator[bytes] = iter(encoded) if files is not None else iter((encoded.SerializeToString(),))
        try:
            reply = self._ask(self._send(messages))
        except BaseException:
            self._cancel()
            if files is not None and files.error is not None:
                raise files.error from None
            raise
        try:
            return codec.decode(codec.reply.FromString(bytes(reply.message)))
        except (DecodeError, ValueError, TypeError) as error:
            raise Lost(Code.INTERNAL, f"the model host's answer cannot be read: {error}") from None

    def _send(self, messages: Iterator[bytes]) -> ControlReply:
        reply = None
        message = next(messages, b"")
        while reply is None or not reply.done:
            following = next(messages, None)
            reply = self._turn((message,), last=following is None)
            if following is None:
                break
            message = following
        return reply

    def _ask(self, reply: ControlReply) -> ControlReply:
        while not reply.done:
            begun = time.monotonic()
            reply = self._turn((), last=False)
            if not reply.done and time.monotonic() - begun < _PAUSE_S:
                time.sleep(_PAUSE_S)
        return reply

    def _turn(self, messages: tuple[bytes, ...], *, last: bool) -> ControlReply:
        left = self.deadline.left()
        limit_ms = min(_MOST_TIMEOUT_MS, max(1, int(left * 1000)))
        asked = ControlTurn(self.name, self.call, messages, last, False, min(WAIT_MS, limit_ms), limit_ms)
        try:
            reply = self.turn(TURN, asked, Deadline(time.monotonic() + CALL_S))
        except Unreachable as error:
            if not self.begun:
                raise
            raise Lost(Code.UNAVAILABLE, f"the model host cannot be reached any more: {error.reason}") from None
        except ServingError as error:
            if error.code is Code.NOT_FOUND and self.deadline.is_passed():
                raise passed() from None
            self.call = ""  # it has ended there
            raise
        self.begun = True
        self.call = reply.call
        return reply

    def _cancel(self) -> None:
        """A host that cannot be told gives the call up by itself."""
        if self.call:
            with contextlib.suppress(ServingError):
                self.turn(TURN, ControlTurn(self.name, self.call, (), False, True, 0, 0), Deadline(time.monotonic() + _CANCEL_S))
