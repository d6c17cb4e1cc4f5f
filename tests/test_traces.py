"""Contexts as W3C says, spans as OTLP says, and an exporter that is never in the way."""

import time
from pathlib import Path
from typing import Any

import pytest

from idl import steps
from idl.trace_export import BATCH, DROPPED, EXPORTED, SUFFIX, Endpoint, Exporter, SpanCounts, counted, make_tracer
from idl.traces import INTERNAL, SERVER, Asked, Span, Streamed, Trace, Tracer
from tests.collector import collector
from tests.eventually import eventually

HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE, PARENT = HEADER.split("-")[1:3]


class Kept:
    """A sink."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def add(self, span: Span) -> None:
        self.spans.append(span)

    def close(self) -> None: ...


def test_a_header_is_continued_and_its_flag_decides() -> None:
    tracer = Tracer(Kept(), 1.0)
    trace = tracer.begin(HEADER)
    assert (trace.trace_id, trace.parent, trace.sampled) == (TRACE, PARENT, True)
    assert trace.header == f"00-{TRACE}-{trace.span_id}-01" and trace.span_id != PARENT
    assert tracer.begin(HEADER[:-1] + "0").sampled is False, "the rate does not overrule whoever began it"
    assert tracer.begin(trace.header).parent == trace.span_id
    assert tracer.begin(f"cc-{TRACE}-{PARENT}-01-what-is-new").parent == PARENT, "a later version may have more"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        HEADER.upper(),
        HEADER + "-more",
        HEADER[:-2] + "0g",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        HEADER + "\n",
    ],
)
def test_what_is_no_header_begins_a_trace(header: str) -> None:
    trace = Tracer(Kept(), 1.0).begin(header)
    assert trace.parent == "" and trace.trace_id != TRACE and len(trace.trace_id) == 32 and len(trace.span_id) == 16


def test_the_rate_is_of_requests_without_a_trace() -> None:
    chances = iter([0.1, 0.3, 0.2, 0.9])
    tracer = Tracer(Kept(), 0.25, lambda: next(chances))
    assert [tracer.begin().sampled for _ in range(4)] == [True, False, True, False]
    assert not Tracer(Kept(), 0.0).begin().sampled and Tracer(Kept(), 0.0).begin(HEADER).sampled


def test_an_inference_and_what_its_executor_says() -> None:
    sink = Kept()
    told(Tracer(sink, 1.0), HEADER, Asked("m" * 500, "2", ""), 1000, (100, 50, 600, 50))
    whole, queue, compute = sink.spans
    assert [span.name for span in sink.spans] == ["inference", "queue", "compute"]
    assert [span.kind for span in sink.spans] == [SERVER, INTERNAL, INTERNAL]
    assert whole.trace.parent == PARENT and queue.trace.parent == compute.trace.parent == whole.trace.span_id
    assert [(span.start_ns - whole.start_ns, span.end_ns - whole.start_ns) for span in sink.spans] == [(0, 1000), (100, 200), (250, 850)]
    assert compute.attributes == {"outboard.model": "m" * 128, "outboard.version": "2"}, "a caller's text is cut, an empty one left out"
    sink.spans.clear()
    told(Tracer(sink, 1.0), HEADER[:-1] + "0", Asked("m", "2", ""), 1000, (100, 50, 600, 50))
    assert sink.spans == []


def told(tracer: Tracer, header: str, asked: Asked, *more: Any) -> None:
    """As an event loop does it."""
    trace = tracer.enter(header, asked.model)
    if trace is not None:
        tracer.inference(trace, asked, *more)


def test_a_failure_tells_what_its_executor_knew() -> None:
    sink = Kept()
    for times, names in (((), []), ((100, 0, 0, 0), ["queue"]), ((0, 0, 600, 0), ["compute"]), ((100, 0, 600, 0), ["queue", "compute"])):
        sink.spans.clear()
        told(Tracer(sink, 1.0), HEADER, Asked("m", "2", ""), 1000, times, "model_failed")
        assert [span.name for span in sink.spans] == ["inference", *names]
        assert [span.error for span in sink.spans] == ["model_failed"] + [""] * len(names)


def test_steps_of_a_pipeline_lie_where_they_were() -> None:
    sink, now = Kept(), time.monotonic_ns()
    long = 10**9
    inner = steps.Step("deep", "n", "1", now - 40_000, 10_000, 0, 8_000)
    texts = steps.write([
        steps.Step("second", "m", "3", now - 30_000, 20_000, 0, 0, "model_failed"),
        steps.Step("first", "m", "2", now - 50_000, 20_000, 4_000, 6_000, steps=(inner,)),
    ])  # fmt: skip
    tracer = Tracer(sink, 1.0)
    tracer.inference(tracer.begin(HEADER, "p"), Asked("p", "1", ""), long, (0, 0, long, 0), steps=texts)
    whole, _, _, first, queue, compute, deep, _, deep_compute, second = sink.spans
    assert [span.name for span in (first, deep, second)] == ["step"] * 3 and second.error == "model_failed" and not first.error
    assert first.trace.parent == second.trace.parent == whole.trace.span_id and deep.trace.parent == first.trace.span_id
    assert queue.trace.parent == compute.trace.parent == first.trace.span_id and deep_compute.trace.parent == deep.trace.span_id
    assert first.attributes == {"outboard.model": "m", "outboard.version": "2", "outboard.step": "first"}
    assert whole.start_ns <= first.start_ns <= queue.start_ns < compute.end_ns <= first.end_ns == second.start_ns <= whole.end_ns
    assert deep.start_ns - first.start_ns == 10_000 and compute.end_ns - compute.start_ns == 6_000


def test_steps_are_bounded_and_nonsense_is_none() -> None:
    many = [
        steps.Step("s" * 100, "m", "1", number, 1, 1, 1, steps=(steps.Step("t" * 9000, "m", "1", 1, 1, 1, 1),)) for number in range(500)
    ]
    texts = steps.write(many)
    assert sum(map(len, texts)) <= steps.MOST_BYTES and len(texts) > 50
    read = steps.read(texts)
    assert [step.begun_ns for step in read] == list(range(len(texts))) and len(read[0].steps) == 1 and read[-1].steps == ()
    assert steps.read(["", "[", "{}", "[1]", '["a","m","1",1,1,1,1,"",[1]]', "[" * 100_000]) == []


def test_what_is_told_of_a_stream() -> None:
    streamed = Streamed(time.monotonic_ns() - 5_000_000)
    assert streamed.times == () and streamed.attributes() == {"outboard.answers": 0}
    streamed.add((1, 2, 3, 4))
    streamed.add((0, 0, 30, 40))
    said = streamed.attributes()
    assert streamed.times == (1, 2, 33, 44) and said["outboard.answers"] == 2 and 5_000 <= said["outboard.first_answer_us"] < 60_000_000


@pytest.mark.parametrize(
    "text", ["collector:4318", "ftp://host", "http://", "http://u:p@host", "http://host:99999", "http://host/?q=1", "http://[::1"]
)
def test_odd_endpoints_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        Endpoint.parse(text)


def test_endpoints() -> None:
    assert Endpoint.parse("http://host") == Endpoint(False, "host", 4318, "/v1/traces")
    assert Endpoint.parse("https://[::1]/mine/traces") == Endpoint(True, "::1", 443, "/mine/traces")
    assert make_tracer("", 1.0, "s", "1") is None


def span(number: int) -> Span:
    now = time.time_ns()
    return Span(Trace(TRACE, f"{number + 1:016x}", "", True), str(number), SERVER, now - 5, now, {"n": number}, "")


def exporter(address: str, counts: SpanCounts, **more: int) -> Exporter:
    return Exporter(Endpoint.parse(address), "test", "1", counts, **more)


def test_everything_arrives_and_the_end_flushes() -> None:
    with collector() as got:
        counts = SpanCounts()
        made = exporter(got.address, counts)
        for number in range(2 * BATCH + 7):
            made.add(span(number))
        made.close()
        made.close()
        assert sorted(int(each.name) for each in got.spans) == list(range(2 * BATCH + 7)) and got.requests >= 3
        assert got.spans[0].service == "test" and got.spans[3].said == {"n": "3"}
        assert (counts.cells[EXPORTED], counts.cells[DROPPED]) == (2 * BATCH + 7, 0)
        made.add(span(0))
        assert counts.cells[DROPPED] == 1, "after the end"


def test_a_collector_that_is_away_costs_spans_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with collector() as gone:
        address = gone.address
    counts = SpanCounts()
    made = exporter(address, counts, most=BATCH)
    begun = time.monotonic()
    for number in range(4 * BATCH):
        made.add(span(number))
    assert time.monotonic() - begun < 2, "who adds does not wait"
    made.close()
    assert (counts.cells[EXPORTED], counts.cells[DROPPED]) == (0, 4 * BATCH)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["the collector of traces does not take them"], "said once"


def test_a_busy_collector_is_asked_again_and_a_refusal_is_the_end() -> None:
    with collector() as got:
        counts = SpanCounts()
        made = exporter(got.address, counts)
        got.answers = [503]
        made.add(span(1))
        eventually(lambda: counts.cells[EXPORTED] == 1, "asked again")
        assert got.requests == 2 and len(got.spans) == 1
        got.answers = [400]
        made.add(span(2))
        eventually(lambda: counts.cells[DROPPED] == 1, "what it will never take is not sent again")
        got.body = {"partialSuccess": {"rejectedSpans": "1", "errorMessage": "odd"}}
        made.add(span(3))
        made.add(span(4))
        made.close()
        assert (counts.cells[EXPORTED] + counts.cells[DROPPED]) == 4 and counts.cells[DROPPED] >= 2


def test_counts_are_added_up_and_go_on_after_a_death(tmp_path: Path) -> None:
    for name in ("a", "b", "a"):
        SpanCounts(tmp_path / f"{name}{SUFFIX}").add(EXPORTED, 2)
    (tmp_path / f"half{SUFFIX}").write_bytes(b"\1")
    SpanCounts(tmp_path / f"b{SUFFIX}").add(DROPPED, 1)
    exported, dropped = counted(tmp_path)
    assert (exported, dropped) == (6 + 1, 1)
    assert counted(tmp_path / "none") == (0, 0)
