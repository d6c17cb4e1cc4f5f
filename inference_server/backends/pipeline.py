"""A model that is a graph of models of the same server. Each step is asked over the local lane, so that its own queue and batches take it as any
other request; tensors go from step to step as bytes, and none leaves the host.

Requests run side by side, and so do steps of one request that do not need each other. Only what the wanted outputs need is run.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from idl import steps, tensors
from idl.codes import Code, ServingError
from idl.lane_calls import Answered, LaneAnswer
from idl.lane_routes import LocalLane
from idl.messages import InferRequest, Tensor
from idl.steps import Step
from idl.tensors import Array
from inference_server import errors
from inference_server.backends.pipeline_plan import Link, Plan
from inference_server.types import Signature

THREADS = 64
"""Steps of one executor that are under way at once."""
RESTART_WAIT_S, _LOOK_S = 2.0, 0.005
"""How long a step whose process is starting again is waited for, as the server itself does."""
_TRIM_S, _IDLE_S = 10.0, 30.0
_OWN = frozenset({"sequence_id", "sequence_start", "sequence_end"})

Outcome = tuple[list[Tensor], dict[str, Any]] | ServingError
Done = Callable[[Outcome, tuple[str, ...]], None]
"""Hears once, in any thread, what became of a request: (outputs in the order in which they were wanted, parameters), or what is wrong; and of
its steps, where that was asked for."""


class PipelineModel:
    """Satisfies `serving.Backend` and `side_by_side.Concurrent`. `limit`: bytes of one answer's tensors. Thread-safe."""

    providers: tuple[str, ...] = ()

    def __init__(self, plan: Plan, run_dir: str, limit: int) -> None:
        self.signature: Signature = plan.signature
        self._plan = plan
        self._limit = limit
        self._lane = LocalLane(run_dir, limit, while_draining=True)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="step")
        self._closed = threading.Event()
        self._trimmer = threading.Thread(target=self._trim, name="pipeline-trim", daemon=True)
        self._trimmer.start()

    def run(self, inputs: Mapping[str, Array], wanted: list[str]) -> list[Array]:
        """One request, waited for: warm-up samples."""
        given = [
            Tensor(s.name, s.datatype, inputs[s.name].shape, tensors.encode(inputs[s.name], s.datatype)) for s in self.signature.inputs
        ]
        over, found = threading.Event(), []

        def done(outcome: Outcome, _: tuple[str, ...]) -> None:
            found.append(outcome)
            over.set()

        self.start(given, wanted, {}, None, -1, done)
        over.wait()
        if isinstance(found[0], ServingError):
            raise found[0]
        return [tensors.decode(t.name, t.datatype, t.shape, t.data) for t in found[0][0]]

    def start(
        self,
        given: Sequence[Tensor],
        wanted: Sequence[str],
        parameters: Mapping[str, Any],
        deadline: float | None,
        watch: int,
        done: Done,
        traced: bool = False,
    ) -> None:
        """Begins a request and returns. `given`: all inputs; `deadline`: monotonic seconds; `watch`: a descriptor whose hang-up means that
        nobody waits for the answer any more. Both `given`'s memory and `watch` must hold until `done` is called. `traced`: it is to hear of
        the steps.
        """
        passed = {name: value for name, value in parameters.items() if name not in _OWN}
        _Flow(self, self._plan.needed(tuple(wanted)), given, wanted, passed, deadline, watch, done, traced).begin()

    def submit(self, work: Callable[[Link], None], link: Link) -> None:
        self._pool.submit(work, link)

    def ask(self, link: Link, request: InferRequest, watch: int) -> tuple[str, LaneAnswer]:
        """(version, answer). Raises ServingError that names the step."""
        try:
            version, answer = self._answered(link, request, watch)
            for tensor, spec in zip(answer.outputs, link.outputs.values(), strict=True):
                if tensor.datatype != spec.datatype:
                    raise errors.model_failed(
                        f"it gives {tensor.datatype} as {tensor.name!r}, and gave {spec.datatype} when the pipeline was loaded"
                    )
        except ServingError as error:
            raise ServingError(error.code, f"step {link.name!r}: {error.message}", retry_after_ms=error.retry_after_ms) from error
        return version, answer

    def _answered(self, link: Link, request: InferRequest, watch: int) -> tuple[str, LaneAnswer]:
        give_up = time.monotonic() + RESTART_WAIT_S
        while True:
            found = self._lane.answer(request, watch)
            if found is not None:
                return found
            self._check(link, request, give_up)
            self._closed.wait(_LOOK_S)

    def _check(self, link: Link, request: InferRequest, give_up: float) -> None:
        """What was not answered: raises unless the model's process is only starting again."""
        route, now = self._lane.route(link.model, link.version), time.monotonic()
        what = f"model {link.model!r}" + (f" version {link.version!r}" if link.version else "")
        if route is None:
            raise errors.not_ready(f"{what} is not loaded")
        size = sum(len(tensor.data) for tensor in request.inputs)
        if size > min(route.limit, self._limit):
            raise errors.too_large(f"{what} would get {size} bytes of tensors, at most {min(route.limit, self._limit)} are taken")
        if request.deadline is not None and now > request.deadline:
            raise errors.deadline_exceeded("the deadline passed while the model's process was starting again")
        if now > give_up or self._closed.is_set():
            raise errors.not_ready(f"{what}: its process does not answer")

    def _trim(self) -> None:
        while not self._closed.wait(_TRIM_S):
            self._lane.trim(time.monotonic() - _IDLE_S)

    def close(self) -> None:
        """When no request is inside. Idempotent."""
        self._closed.set()
        self._pool.shutdown()
        self._trimmer.join()
        self._lane.close()


class _Flow:
    """One request on its way through the graph."""

    def __init__(
        self,
        pipeline: PipelineModel,
        links: Sequence[Link],
        given: Sequence[Tensor],
        wanted: Sequence[str],
        parameters: Mapping[str, Any],
        deadline: float | None,
        watch: int,
        done: Done,
        traced: bool,
    ) -> None:
        self._traced = traced
        self._steps: list[Step] = []
        self._pipeline, self._wanted, self._parameters = pipeline, wanted, parameters
        self._deadline, self._watch, self._done = deadline, watch, done
        self._tensors = {tensor.name: tensor for tensor in given}
        self._waiting = {link.index: set(link.after) for link in links}
        self._links = {link.index: link for link in links}
        self._lock = threading.Lock()
        self._running = 0
        self._error: ServingError | None = None
        self._said: dict[int, Mapping[str, Any]] = {}

    def begin(self) -> None:
        with self._lock:
            ready = self._ready()
        for link in ready:
            self._pipeline.submit(self._run, link)

    def _ready(self) -> list[Link]:
        """Those that can run now; they count as running from here on."""
        found = [self._links[index] for index, after in self._waiting.items() if not after]
        for link in found:
            del self._waiting[link.index]
        self._running += len(found)
        return found

    def _run(self, link: Link) -> None:
        """One step, and after it, in the same thread, one of those that waited for it."""
        following: Link | None = link
        while following is not None:
            following = self._step(following)

    def _step(self, link: Link) -> Link | None:
        answer: LaneAnswer | None = None
        version = link.version
        error: ServingError | None = None
        begun = time.monotonic_ns()
        try:
            version, answer = self._pipeline.ask(link, self._request(link), self._watch)
        except ServingError as refusal:
            error = refusal
        except Exception as failure:  # noqa: BLE001 - its caller must hear something
            error = ServingError(Code.INTERNAL, f"step {link.name!r}: {type(failure).__name__}: {failure}")
        ready: list[Link] = []
        with self._lock:
            self._running -= 1
            self._error = self._error or error
            if self._traced:
                self._steps.append(_told(link, version, begun, answer or error))
            if answer is not None:
                self._said[link.index] = answer.parameters
                for name, tensor in zip(link.outputs, answer.outputs, strict=True):
                    self._tensors[name] = Tensor(name, tensor.datatype, tensor.shape, tensor.data)
                for after in self._waiting.values():
                    after.discard(link.index)
            if self._error is None:
                ready = self._ready()
            over = not self._running
        if over:  # nothing runs any more: the memory of the inputs may go
            self._finish()
        for other in ready[1:]:
            self._pipeline.submit(self._run, other)
        return ready[0] if ready else None

    def _request(self, link: Link) -> InferRequest:
        inputs = []
        for name, source in link.inputs.items():
            tensor = self._tensors[source]
            inputs.append(Tensor(name, tensor.datatype, tensor.shape, tensor.data))
        wanted = tuple(spec.name for spec in link.outputs.values())
        return InferRequest(
            link.model,
            tuple(inputs),
            link.version,
            outputs=wanted,
            parameters=self._parameters,
            deadline=self._deadline,
            traced=self._traced,
        )

    def _finish(self) -> None:
        told = steps.write(self._steps)
        if self._error is not None:
            self._done(self._error, told)
            return
        said: dict[str, Any] = {}
        for index in sorted(self._said):
            said |= self._said[index]
        self._done(([self._tensors[name] for name in self._wanted], said), told)


def _told(link: Link, version: str, begun_ns: int, became: "LaneAnswer | ServingError | None") -> Step:
    """A step that has just ended."""
    times: tuple[int, ...] = ()
    inside: tuple[str, ...] = ()
    code = ""
    if isinstance(became, LaneAnswer):
        times, inside = (became.queue_ns, became.input_ns, became.compute_ns, became.output_ns), became.steps
    elif became is not None:
        code = became.code.value
        if isinstance(became.__cause__, Answered):  # what was raised names the step, its cause is what the step's executor said
            times, inside = became.__cause__.times, became.__cause__.steps
    queue_ns, _, compute_ns, _ = times or (0, 0, 0, 0)
    ns = time.monotonic_ns() - begun_ns
    return Step(link.name, link.model, version, begun_ns, ns, queue_ns, compute_ns, code, tuple(steps.read(inside)))
