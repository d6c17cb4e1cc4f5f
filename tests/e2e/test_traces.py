"""One trace from a caller's `traceparent` through the gateway to the model, over every way in; a real collector on loopback."""

import contextlib
import json
import secrets
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from gateway import create_app
from gateway.settings import Settings
from idl.codes import ServingError
from idl.traces import INTERNAL, SERVER
from inference_client import Client
from tests.collector import Collector, Got, collector
from tests.eventually import eventually
from tests.gateway.test_metrics import parse
from tests.needs import needs
from tests.onnx_models import times
from tests.processes import Process, start_server, start_up
from tests.python_models import DOUBLE_TOML, TOKENS, python_model, tokens

FAIL = """
def fail(number, parameters):
    if number == int(parameters.get("fail", -1)): raise ValueError("on purpose")
"""
FAILING = """
import time
def infer(inputs):
    if inputs["x"].any():  # it is tried on zeros when it is loaded
        time.sleep(0.01)
        raise ValueError("on purpose")
    return {"y": inputs["x"]}
"""
CHAIN = """
[[steps]]
name = "first"
model = "m"
outputs = { y = "doubled" }
[[steps]]
model = "n"
inputs = { x = "doubled" }
"""
OUTER = """
[[steps]]
model = "chain"
outputs = { y = "z" }
"""
BROKEN = """
[[steps]]
model = "m"
outputs = { y = "doubled" }
[[steps]]
model = "failing"
inputs = { x = "doubled" }
"""
X = np.float32([[1, 2]])
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]})
PARENT = "00f067aa0ba902b7"


class Ways:
    """Everything of a host, traced."""

    def __init__(self, up: Process, got: Collector) -> None:
        self.up, self.got = up, got

    def post(self, path: str, body: str, header: str) -> tuple[int, bytes]:
        with closing(HTTPConnection(urlsplit(self.up["http"]).netloc, timeout=30)) as connection:
            connection.request("POST", path, body, {"Content-Type": "application/json", "Traceparent": header, "X-Request-Id": "q-1"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def spans(self, trace: str, count: int) -> dict[str, Got]:
        eventually(lambda: len(self.got.of(trace)) >= count, f"{count} spans of {trace}: {self.got.of(trace)}")
        return self.got.of(trace)


def fresh(flags: str = "01") -> tuple[str, str]:
    trace = secrets.token_hex(16)
    return trace, f"00-{trace}-{PARENT}-{flags}"


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    folder = tmp_path_factory.mktemp("traces")
    times(folder / "models" / "m" / "1" / "model.onnx", 2)
    (folder / "models" / "m" / "model.toml").write_text("public = true\n")
    times(folder / "models" / "n" / "1" / "model.onnx", 3)
    tokens(folder / "models" / "tokens", "public = true\n", TOKENS.replace("yield", "yield fail(number, parameters) or") + FAIL)
    python_model(folder / "models" / "failing", FAILING, "public = true\n" + DOUBLE_TOML.replace("-1", "-1, 2"))
    for name, toml in (("chain", CHAIN), ("outer", OUTER), ("broken", BROKEN)):
        (folder / "models" / name / "1").mkdir(parents=True)
        (folder / "models" / name / "model.toml").write_text("public = true\n" + toml)
    with collector() as got:
        env = {
            f"OUTBOARD_{part}_TRACE_{name}": text
            for part in ("SERVER", "GATEWAY")
            for name, text in (("ENDPOINT", got.address), ("RATE", "0"))
        }
        up = start_up(folder / "data", "--no-demo", "--models", str(folder / "models"), **env)
        yield Ways(up, got)
        trace, header = fresh()
        with Client(f"grpc://{up['grpc']}") as client:
            client.infer("m", {"x": X}, traceparent=header)
        assert up.stop() == 0, up.log.read_text()
        assert set(got.of(trace)) == {"inference", "queue", "compute"}, "what was waiting is sent before the end"


def check(spans: dict[str, Got], service: str, kind: int) -> None:
    inference, queue, compute = (spans[name] for name in ("inference", "queue", "compute"))
    assert inference.service == service and inference.kind == kind
    assert queue.parent == compute.parent == inference.id
    assert inference.start <= queue.start <= queue.end <= compute.start <= compute.end <= inference.end
    assert compute.said["outboard.model"] == "m" and compute.said["outboard.version"] == "1"


@needs("nginx")
def test_http_by_the_event_loop(ways: Ways) -> None:
    trace, header = fresh()
    assert ways.post("/v2/models/m/infer", BODY, header)[0] == 200
    spans = ways.spans(trace, 4)
    gateway = spans["POST /v2/models/<model>/infer"]
    assert (gateway.parent, gateway.kind, gateway.service, gateway.error) == (PARENT, SERVER, "outboard-gateway", "")
    assert gateway.said["http.response.status_code"] == "200" and gateway.said["outboard.model"] == "m"
    assert gateway.said["outboard.request_id"] == "q-1" and spans["inference"].parent == gateway.id
    check(spans, "outboard-gateway", INTERNAL)
    assert gateway.start <= spans["inference"].start and spans["inference"].end <= gateway.end


def test_http_by_the_workers(ways: Ways) -> None:
    trace, header = fresh()
    assert ways.post("/v1/models/m/predictions", json.dumps({"inputs": {"x": [[1, 2]]}}), header)[0] == 200
    spans = ways.spans(trace, 4)
    assert spans["inference"].parent == spans["POST /v1/models/<model>/predictions"].id
    check(spans, "outboard-gateway", INTERNAL)


def test_a_refusal_has_its_code(ways: Ways) -> None:
    trace, header = fresh()
    assert ways.post("/v2/models/m/infer", BODY.replace("FP32", "INT64"), header)[0] == 400
    spans = ways.spans(trace, 2)
    assert {span.error for span in spans.values()} == {"invalid_input"}
    assert spans["POST /v2/models/<model>/infer"].said["http.response.status_code"] == "400"


def test_a_stream_is_one_inference(ways: Ways) -> None:
    trace, header = fresh()
    assert ways.post("/v2/models/m/generate_stream", json.dumps({"x": [[1, 2]]}), header)[0] == 200
    spans = ways.spans(trace, 4)
    assert spans["inference"].parent == spans["POST /v2/models/<model>/generate_stream"].id
    check(spans, "outboard-gateway", INTERNAL)


@pytest.mark.parametrize("protocol", ["grpc", "thrift"])
def test_rpc_by_the_fast_fronts_and_by_the_engine(ways: Ways, protocol: str) -> None:
    with Client(f"{protocol}://{ways.up[protocol]}") as client:
        trace, header = fresh()
        client.infer("m", {"x": X}, traceparent=header, request_id="r-1")
        spans = ways.spans(trace, 3)
        assert spans["inference"].parent == PARENT and spans["inference"].said["outboard.request_id"] == "r-1"
        check(spans, "outboard-server", SERVER)
        trace, header = fresh()
        with pytest.raises(ServingError):
            client.infer("nobody", {"x": X}, traceparent=header)
        assert ways.spans(trace, 1)["inference"].error == "model_not_found", "the front declines it, the engine refuses and tells"
        trace, header = fresh()
        list(client.stream("m", {"x": X}, traceparent=header))
        check(ways.spans(trace, 3), "outboard-server", SERVER)


def test_the_flag_and_the_rate_keep_quiet(ways: Ways) -> None:
    quiet, header = fresh("00")
    with Client(f"grpc://{ways.up['grpc']}") as client:
        client.infer("m", {"x": X}, traceparent=header)
        client.infer("m", {"x": X})
    ways.post("/v2/models/m/infer", BODY, header)
    for _ in range(2):  # the first by a thread, the next by the loop, which knows the model by then
        assert b"data:" in ways.post("/v2/models/m/generate_stream", json.dumps({"x": [[1, 2]]}), header)[1]
    loud, header = fresh()
    ways.post("/v2/models/m/infer", BODY, header)
    ways.spans(loud, 4)
    assert ways.got.of(quiet) == {}
    assert all(span.parent for span in ways.got.spans), "RATE is 0: nothing began a trace"


STEPS = [("first", "m"), ("n", "n")]


def check_steps(spans: list[Got], parent: Got, expected: list[tuple[str, str]]) -> list[Got]:
    """The steps below `parent`, one after the other, each with its queue and run inside it."""
    found = [span for span in spans if span.name == "step" and span.parent == parent.id]
    assert [(span.said["outboard.step"], span.said["outboard.model"]) for span in found] == expected
    assert all(step.said["outboard.version"] == "1" and step.kind == INTERNAL for step in found)
    assert all(before.end <= after.start for before, after in pairwise([*found]))
    for step in found:
        assert parent.start <= step.start <= step.end <= parent.end
        inside = [span for span in spans if span.parent == step.id and span.name != "step"]
        assert [span.name for span in inside] == ["queue", "compute"]
        assert step.start <= inside[0].start <= inside[0].end <= inside[1].start <= inside[1].end <= step.end
    return found


def pipeline_by(ways: Ways, way: str, model: str, header: str) -> None:
    """Asks it once."""
    if way == "http":
        ways.post(f"/v2/models/{model}/infer", BODY, header)
        return
    if way == "worker":
        ways.post(f"/v1/models/{model}/predictions", json.dumps({"inputs": {"x": [[1, 2]]}}), header)
        return
    protocol, _, stream = way.partition(" ")
    with Client(f"{protocol}://{ways.up[protocol]}") as client, contextlib.suppress(ServingError):
        if stream:
            list(client.stream(model, {"x": X}, traceparent=header))
        else:
            client.infer(model, {"x": X}, traceparent=header)


WAYS = ["http", "worker", "grpc", "thrift", "grpc stream"]


def by_each_way(ways: Ways, model: str, computes: int) -> Iterator[tuple[str, Got, list[Got]]]:
    """(way, the inference, the whole trace) of one request over each; `computes`: spans of runs in it."""
    traces = {way: fresh() for way in WAYS}
    for way, (_, header) in traces.items():  # all of them before the first is waited for
        pipeline_by(ways, way, model, header)
    for way, (trace, _) in traces.items():
        eventually(lambda trace=trace: len([s for s in ways.got.whole(trace) if s.name == "compute"]) >= computes, f"{way} {model}")  # type: ignore[misc]
        if way in ("http", "worker"):
            eventually(lambda trace=trace: any(s.kind == SERVER for s in ways.got.whole(trace)), f"{way} {model}")  # type: ignore[misc]
        spans = ways.got.whole(trace)
        (inference,) = (span for span in spans if span.name == "inference")
        yield way, inference, spans


def test_a_pipeline_has_a_span_for_each_step(ways: Ways) -> None:
    for way, inference, spans in by_each_way(ways, "chain", 3):
        check_steps(spans, inference, STEPS)
        assert len(spans) == 9 + (inference.service == "outboard-gateway"), way
        assert not inference.error


def test_a_pipeline_in_a_pipeline(ways: Ways) -> None:
    for _, inference, spans in by_each_way(ways, "outer", 4):
        (chain,) = check_steps(spans, inference, [("chain", "chain")])
        check_steps(spans, chain, STEPS)


def test_a_pipeline_that_fails_says_in_which_step(ways: Ways) -> None:
    for _, inference, spans in by_each_way(ways, "broken", 3):
        assert inference.error == "model_failed"
        first, second = (span for span in spans if span.name == "step")
        assert (first.error, second.error, second.said["outboard.model"]) == ("", "model_failed", "failing")
        (ran,) = (span for span in spans if span.parent == second.id and span.name == "compute")
        assert ran.end - ran.start >= 10_000_000, "it failed after this time in the model"


def test_a_failure_has_its_queue_and_run_where_they_are_known(ways: Ways) -> None:
    for way, inference, spans in by_each_way(ways, "failing", 1):
        (queue,), (compute,) = ([span for span in spans if span.name == name] for name in ("queue", "compute"))
        assert inference.error == "model_failed" and not compute.error and compute.end - compute.start >= 10_000_000, way
        assert queue.parent == compute.parent == inference.id


def test_what_is_told_of_a_stream(ways: Ways) -> None:
    traces = {(way, fail): fresh() for way in ("http", "grpc", "thrift") for fail in (-1, 3, 0)}
    for (way, fail), (_, header) in traces.items():
        ask_tokens(ways, way, header, 5, fail=fail)
    for (way, fail), (trace, _) in traces.items():
        spans = ways.spans(trace, 4 if way == "http" else 3)
        inference = spans["inference"]
        assert inference.error == ("" if fail < 0 else "model_failed")
        assert inference.said["outboard.answers"] == str(fail if fail >= 0 else 5)
        if fail:
            assert 0 < int(inference.said["outboard.first_answer_us"]) * 1000 <= inference.end - inference.start
        else:
            assert "outboard.first_answer_us" not in inference.said
        assert "outboard.answers" not in spans["compute"].said


def ask_tokens(ways: Ways, way: str, header: str, count: int, **parameters: int) -> None:
    if way == "http":
        body = {"count": count, "parameters": {name: str(value) for name, value in parameters.items()}}
        ways.post("/v2/models/tokens/generate_stream", json.dumps(body), header)
        return
    with Client(f"{way}://{ways.up[way]}") as client, contextlib.suppress(ServingError):
        told = {name: str(value) for name, value in parameters.items()}
        list(client.stream("tokens", {"count": np.int32([count])}, traceparent=header, parameters=told))


def test_exported_spans_are_counted(ways: Ways) -> None:
    with closing(HTTPConnection(urlsplit(ways.up["metrics"]).netloc, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        samples = parse(connection.getresponse().read().decode())
    assert samples["outboard_trace_spans_total", frozenset({("result", "exported")})] > 0
    assert samples["outboard_trace_spans_total", frozenset({("result", "dropped")})] == 0


def test_over_rpc_the_server_continues_the_gateways_span(tmp_path: Path) -> None:
    times(tmp_path / "models" / "m" / "1" / "model.onnx", 2)
    (tmp_path / "models" / "m" / "model.toml").write_text("public = true\n")
    with collector() as got:
        server = start_server(tmp_path / "models", tmp_path, OUTBOARD_SERVER_TRACE_ENDPOINT=got.address)
        app = create_app(Settings(data_dir=tmp_path / "data", model_hosts=(f"thrift://{server['thrift']}",), trace_endpoint=got.address))
        try:
            trace, header = fresh()
            assert app.test_client().post("/v2/models/m/infer", data=BODY, headers={"Traceparent": header}).status_code == 200
        finally:
            app.extensions["outboard"].close()
            assert server.stop() == 0
        spans = got.of(trace)
        assert spans["inference"].parent == spans["POST /v2/models/<model>/infer"].id
        assert spans["POST /v2/models/<model>/infer"].service == "outboard-gateway"
        check(spans, "outboard-server", SERVER)
