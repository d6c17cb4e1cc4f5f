"""A stream of answers over the local lane that is told of when it is over: all its answers are one inference."""

import time

from idl.codes import Code, ServingError
from idl.lane_calls import known
from idl.lane_routes import RoutedStream
from idl.messages import InferRequest, InferResponse
from idl.traces import INTERNAL, Asked, Streamed, Trace, Tracer


class TracedAnswers:
    """Satisfies `RawAnswers`."""

    def __init__(self, tracer: Tracer, trace: Trace, answers: RoutedStream, request: InferRequest) -> None:
        self._tracer, self._trace, self._answers, self._request = tracer, trace, answers, request
        self._begun = time.monotonic_ns()
        self._version = request.model_version
        self._streamed = Streamed(self._begun)
        self._over = False

    def next(self, until: float | None = None) -> InferResponse | None:
        try:
            answer = self._answers.next(until)
        except ServingError as error:
            times, steps = known(error)
            self._tell(error.code.value, times, steps)
            raise
        if answer is None:
            self._tell(steps=self._answers.steps)
            return None
        self._version = answer.model_version
        self._streamed.add((answer.parameters["queue_us"] * 1000, 0, answer.parameters["compute_us"] * 1000, 0))
        return answer

    def _tell(self, error: str = "", times: tuple[int, ...] = (), steps: tuple[str, ...] = ()) -> None:
        """`times`: of an executor that gave no answer."""
        if not self._over:
            self._over = True
            asked, streamed = Asked(self._request.model_name, self._version, self._request.id), self._streamed
            ns = time.monotonic_ns() - self._begun
            self._tracer.inference(self._trace, asked, ns, streamed.times or times, error, INTERNAL, steps, streamed.attributes())

    def close(self) -> None:
        """Idempotent."""
        self._tell(Code.CANCELLED.value)
        self._answers.close()
