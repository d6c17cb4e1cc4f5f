"""Traces of requests: whose trace a request belongs to, and what is told of it.

Contexts are W3C's ("Trace Context", Recommendation, `traceparent`). Whoever asks a model over the local lane tells of the model's queue and
run: the answer says how long both took, so nothing of a trace travels on the lane. Names and kinds of spans as in OpenTelemetry.
"""

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from idl.steps import Step
from idl.steps import read as read_steps

INTERNAL, SERVER = 1, 2
"""Kinds of spans (OTLP, trace.proto)."""
MOST_TEXT = 128
"""Characters of a text that a caller chose."""
NOTHING: Mapping[str, int] = MappingProxyType({})
_HEADER = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


class Trace(NamedTuple):
    """One span's place: `parent` is "" for the first of a trace. What is not `sampled` is told to nobody."""

    trace_id: str
    span_id: str
    parent: str
    sampled: bool

    @property
    def header(self) -> str:
        """The `traceparent` of whatever this span asks for."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    def child(self) -> "Trace":
        """A span directly below."""
        return Trace(self.trace_id, _number(16), self.span_id, self.sampled)


class Span(NamedTuple):
    """What is told. Times in ns since the epoch; `error` is a code of the contract, "" where there was none."""

    trace: Trace
    name: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: Mapping[str, str | int]
    error: str


class Sink(Protocol):
    def add(self, span: Span) -> None: ...

    def close(self) -> None: ...


class Rule(Protocol):
    """What was set for a model while its server runs: see `trace_control.Rule`."""

    off: bool
    rate: int | None

    @property
    def is_counted(self) -> bool: ...

    def is_turn(self) -> bool: ...

    def take(self) -> bool | None: ...


class Control(Protocol):
    def rule(self, model: str) -> Rule | None: ...


class Tracer:
    """Thread-safe. `rate`: how many of the requests that come without a trace begin one, 0 to 1; those that come with one are traced where
    its flag says so. `control`: what was set while it runs, which goes before both."""

    def __init__(self, sink: Sink, rate: float, chance: Callable[[], float] = random.random, control: Control | None = None) -> None:
        self._sink = sink
        self._rate = rate
        self._chance = chance
        self._control = control

    def enter(self, traceparent: str, model: str) -> Trace | None:
        """The span of a request for a model that comes from outside: below `traceparent`, or the first of a new trace where that is none.
        None where nobody is to be told of it."""
        rule = None if self._control is None else self._control.rule(model)
        if rule is not None and rule.off:
            return None
        found = _read(traceparent) if traceparent else None
        return _begun(found) if self._is_wanted(rule, model, found and found.sampled) else None

    def begin(self, traceparent: str = "", model: str = "") -> Trace:
        """The same for who passes the trace on, sampled or not. Without a `model` it is no inference: of such `trace_level` alone is
        heeded, and they are left out while traces are counted."""
        found = _read(traceparent) if traceparent else None
        rule = None if self._control is None else self._control.rule(model)
        sampled = found and found.sampled
        if rule is not None and rule.off:
            sampled = False
        elif model or rule is None:
            sampled = self._is_wanted(rule, model, sampled)
        else:
            sampled = not rule.is_counted and self._is_wanted(None, "", sampled)
        return _begun(found, bool(sampled))

    def below(self, traceparent: str) -> Trace | None:
        """A span below one that was begun, and decided on, in this process; or the first of a new trace. None where it is told to nobody."""
        found = _read(traceparent) if traceparent else None
        return _begun(found) if self._is_wanted(None, "", found and found.sampled) else None

    def _is_wanted(self, rule: Rule | None, model: str, flag: bool | None) -> bool:
        """`flag`: of the trace that it came with, None without one."""
        if flag is None:
            flag = self._begins() if rule is None or rule.rate is None else rule.is_turn()
        while flag and rule is not None and rule.is_counted:
            taken = rule.take()
            if taken is not None:
                return taken
            assert self._control is not None, "it gave the rule"
            rule = self._control.rule(model)  # changed meanwhile
            flag = rule is None or not rule.off
        return flag

    def _begins(self) -> bool:
        return self._rate >= 1 or self._chance() < self._rate

    def tell(
        self,
        trace: Trace,
        name: str,
        kind: int,
        duration_ns: int,
        attributes: Mapping[str, str | int],
        error: str = "",
        ended_ns: int = 0,
    ) -> None:
        """A span that has just ended, or at `ended_ns` of the epoch."""
        if trace.sampled:
            end = ended_ns or time.time_ns()
            self._sink.add(Span(trace, name, kind, end - duration_ns, end, attributes, error))

    def inference(
        self,
        trace: Trace,
        asked: "Asked",
        duration_ns: int,
        times: Sequence[int] = (),
        error: str = "",
        kind: int = SERVER,
        steps: Sequence[str] = (),
        more: Mapping[str, int] = NOTHING,
    ) -> None:
        """An inference that has just ended, which is the span `trace`. `times`: ns in the queue, for input, computing and output, as its
        executor says; they lie in the middle of it, for what is left is the way there and back. `steps`: as a pipeline says; `more`: about
        the inference itself."""
        if not trace.sampled:
            return
        attributes = asked.attributes()
        end = time.time_ns()
        self.tell(trace, "inference", kind, duration_ns, {**attributes, **more}, error, end)
        if times:
            self._inside(trace, end - duration_ns, duration_ns, times, attributes, error)
        if steps:
            ahead = end - time.monotonic_ns()
            for step in read_steps(steps):
                self._step(trace, step, ahead)

    def _inside(
        self, trace: Trace, begin: int, duration_ns: int, times: Sequence[int], attributes: Mapping[str, str | int], error: str
    ) -> None:
        queue, taken, compute, given = times
        begin += max(0, duration_ns - queue - taken - compute - given) // 2
        for name, start, ns in (("queue", begin, queue), ("compute", begin + queue + taken, compute)):
            if ns or not error:  # what has failed may not have come that far
                self.tell(trace.child(), name, INTERNAL, ns, attributes, "", start + ns)

    def _step(self, above: Trace, step: Step, ahead: int) -> None:
        """`ahead`: of CLOCK_MONOTONIC, ns."""
        trace, begin = above.child(), step.begun_ns + ahead
        attributes = Asked(step.model, step.version, "").attributes() | {"outboard.step": step.name[:MOST_TEXT]}
        self.tell(trace, "step", INTERNAL, step.ns, attributes, step.error, begin + step.ns)
        if step.queue_ns or step.compute_ns:
            self._inside(trace, begin, step.ns, (step.queue_ns, 0, step.compute_ns, 0), attributes, step.error)
        for inner in step.steps:
            self._step(trace, inner, ahead)

    def close(self) -> None:
        """Tells what is left. Idempotent."""
        self._sink.close()


class Asked(NamedTuple):
    """What was asked for; texts as the caller gave them."""

    model: str
    version: str
    request_id: str

    def attributes(self) -> dict[str, str | int]:
        pairs = (("outboard.model", self.model), ("outboard.version", self.version), ("outboard.request_id", self.request_id))
        return {key: text[:MOST_TEXT] for key, text in pairs if text}


class Streamed:
    """What is told of a stream: all its answers are one inference. `begun_ns` of CLOCK_MONOTONIC."""

    def __init__(self, begun_ns: int) -> None:
        self._begun_ns = begun_ns
        self._answers = 0
        self._first_ns = 0
        self.times: tuple[int, ...] = ()
        """Sums of those of its answers, as in `Tracer.inference`; empty before the first."""

    def add(self, times: tuple[int, ...]) -> None:
        """One more answer."""
        if not self._answers:
            self._first_ns = time.monotonic_ns() - self._begun_ns
        self._answers += 1
        self.times = tuple(map(sum, zip(self.times, times, strict=True))) if self.times else times

    def attributes(self) -> dict[str, int]:
        first = {"outboard.first_answer_us": self._first_ns // 1000} if self._answers else {}
        return {"outboard.answers": self._answers, **first}


class _Above(NamedTuple):
    """What a header names."""

    trace_id: str
    span_id: str
    sampled: bool


def _begun(above: _Above | None, sampled: bool = True) -> Trace:
    """A span below it, or the first of a new trace."""
    if above is None:
        return Trace(_number(32), _number(16), "", sampled)
    return Trace(above.trace_id, _number(16), above.span_id, sampled)


def _read(traceparent: str) -> _Above | None:
    """None where it is no header."""
    found = _HEADER.fullmatch(traceparent)
    if found is None:
        return None
    version, trace, parent, flags, more = found.groups()
    if version == "ff" or trace == _NO_TRACE or parent == _NO_SPAN or (version == "00" and more):
        return None
    return _Above(trace, parent, bool(int(flags, 16) & 1))


def _number(digits: int) -> str:
    """A random number that is not 0, in hexadecimal."""
    return f"{random.getrandbits(4 * digits) or 1:0{digits}x}"


def to_otlp(service: str, version: str, spans: Sequence[Span]) -> dict[str, Any]:
    """An ExportTraceServiceRequest in OTLP's JSON encoding (OpenTelemetry Protocol Specification, "JSON Protobuf Encoding")."""
    resource = _attributes({"service.name": service, "service.version": version})
    scope = {"name": "outboard", "version": version}
    return {"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": [{"scope": scope, "spans": list(map(_span, spans))}]}]}


def _span(span: Span) -> dict[str, Any]:
    trace, error = span.trace, span.error
    return {
        "traceId": trace.trace_id,
        "spanId": trace.span_id,
        **({"parentSpanId": trace.parent} if trace.parent else {}),
        "flags": 1,
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes | {"error.type": error} if error else span.attributes),  # type: ignore[operator]
        "status": {"code": 2, "message": error} if error else {},
    }


def _attributes(pairs: Mapping[str, str | int]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in pairs.items()
    ]
