"""Several answers to one request, from whichever instance takes it."""

import time

from idl import last_words
from idl.codes import Code, ServingError
from idl.lane import LaneError
from idl.lane_calls import Answered, ExecutorGone, LaneAnswer, Moved
from idl.lane_streams import LaneStream
from idl.messages import InferRequest
from inference_server.instance import Executor
from inference_server.served import SURVIVORS_WAIT_S, ServedVersion


class ServedStream:
    """Not thread-safe; to be closed. Raises Closing from the constructor where the version is on its way out."""

    def __init__(self, served: ServedVersion, request: InferRequest, watch: int) -> None:
        self.served = served
        self._request = request
        self._watch = watch
        self._stream: LaneStream | None = None
        self._executor: Executor | None = None
        self._give_up = 0.0
        self._closed = False
        served.enter()

    def next(self, until: float | None = None) -> LaneAnswer | None:
        """The next answer, None after the last. Raises Closing where nothing has come and it is to be asked elsewhere, ServingError,
        TimeoutError as LaneStream does.
        """
        while True:
            try:
                if self._stream is None:
                    self._executor = self.served.pick(self._request, self._give_up)
                    self._stream = self._executor.stream(self._request, self._watch)
                return self._stream.next(until)
            except Moved:
                pass
            except ExecutorGone as gone:
                if gone.ran or (self._stream is not None and self._stream.begun):
                    assert self._executor is not None
                    raise Answered(Code.MODEL_FAILED, last_words.message(self._request.model_name, self._executor.why())) from gone
            except LaneError as error:
                raise ServingError(Code.INTERNAL, f"the lane to model {self._request.model_name!r} broke: {error}") from error
            self._stream = None
            self._give_up = time.monotonic() + SURVIVORS_WAIT_S
            assert self._executor is not None
            self.served.gone(self._executor)

    def close(self) -> None:
        """Idempotent. What is left of the answers is not computed."""
        if not self._closed:
            self._closed = True
            if self._stream is not None:
                self._stream.close()
            self.served.leave()
