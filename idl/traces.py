"""Traces of requests: whose trace a request belongs to, and what is told of it.

Contexts are W3C's ("Trace Context", Recommendation, `traceparent`). Whoever asks a model over the local lane tells of the model's queue and
run: the answer says how long both took, so nothing of a trace travels on the lane. Names and kinds of spans as in OpenTelemetry.
"""

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

INTERNAL, SERVER = 1, 2
"""Kinds of spans (OTLP, trace.proto)."""
MOST_TEXT = 128
"""Characters of a text that a caller chose."""
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


class Tracer:
    """Thread-safe. `rate`: how many of the requests that come without a trace begin one, 0 to 1; those that come with one are traced where
    its flag says so."""

    def __init__(self, sink: Sink, rate: float, chance: Callable[[], float] = random.random) -> None:
        self._sink = sink
        self._rate = rate
        self._chance = chance

    def begin(self, traceparent: str = "") -> Trace:
        """A span below `traceparent`, or the first of a new trace where that is none."""
        found = _HEADER.fullmatch(traceparent) if traceparent else None
        if found is not None:
            version, trace, parent, flags, more = found.groups()
            if version != "ff" and trace != _NO_TRACE and parent != _NO_SPAN and not (version == "00" and more):
                return Trace(trace, _number(16), parent, bool(int(flags, 16) & 1))
        return Trace(_number(32), _number(16), "", self._rate >= 1 or self._chance() < self._rate)

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
        traceparent: str,
        asked: "Asked",
        duration_ns: int,
        times: Sequence[int] = (),
        error: str = "",
        kind: int = SERVER,
    ) -> None:
        """An inference that has just ended, below `traceparent`. `times`: ns in the queue, for input, computing and output, as its executor
        says; they lie in the middle of it, for what is left is the way there and back."""
        trace = self.begin(traceparent)
        if not trace.sampled:
            return
        attributes = asked.attributes()
        end = time.time_ns()
        self.tell(trace, "inference", kind, duration_ns, attributes, error, end)
        if times:
            queue, taken, compute, given = times
            begin = end - duration_ns + max(0, duration_ns - queue - taken - compute - given) // 2
            for name, start, ns in (("queue", begin, queue), ("compute", begin + queue + taken, compute)):
                self.tell(trace._replace(span_id=_number(16), parent=trace.span_id), name, INTERNAL, ns, attributes, "", start + ns)

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
