"""A request with many answers, over the local lane: the executor gives the next one when its caller has room for it."""

import select
import socket
import struct
import time
from collections.abc import Iterator

from idl import lane
from idl.codes import Code, ServingError
from idl.lane_calls import REPLY_GRACE_S, Answered, CallerGone, LaneAnswer, LaneConnection, Moved, read_answer
from idl.lane_pool import LanePool
from idl.messages import InferRequest
from idl.tensors import invalid

WINDOW = 16
"""Parts that may be on their way: as many fit into a socket's buffer."""


class LaneStream:
    """The answers to one request, from a connection that it has to itself. Not thread-safe. To be closed; whoever closes it before its end
    gives the rest up, and the executor computes no more of it.

    `watch`: a descriptor whose hang-up means that nobody waits any more: `next` then raises Answered cancelled.
    """

    def __init__(self, pool: LanePool, request: InferRequest, watch: int = -1) -> None:
        """Sends the request. Raises as LanePool.take and LaneConnection.send do."""
        self._pool = pool
        self._request = request
        self._watch = watch
        self._taken = self._told = 0
        self._over = False
        self._connection: LaneConnection | None = pool.take()
        try:
            head, parts, size = lane.pack_request(request.inputs, request.outputs, request.parameters)
            self._connection.send_packed(request.deadline, head, parts, size, WINDOW, request.traced)
        except (struct.error, TypeError, ValueError) as error:
            self.close()
            raise invalid(f"the request cannot be sent to the model: {error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def begun(self) -> bool:
        """An answer has come: another instance can no longer be asked in its place."""
        return self._taken > 0

    def __iter__(self) -> Iterator[LaneAnswer]:
        while (answer := self.next()) is not None:
            yield answer

    def next(self, until: float | None = None) -> LaneAnswer | None:
        """The next answer; None after the last one. `until` (monotonic seconds): raises TimeoutError where none has come by then.

        Raises Answered as the executor says, and past the request's deadline; Moved and ExecutorGone as LaneConnection; LaneError.
        """
        if self._over:
            return None
        try:
            frame = self._next_frame(until)
        except TimeoutError:
            deadline = self._request.deadline
            if deadline is None or time.monotonic() < deadline:
                raise
            self.close()  # the executor computes no more of it
            raise Answered(
                Code.DEADLINE_EXCEEDED, f"model {self._request.model_name!r} did not end its answers before the deadline"
            ) from None
        except (Moved, ServingError):
            self._give_back()
            raise
        except CallerGone:
            self.close()
            raise Answered(Code.CANCELLED, "the caller has gone") from None
        except BaseException:
            self.close()
            raise
        if frame.kind == lane.END:
            self._give_back()
            return None
        answer = read_answer(frame)
        self._taken += 1
        if frame.kind == lane.RESULT:
            self._give_back()
        return answer

    def _next_frame(self, until: float | None) -> lane.Frame:
        connection = self._connection
        assert connection is not None, "it is not over"
        while True:
            try:
                frame = connection.receive_part(socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._tell(connection)
                self._wait(connection, until)
                continue
            if frame is None:
                continue  # it was only the executor's greeting
            if self._taken - self._told >= WINDOW // 2:
                self._tell(connection)
            return frame

    def _tell(self, connection: LaneConnection) -> None:
        """Before a wait, and halfway through the window: the executor goes on where it knows that there is room."""
        if self._taken > self._told:
            connection.taken(self._taken)
            self._told = self._taken

    def _wait(self, connection: LaneConnection, until: float | None) -> None:
        ends = [moment for moment in (until, self._request.deadline and self._request.deadline + REPLY_GRACE_S) if moment is not None]
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        if self._watch >= 0:
            poll.register(self._watch, select.POLLRDHUP)
        ready = poll.poll(max(0.0, min(ends) - time.monotonic()) * 1000 if ends else None)
        if not ready:
            raise TimeoutError
        if not any(descriptor != self._watch for descriptor, _ in ready):
            raise CallerGone

    def _give_back(self) -> None:
        self._over = True
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(connection)

    def close(self) -> None:
        """Idempotent."""
        self._over = True
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.drop(connection)
