"""One call over several hosts: which of them gets it, and when it may be sent again."""

from collections.abc import Sequence
from typing import TypeVar

from idl.codes import NEVER_EXECUTED, Code, ServingError
from idl.messages import InferRequest, InferResponse
from inference_client.channel import Channel, Lost, RawAnswers, Unreachable, Verb
from inference_client.deadline import Clock, Deadline
from inference_client.hosts import Hosts

Q = TypeVar("Q")
R = TypeVar("R")
_NOT_HERE = frozenset({Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND})
"""What a host says that has not got a model (yet), where another may have it. For a name that nobody has no host is asked that was set aside."""


class _Begun:
    """Answers of which the first has come, or the end: which host answers is settled."""

    def __init__(self, raw: RawAnswers) -> None:
        self._raw = raw
        try:
            self._first = raw.next()
        except BaseException:
            raw.close()
            raise
        self._given = False

    def next(self, until: float | None = None) -> InferResponse | None:
        if self._given:
            return self._raw.next(until)
        self._given = True
        return self._first

    def close(self) -> None:
        self._raw.close()


class Dispatcher:
    """Owns the channels of one process. Thread-safe."""

    def __init__(self, names: Sequence[str], channels: Sequence[Channel], clock: Clock) -> None:
        self._channels = tuple(channels)
        self._hosts = Hosts(names)
        self._clock = clock
        self.only = self._channels[0] if len(self._channels) == 1 else None
        """The one channel, where there is one."""

    def call(self, verb: Verb[Q, R], request: Q, deadline: Deadline) -> R:
        """Tries one host after the other, each once, as long as the request provably did not run and time is left: it could not be reached,
        takes nothing now, or has no such model.

        A verb that only reads is sent once more, to any host, when a connection broke under it. Where no host answered, what a host
        said (`overloaded`) goes before what was noticed here (`unavailable`). Raises ServingError.
        """
        if verb.changes and len(self._channels) > 1:
            raise ServingError(Code.UNSUPPORTED, f"{verb.name} changes one host: it needs a client with one address")
        tried: set[int] = set()
        spare = verb.reads
        said: ServingError | None = None
        noticed: ServingError | None = None
        while (index := self._hosts.pick(self._clock(), tried, well=_is_not_here(said))) is not None:
            try:
                return self._call_one(index, verb, request, deadline)
            except Unreachable as error:
                noticed = error
                tried.add(index)
            except Lost as error:
                if not (spare and error.code is Code.UNAVAILABLE):
                    raise
                spare, noticed = False, error
            except ServingError as error:
                if error.code not in NEVER_EXECUTED | _NOT_HERE:
                    raise
                said = error if said is None or _is_not_here(said) else said
                tried.add(index)
            if deadline.is_passed():
                break
        raise said or noticed or ServingError(Code.UNAVAILABLE, "the client has no host")

    def stream(self, request: InferRequest, deadline: Deadline) -> RawAnswers:
        """From the first host that gives an answer, or an error that another would give as well. Raises as `call`."""
        tried: set[int] = set()
        said: ServingError | None = None
        while (index := self._hosts.pick(self._clock(), tried, well=_is_not_here(said))) is not None:
            try:
                return _Begun(self._channels[index].stream(request, deadline))
            except Unreachable as error:
                self._hosts.failed(index, self._clock(), error.reason)
                said = said or error
            except ServingError as error:
                if error.code not in NEVER_EXECUTED | _NOT_HERE:
                    raise
                said = error if said is None or error.code not in _NOT_HERE else said
            tried.add(index)
        raise said or ServingError(Code.UNAVAILABLE, "the client has no host")

    def _call_one(self, index: int, verb: Verb[Q, R], request: Q, deadline: Deadline) -> R:
        """Calls one host and remembers whether it could be reached."""
        try:
            reply = self._channels[index].call(verb, request, deadline)
        except Unreachable as error:
            self._hosts.failed(index, self._clock(), error.reason)
            raise
        except Lost:
            raise
        except ServingError as error:
            if error.code is not Code.DEADLINE_EXCEEDED:
                self._hosts.answered(index)
            raise
        self._hosts.answered(index)
        return reply

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def abandon(self) -> None:
        for channel in self._channels:
            channel.abandon()


def _is_not_here(said: ServingError | None) -> bool:
    return said is not None and said.code in _NOT_HERE
