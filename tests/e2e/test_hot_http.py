"""Inference over HTTP as it runs: nginx, the gateway's event loops, a model's own process; and what happens where one of them is away."""

import http.client
import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from inference_client import Client
from tests.eventually import eventually
from tests.gateway.test_metrics import parse, value
from tests.needs import needs
from tests.onnx_models import identity, slow, times
from tests.processes import Process, alive, executors, start_up, stopped, wait_until_gone

pytestmark = needs("nginx")
INFER = "/v2/models/m/infer"
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("hot")
    times(folder / "models" / "m" / "1" / "model.onnx", 2)
    identity(folder / "models" / "same" / "1" / "model.onnx")
    slow(folder / "models" / "slow" / "1" / "model.onnx", 1000)
    made = start_up(folder / "data", "--no-demo", "--models", str(folder / "models"), OUTBOARD_GATEWAY_HOT_PROCESSES="2")
    made.addresses["data"] = str(folder / "data")
    eventually(lambda: ask(made, INFER, BODY)[0] == 200, "it serves")
    yield made
    assert made.stop() == 0, made.log.read_text()


def connect(up: Process, timeout_s: float = 30) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(up["http"]).netloc, timeout=timeout_s)


def ask(up: Process, path: str, body: bytes, method: str = "POST", **headers: str) -> tuple[int, dict[str, str], bytes]:
    with closing(connect(up)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): text for name, text in answer.headers.items()}, answer.read()


def data(answer: tuple[int, dict[str, str], bytes]) -> object:
    assert answer[0] == 200, answer
    return json.loads(answer[2])["outputs"][0]["data"]


def processes(up: Process, event: str) -> list[int]:
    """Of the gateway, by what its log says of their start; those that replaced others last."""
    lines = (Path(up["data"]) / "logs" / "gateway.log").read_text().rpartition("\n")[0].splitlines()  # the last may be half there
    return [json.loads(line)["pid"] for line in lines if f'"{event}"' in line]


def is_known_to_a_loop(up: Process) -> bool:
    """Whether a loop answers, while no worker does."""
    with closing(connect(up, 0.5)) as connection:
        try:
            connection.request("POST", INFER, BODY)
            return connection.getresponse().status == 200
        except TimeoutError:
            return False


def test_no_worker_is_needed(up: Process) -> None:
    with stopped(set(processes(up, "gateway_worker_ready"))):
        eventually(lambda: all(is_known_to_a_loop(up) for _ in range(4)), "both loops know the model", 30)
        status, headers, body = ask(up, INFER, BODY, X_Request_Id="mine")
    assert (status, headers["x-request-id"], headers["content-type"]) == (200, "mine", "application/json")
    assert json.loads(body)["outputs"][0]["data"] == [2.0, 4.0]
    assert "x-accel-redirect" not in headers


def test_what_the_event_loops_hand_back(up: Process) -> None:
    values = [float(number) for number in range(20_000)]
    large = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(values)], "data": values}]}).encode()
    assert len(large) > 60_000
    assert data(ask(up, "/v2/models/same/infer", large)) == values
    assert data(ask(up, "/v2//models/m/infer", BODY)) == data(ask(up, f"{INFER}?a=b", BODY)) == [2.0, 4.0]
    assert ask(up, INFER, b"", "GET")[0] == 405
    status, headers, _ = ask(up, "/v2/models/nobody/infer", BODY)
    assert (status, headers["outboard-code"]) == (404, "model_not_found")
    assert ask(up, INFER, b"")[1]["outboard-code"] == "invalid_input"
    with closing(connect(up)) as connection:
        connection.request("POST", INFER, iter([BODY[:10], BODY[10:]]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
        assert json.loads(connection.getresponse().read())["outputs"][0]["data"] == [2.0, 4.0]


def test_everybodys_requests_are_counted_once(up: Process) -> None:
    def count() -> float:
        samples = parse(ask(up, "/metrics", b"", "GET")[2].decode())
        return value(samples, "requests_total", endpoint="/v2/models/<model>/infer", method="POST", status="200")

    before = count()
    for _ in range(10):
        ask(up, INFER, BODY)
    assert count() == before + 10


def test_a_caller_that_goes_away_is_not_served(up: Process) -> None:
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}).encode()

    def in_flight() -> float:
        return value(parse(ask(up, "/metrics", b"", "GET")[2].decode()), "requests_in_flight")

    others = in_flight()
    ask(up, "/v2/models/slow/infer", body)
    with Client(f"thrift://{up['thrift']}") as host, closing(connect(up)) as first:
        before = host.model_statistics("slow")[0].success.count
        gone = [connect(up) for _ in range(5)]
        with stopped(executors(up.process.pid, "slow")):  # so that none of them is run before it has gone
            # a loop knows a model for two seconds after it was asked of it; else it goes to a worker, who cannot see that its caller has gone
            assert {ask(up, "/v2/models/slow/infer", b"[]")[0] for _ in range(8)} == {400}
            eventually(lambda: in_flight() == others, "they have ended")
            first.request("POST", "/v2/models/slow/infer", body)
            for connection in gone:
                connection.request("POST", "/v2/models/slow/infer", body)
            # nginx does not see the end of a connection that comes together with its request
            eventually(lambda: in_flight() - others == 6, "all are asked")
            for connection in gone:
                connection.close()
            eventually(lambda: in_flight() - others == 1, "their going is noticed")
        assert first.getresponse().status == 200
        ask(up, "/v2/models/slow/infer", body)
        # the first, the last one, and at most the one that was next in the queue
        assert host.model_statistics("slow")[0].success.count - before <= 3


def test_event_loops_that_are_killed_come_back(up: Process) -> None:
    for pid in processes(up, "gateway_front_ready")[-2:]:
        os.kill(pid, signal.SIGKILL)
    status, headers, body = ask(up, INFER, BODY)
    assert status == 200 or (status, headers["outboard-code"], json.loads(body).keys()) == (503, "unavailable", {"error"})
    eventually(lambda: ask(up, INFER, BODY)[0] == 200, "they are back")


def test_one_event_loop_is_enough(up: Process) -> None:
    eventually(lambda: len(alive(set(processes(up, "gateway_front_ready")))) == 2, "both are there")
    pid = min(alive(set(processes(up, "gateway_front_ready"))))
    os.kill(pid, signal.SIGKILL)
    assert not wait_until_gone({pid})
    assert {ask(up, INFER, BODY)[0] for _ in range(50)} == {200}
