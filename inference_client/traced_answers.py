"""A stream of answers over the local lane that is told of when it is over: all its answers are one inference."""

import time

from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse
from idl.traces import INTERNAL, Asked, Tracer
from inference_client.channel import RawAnswers


class TracedAnswers:
    """Satisfies `RawAnswers`."""

    def __init__(self, tracer: Tracer, answers: RawAnswers, request: InferRequest) -> None:
        self._tracer, self._answers, self._request = tracer, answers, request
        self._begun = time.monotonic_ns()
        self._version = request.model_version
        self._queue_ns = self._compute_ns = 0
        self._over = False

    def next(self, until: float | None = None) -> InferResponse | None:
        try:
            answer = self._answers.next(until)
        except ServingError as error:
            self._tell(error.code.value)
            raise
        if answer is None:
            self._tell()
            return None
        self._version = answer.model_version
        self._queue_ns += answer.parameters["queue_us"] * 1000
        self._compute_ns += answer.parameters["compute_us"] * 1000
        return answer

    def _tell(self, error: str = "") -> None:
        if not self._over:
            self._over = True
            asked = Asked(self._request.model_name, self._version, self._request.id)
            times = (self._queue_ns, 0, self._compute_ns, 0)
            self._tracer.inference(self._request.traceparent, asked, time.monotonic_ns() - self._begun, times, error, INTERNAL)

    def close(self) -> None:
        """Idempotent."""
        self._tell(Code.CANCELLED.value)
        self._answers.close()
