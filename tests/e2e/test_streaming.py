"""Streams of answers over every way in, with the official client and ours: through nginx and uWSGI as everything else."""

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.grpc as triton

from inference_client import Client, Code, ServingError
from tests.eventually import eventually
from tests.needs import needs
from tests.onnx_models import times
from tests.processes import Process, alive, start_up
from tests.python_models import TOKENS_TOML, python_model, tokens

COUNT = {"count": np.int32([5])}
PACED = """
import time
def infer(inputs, parameters):
    for number in range(int(inputs["count"][0])):
        time.sleep(float(parameters.get("pause", 0)))
        if int(parameters.get("fail", -1)) == number: raise ValueError("at once")
        yield {"token": [f"t{number}"]}
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("streams")
    tokens(folder / "models" / "tokens")
    tokens(folder / "models" / "counted")
    python_model(folder / "models" / "paced", PACED, TOKENS_TOML)
    python_model(folder / "models" / "private", PACED, "public = false\n" + TOKENS_TOML)
    times(folder / "models" / "m" / "1" / "model.onnx", 2)
    made = start_up(folder / "data", "--no-demo", "--models", str(folder / "models"))
    made.addresses["data"] = str(folder / "data")
    yield made
    assert made.stop() == 0, made.log.read_text()


def texts(results: Any) -> list[str]:
    return [result.outputs["token"][0].decode() for result in results]


@pytest.fixture(params=["grpc", "thrift", "lane"])
def client(up: Process, request: pytest.FixtureRequest) -> Iterator[Client]:
    socket_path = Path(up["data"]) / "run" / "thrift.sock"
    address = {"grpc": f"grpc://{up['grpc']}", "thrift": f"thrift://{up['thrift']}", "lane": f"thrift+unix://{socket_path}"}
    with Client(address[request.param]) as made:
        yield made


def test_our_client_over_each_protocol(client: Client) -> None:
    for count in (0, 5, 2000):
        with client.stream("tokens", {"count": np.int32([count])}, parameters={"word": "w"}, request_id="r-7") as answers:
            found = list(answers)
        assert texts(found) == [f"w{number}" for number in range(count)]
        assert {answer.id for answer in found} <= {"r-7"}
    (only,) = client.stream("m", {"x": np.float32([[1, 2]])})
    assert only.outputs["y"].tolist() == [[2, 4]]


def test_our_client_hears_of_errors_and_deadlines(client: Client) -> None:
    with pytest.raises(ServingError) as caught:
        client.stream("nobody", COUNT)
    assert caught.value.code is Code.MODEL_NOT_FOUND
    with pytest.raises(ServingError) as caught, client.stream("paced", COUNT, parameters={"fail": 3, "pause": 0.02}) as answers:
        for number, _ in enumerate(answers):
            assert number < 3
    assert caught.value.code is Code.MODEL_FAILED and "ValueError: at once" in caught.value.message
    with pytest.raises(ServingError) as caught, client.stream("paced", COUNT, parameters={"pause": 0.2}, timeout_s=0.5) as answers:
        list(answers)
    assert caught.value.code is Code.DEADLINE_EXCEEDED


def test_the_first_answer_takes_little_longer_than_in_the_model(client: Client) -> None:
    """At most 1.2 times what the model itself needs for it, which is 0.1 s here."""
    took = []
    for _ in range(7):
        begun = time.monotonic()
        with client.stream("paced", {"count": np.int32([1])}, parameters={"pause": 0.1}) as answers:
            next(answers)
            took.append(time.monotonic() - begun)
    assert sorted(took)[3] < 0.12, took


def test_our_client_gives_up_in_the_middle(client: Client, up: Process) -> None:
    for _ in range(5):
        with client.stream("tokens", {"count": np.int32([100_000])}) as answers:
            assert texts([next(answers), next(answers)]) == ["t0", "t1"]
    until_nothing_is_inside(up, "tokens")


def in_flight(up: Process, model: str) -> int:
    with Client(f"grpc://{up['grpc']}") as operator:
        return next(each.in_flight for each in operator.capacity().models if each.name == model)


def until_nothing_is_inside(up: Process, model: str) -> None:
    eventually(lambda: in_flight(up, model) == 0, "nothing is left inside", every_s=0.02)


# the official client ---------------------------------------------------------------------------------------------------------------


class Replies:
    """What an official stream calls back with."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.more = threading.Condition()

    def __call__(self, result: Any, error: Any) -> None:
        with self.more:
            self.found.append(error if error is not None else result)
            self.more.notify_all()

    def wait(self, count: int) -> list[Any]:
        with self.more:
            assert self.more.wait_for(lambda: len(self.found) >= count, 20), self.found
        return self.found


def asked(count: int) -> list[Any]:
    tensor = triton.InferInput("count", [1], "INT32")
    tensor.set_data_from_numpy(np.int32([count]))
    return [tensor]


def test_the_official_client_streams(up: Process) -> None:
    with closing(triton.InferenceServerClient(up["grpc"])) as client:
        replies = Replies()
        client.start_stream(replies)
        for number in range(3):
            client.async_stream_infer("tokens", asked(4), request_id=f"r{number}", parameters={"word": f"{number}-"})
        found = replies.wait(12)
        assert [(each.get_response().id, each.as_numpy("token")[0].decode()) for each in found] == [
            (f"r{number}", f"{number}-{turn}") for number in range(3) for turn in range(4)
        ]
        client.async_stream_infer("nobody", asked(1), request_id="lost")
        client.async_stream_infer("m", [_plain()], request_id="one")
        *_, error, one = replies.wait(14)
        assert "not in the repository" in error.message()
        assert one.as_numpy("y").tolist() == [[2, 4]], "the stream goes on after an error"
        client.stop_stream()


def test_the_official_client_asks_for_errors_as_the_calls_status(up: Process) -> None:
    """Over nginx, and over grpcio behind it."""
    front = f"unix://{Path(up['data']) / 'run' / 'grpc-front' / 'grpcio.sock'}"
    for address in (up["grpc"], front):
        found: list[Any] = []
        with closing(triton.InferenceServerClient(address)) as official:
            official.start_stream(lambda result, error, found=found: found.append((result, error)), headers={"triton_grpc_error": "true"})
            asked = triton.InferInput("count", [1], "INT32")
            asked.set_data_from_numpy(COUNT["count"])
            official.async_stream_infer("paced", [asked], parameters={"fail": "1"})
            eventually(lambda found=found: any(error for _, error in found), "the error")
            official.stop_stream()
        error = next(error for _, error in found if error is not None)
        assert error.status() == "StatusCode.INTERNAL" and "ValueError: at once" in error.message(), error
    server_log = (Path(up["data"]) / "logs" / "server.log").read_text()
    assert "internal error" not in server_log


def test_the_official_client_is_told_which_is_the_last(up: Process) -> None:
    with closing(triton.InferenceServerClient(up["grpc"])) as client:
        replies = Replies()
        client.start_stream(replies)
        client.async_stream_infer("tokens", asked(2), enable_empty_final_response=True)
        *answers, last = replies.wait(3)
        assert [each.as_numpy("token")[0] for each in answers] == [b"t0", b"t1"]
        assert last.get_response().parameters["triton_final_response"].bool_param and not last.get_response().outputs
        client.stop_stream()


def test_every_face_counts_the_answers_by_their_place(up: Process) -> None:
    """As the official client reads them: 0 and 1 twice, 2 once; each stream ends after its last answer."""
    with closing(triton.InferenceServerClient(up["grpc"])) as client:
        replies = Replies()
        client.start_stream(replies)
        for count in (2, 3):
            client.async_stream_infer("counted", asked(count), enable_empty_final_response=True)
        replies.wait(7)
        (told,) = client.get_inference_statistics("counted").model_stats
    assert told.inference_stats.success.count == 2
    found = {key: (each.success.count, each.empty_response.count) for key, each in told.response_stats.items()}
    assert found == {"0": (2, 0), "1": (2, 0), "2": (1, 1), "3": (0, 1)}
    second = told.response_stats["2"]
    assert (second.compute_infer.count, second.compute_output.count, second.fail.count, second.cancel.count) == (2, 1, 0, 0)
    connection = http.client.HTTPConnection(urlsplit(up["http"]).netloc, timeout=30)
    connection.request("GET", "/v2/models/counted/stats")
    (over_http,) = json.loads(connection.getresponse().read())["model_stats"]
    connection.close()
    durations = ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")
    assert over_http["response_stats"] == {
        key: {name: {"count": getattr(each, name).count, "ns": getattr(each, name).ns} for name in durations}
        for key, each in told.response_stats.items()
    }
    with Client(f"grpc://{up['grpc']}") as ours, Client(f"thrift://{up['thrift']}") as thrift:
        (entry,) = ours.model_statistics("counted")
        assert [each.key for each in entry.responses] == ["0", "1", "2", "3"]
        assert thrift.model_statistics("counted")[0].responses == entry.responses
        assert ours.model_statistics("m")[0].responses == ()


def test_the_official_client_cancels(up: Process) -> None:
    with closing(triton.InferenceServerClient(up["grpc"])) as client:
        replies = Replies()
        client.start_stream(replies)
        client.async_stream_infer("paced", asked(100_000), parameters={"pause": 0.001})
        replies.wait(3)
        client.stop_stream(cancel_requests=True)
    until_nothing_is_inside(up, "paced")


def _plain() -> Any:
    tensor = triton.InferInput("x", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.float32([[1, 2]]))
    return tensor


# HTTP ------------------------------------------------------------------------------------------------------------------------------


def post(up: Process, path: str, body: Any, timeout_s: float = 30, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(up["http"]).netloc, timeout=timeout_s)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
    return connection.getresponse()


def events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    while line := response.readline():
        if line.strip():
            assert line.startswith(b"data: "), line
            yield json.loads(line[6:])


def test_generate_gives_one_answer_and_says_where_there_are_more(up: Process) -> None:
    answer = post(up, "/v2/models/tokens/generate", {"count": 1, "word": "w", "id": "r-1"})
    assert answer.status == 200
    assert json.loads(answer.read()) == {"model_name": "tokens", "model_version": "1", "id": "r-1", "token": "w0"}
    answer = post(up, "/v2/models/tokens/versions/1/generate", {"count": [2], "parameters": {"word": "w"}})
    assert (answer.status, answer.headers["Outboard-Code"]) == (501, "unsupported")
    answer = post(up, "/v2/models/m/generate", {"x": [1, 2.5]})
    assert json.loads(answer.read())["y"] == [2, 5]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "input 'count' is missing; model 'tokens' takes 'count'"),
        ({"count": "a"}, "input 'count' is INT32 and has an element that is a text"),
        ({"count": [1, 2]}, "input 'count' has shape [2], the model takes [1]"),
        ({"count": 1, "other": [1]}, "'other' is neither an input of the model nor a text, a number, or true or false"),
        ({"count": 1, "parameters": 3}, "parameters is not an object"),
        ([1], "the body is not a JSON object"),
        ({"count": 1, "id": "\ud800"}, "id has a text that is not Unicode"),
        ({"count": 1, "word": "\udfff"}, "the parameter 'word' has a text that is not Unicode"),
        ({"count": 1, "parameters": {"\ud800": 1}}, "the name of a parameter has a text that is not Unicode"),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
def test_what_is_wrong_is_said_before_anything_runs(up: Process, verb: str, body: Any, words: str) -> None:
    answer = post(up, f"/v2/models/tokens/{verb}", body)
    assert (answer.status, answer.headers["Outboard-Code"], answer.headers["Content-Type"]) == (400, "invalid_input", "application/json")
    assert words in json.loads(answer.read())["error"]


def test_events_come_as_they_are_made(up: Process) -> None:
    begun = time.monotonic()
    response = post(up, "/v2/models/paced/generate_stream", {"count": 5, "pause": 0.2})
    assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    assert response.headers["X-Request-Id"]
    arrived = []
    for number, event in enumerate(events(response)):
        assert event["token"] == f"t{number}"
        arrived.append(time.monotonic() - begun)
    assert len(arrived) == 5 and arrived[0] < 0.2 + 0.5 and arrived[4] - arrived[0] > 0.6, arrived


def test_an_error_in_the_middle_is_an_event(up: Process) -> None:
    found = list(events(post(up, "/v2/models/paced/generate_stream", {"count": 5, "fail": 2, "pause": 0.05})))
    assert [event.get("token") for event in found] == ["t0", "t1", None]
    assert found[2]["code"] == "model_failed" and "ValueError: at once" in found[2]["error"]
    assert post(up, "/v2/models/paced/generate_stream", {"count": 5, "fail": 0}).status == 500


def test_a_private_model_wants_a_token(up: Process) -> None:
    assert post(up, "/v2/models/private/generate_stream", {"count": 1}).status == 401
    assert post(up, "/v2/models/private/generate_stream", {"count": 1}, Authorization="Bearer nonsense").status == 401
    assert post(up, "/v2/models/nobody/generate_stream", {"count": 1}).status == 404


def test_a_description_that_is_too_long_is_the_callers_fault(up: Process) -> None:
    for verb in ("generate", "generate_stream"):
        answer = post(up, f"/v2/models/tokens/{verb}", {"count": 1, "word": "x" * 130_000})
        assert answer.status == 413 and "the names, shapes and parameters of the request have" in json.loads(answer.read())["error"]


@needs("nginx")
def test_a_stream_that_is_cut_off_does_not_look_as_if_it_had_ended(up: Process) -> None:
    """The process in front of the model dies: its readers see a body that breaks off, by thread and in the event loop."""
    for _ in range(2):
        response = post(up, "/v2/models/paced/generate_stream", {"count": 1000, "pause": 0.02})
        assert next(events(response))["token"] == "t0"
        (front,) = {int(line["pid"]) for line in gateway_log(up) if line["event"] == "gateway_front_ready" and alive([int(line["pid"])])}
        os.kill(front, signal.SIGKILL)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        until_nothing_is_inside(up, "paced")
        eventually(lambda: post(up, "/v2/models/tokens/generate_stream", {"count": 1}).status == 200, "the next one is there", every_s=0.02)


def gateway_log(up: Process) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (Path(up["data"]) / "logs" / "gateway.log").read_text().rpartition("\n")[0].splitlines()
        if line.startswith("{")
    ]


@needs("nginx")
def test_no_more_streams_than_the_setting_says(tmp_path: Path) -> None:
    python_model(tmp_path / "models" / "paced", PACED, TOKENS_TOML)
    up = start_up(tmp_path / "data", "--no-demo", "--models", str(tmp_path / "models"), OUTBOARD_GATEWAY_MAX_STREAMS="3")
    try:
        post(up, "/v2/models/paced/generate_stream", {"count": 1}).read()
        open_ones = [post(up, "/v2/models/paced/generate_stream", {"count": 1000, "pause": 0.01}) for _ in range(3)]
        refused = post(up, "/v2/models/paced/generate_stream", {"count": 1})
        assert refused.status == 429 and "3 streams are open already" in json.loads(refused.read())["error"]
        open_ones[0].close()
        eventually(lambda: post(up, "/v2/models/paced/generate_stream", {"count": 1}).status == 200, "there is a place again", every_s=0.02)
    finally:
        for each in open_ones:
            each.close()
        assert up.stop() == 0


@needs("nginx")
def test_who_goes_away_ends_the_model(up: Process) -> None:
    response = post(up, "/v2/models/paced/generate_stream", {"count": 100_000, "pause": 0.01})
    assert next(events(response))["token"] == "t0"
    assert in_flight(up, "paced") == 1
    response.close()
    until_nothing_is_inside(up, "paced")


@needs("nginx")
def test_a_slow_reader_slows_its_own_stream_only(up: Process) -> None:
    where = urlsplit(up["http"])
    body = json.dumps({"count": 100_000, "word": "x" * 3000}).encode()
    with socket.create_connection((where.hostname or "", where.port or 0)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"POST /v2/models/tokens/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert slow.recv(1000)
        for _ in range(3):
            assert len(list(events(post(up, "/v2/models/tokens/generate_stream", {"count": 100})))) == 100
        assert post(up, "/v2/models/tokens/generate", {"count": 1}).status == 200
        assert in_flight(up, "tokens") == 1
    until_nothing_is_inside(up, "tokens")


@needs("nginx")
def test_a_hundred_streams_of_a_thousand_tokens(up: Process) -> None:
    where, body = urlsplit(up["http"]), b'{"count": 1000}'
    head = b"POST /v2/models/tokens/generate_stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with contextlib.ExitStack() as opened:
        poll, said = select.epoll(), {}
        for _ in range(100):
            sock = opened.enter_context(socket.create_connection((where.hostname or "", where.port or 0)))
            sock.sendall(head + body)
            poll.register(sock.fileno(), select.EPOLLIN)
            said[sock.fileno()] = (sock, bytearray())
        left = len(said)
        while left:
            ready = poll.poll(60)
            assert ready, "they stand still"
            for descriptor, _ in ready:
                sock, text = said[descriptor]
                piece = sock.recv(1 << 16)
                text += piece
                if not piece:
                    poll.unregister(descriptor)
                    left -= 1
        poll.close()
    expected = [b"t%d" % number for number in range(1000)]
    assert all(re.findall(rb'"token":"(t[0-9]+)"', text) == expected for _, text in said.values())
