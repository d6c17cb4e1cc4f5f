"""Several answers to one request, as the engine gives them: refusals counted, and told of as one inference."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from idl.codes import Code, ServingError
from idl.lane_calls import LaneAnswer, known
from idl.lane_routes import response
from idl.messages import InferRequest, InferResponse
from idl.traces import NOTHING, Streamed, Trace
from inference_server.served import Closing, ServedVersion
from inference_server.served_stream import ServedStream


class Engine(Protocol):
    """Of the engine, what a stream needs."""

    def begin_stream(self, request: InferRequest, watch: int) -> ServedStream: ...

    def count_failure(self, request: InferRequest, served: ServedVersion | None, error: ServingError, begun_ns: int) -> None: ...

    def enter(self, request: InferRequest) -> Trace | None: ...

    def trace(
        self,
        trace: Trace,
        request: InferRequest,
        served: ServedVersion | None,
        begun_ns: int,
        times: Sequence[int] = (),
        error: str = "",
        steps: Sequence[str] = (),
        more: Mapping[str, int] = NOTHING,
    ) -> None: ...


class EngineStream:
    """Satisfies `types.Answers`."""

    def __init__(self, engine: Engine, request: InferRequest, watch: int) -> None:
        self._engine = engine
        self._request = request
        self._watch = watch
        self._begun = time.monotonic_ns()
        self._trace = engine.enter(request)
        self._asked = request if self._trace is None else replace(request, traced=True)
        self._stream: ServedStream | None = None
        self._over = False
        self._streamed = Streamed(self._begun)
        self._steps: tuple[str, ...] = ()

    def next(self, until: float | None = None) -> InferResponse | None:
        if self._over:
            return None
        try:
            stream, answer = self._next(until)
        except TimeoutError:
            raise
        except ServingError as error:
            self._over = True
            self._engine.count_failure(self._request, self._served, error, self._begun)
            self._tell(error.code.value, *known(error))
            self.close()
            raise
        if answer is None:
            self._over = True
            self._tell("", (), self._steps)
            self.close()
            return None
        if self._trace is not None:
            self._streamed.add((answer.queue_ns, answer.input_ns, answer.compute_ns, answer.output_ns))
            self._steps = answer.steps
        return response(self._request, stream.served.stats.version, answer)

    def _next(self, until: float | None) -> tuple[ServedStream, LaneAnswer | None]:
        while True:
            if self._stream is None:
                self._stream = self._engine.begin_stream(self._asked, self._watch)
            try:
                return self._stream, self._stream.next(until)
            except Closing:  # swapped out before anything was computed
                self._stream.close()
                self._stream = None

    @property
    def _served(self) -> ServedVersion | None:
        return self._stream.served if self._stream is not None else None

    def _tell(self, error: str, times: tuple[int, ...], steps: tuple[str, ...]) -> None:
        """`times`: of an executor that gave no answer."""
        if self._trace is not None:
            streamed = self._streamed
            times = streamed.times or times
            self._engine.trace(self._trace, self._request, self._served, self._begun, times, error, steps, streamed.attributes())

    def close(self) -> None:
        """Idempotent."""
        if not self._over and self._stream is not None:
            self._tell(Code.CANCELLED.value, (), ())
        self._over = True
        if self._stream is not None:
            self._stream.close()
