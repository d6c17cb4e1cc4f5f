"""The event loop behind nginx, spoken to as nginx speaks: what it answers, what it hands back, and what it does with bad company."""

import contextlib
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.context import Services
from gateway.metrics import Metrics
from gateway.models_rpc import Models
from gateway.operations.v2_messages import HEADER_LENGTH
from idl.codes import Code
from inference_client import Client
from tests.eventually import eventually
from tests.gateway import through_front
from tests.gateway.model_host import Served
from tests.gateway.test_metrics import parse, value
from tests.gateway.through_front import UnixConnection
from tests.onnx_models import slow, times
from tests.processes import Process, executors, start_server, stopped

ENDPOINT = "/v2/models/<model>/infer"


def tensor(*values: float) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(values)], "data": list(values)}]}).encode()


PAIR = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def declined(self) -> bool:
        return self.headers.get("X-Accel-Redirect") == "@gateway"

    @property
    def data(self) -> Any:
        return json.loads(self.body)["outputs"][0]["data"]


@dataclass(frozen=True)
class Fronted:
    """A front over a model host."""

    services: Services
    path: Path

    def ask(self, model: str, body: bytes, request_id: str = "r-1", **headers: str) -> Answer:
        connection = UnixConnection(self.path)
        fields = {name.replace("_", "-"): text for name, text in headers.items()}
        try:
            connection.request("POST", f"/{request_id}/v2/models/{model}/infer", body, {"Host": "outboard", **fields})
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers.items()), response.read())
        finally:
            connection.close()

    def answer(self, model: str, body: bytes, **headers: str) -> Answer:
        """Once the front knows the model and the token."""
        answers: list[Answer] = []

        def answered() -> bool:
            answers.append(self.ask(model, body, **headers))
            return not answers[-1].declined

        eventually(answered, f"the front does not learn what it needs to answer for {model}")
        return answers[-1]

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30)
        sock.connect(str(self.path))
        return sock

    def send(self, model: str, body: bytes) -> socket.socket:
        """A request whose answer is still to come."""
        sock = self.connect()
        sock.sendall(request(model, body))
        return sock

    def counted(self, name: str, **labels: str) -> float:
        return value(parse(self.services.metrics.render().decode()), name, **labels)


def request(model: str, body: bytes) -> bytes:
    return b"POST /r-1/v2/models/%b/infer HTTP/1.1\r\nHost: outboard\r\nContent-Length: %d\r\n\r\n%b" % (model.encode(), len(body), body)


def over(services: Services, socket_path: str) -> Services:
    return replace(services, models=Models([f"thrift+unix://{socket_path}"], Client), metrics=Metrics())


@pytest.fixture
def front(served: Served, host: Process, tmp_path: Path) -> Iterator[Fronted]:
    services = over(served.services, host["socket"])
    with through_front.running(services, tmp_path / "front", f"{host['socket']}.lane"):
        yield Fronted(services, tmp_path / "front")
    services.models.close()


class TestAnswers:
    def test_are_what_the_workers_answer(self, front: Fronted, served: Served) -> None:
        for accept in ({}, {"Accept-Encoding": "gzip"}):
            ours = front.answer("same-FP32", tensor(*range(500)), request_id="mine", **accept)
            theirs = served.plain.test_client().post(
                "/v2/models/same-FP32/infer", data=tensor(*range(500)), headers={"X-Request-Id": "mine", **accept}
            )
            assert (ours.status, ours.headers.pop("Content-Length") != "0") == (theirs.status_code, True)
            assert ours.headers == {name: text for name, text in theirs.headers.items() if name != "Content-Length"}
            plain = (gzip.decompress if accept else bytes)(ours.body), (gzip.decompress if accept else bytes)(theirs.data)
            assert json.loads(plain[0])["outputs"] == json.loads(plain[1])["outputs"]

    def test_refusals_are_what_the_workers_answer(self, front: Fronted, served: Served) -> None:
        front.answer("same-FP32", tensor(1))
        bodies = [b"x", b"[]", tensor("a"), PAIR.replace(b"FP32", b"FP64"), PAIR.replace(b'"x"', b'"z"')]  # type: ignore[arg-type]
        for body in bodies:
            ours = front.ask("same-FP32", body)
            theirs = served.plain.test_client().post("/v2/models/same-FP32/infer", data=body, headers={"X-Request-Id": "r-1"})
            assert (ours.status, ours.body) == (theirs.status_code, theirs.data)
            assert ours.headers == dict(theirs.headers.items())

    def test_an_answer_that_a_thread_writes(self, front: Fronted) -> None:
        assert front.answer("grows", tensor(2.5)).data == [2.5] * 100_000

    def test_a_binary_answer_larger_than_a_socket_takes_at_once(self, front: Fronted) -> None:
        head = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [2.5]}], "parameters": {"binary_data_output": True}}
        answer = front.answer("grows", json.dumps(head).encode())
        assert answer.body[int(answer.headers[HEADER_LENGTH]) :] == b"\0\0\x20\x40" * 100_000

    def test_many_at_once_on_kept_connections(self, front: Fronted) -> None:
        front.answer("same-FP32", tensor(1))

        def caller(number: int) -> None:
            with front.connect() as sock:
                for turn in range(50):
                    sock.sendall(request("same-FP32", tensor(number, turn)))
                    received = b""
                    while not received.endswith(b"}]}"):
                        received += sock.recv(10_000)
                    assert f'"data":[{number}.0,{turn}.0]'.encode() in received

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(caller, range(16)))
        assert front.counted("requests_total", endpoint=ENDPOINT, method="POST", status="200") >= 16 * 50
        assert front.counted("requests_in_flight") == 0


class TestHandsBack:
    def test_what_it_does_not_know_yet_and_never_learns(self, front: Fronted) -> None:
        assert front.ask("triple", PAIR).declined
        assert front.answer("triple", PAIR).data == [3.0, 6.0]
        for _ in range(3):
            assert front.ask("nobody", PAIR).declined
            assert front.ask("unloaded", PAIR).declined

    def test_what_is_not_plain(self, front: Fronted) -> None:
        front.answer("triple", PAIR)
        assert front.ask("triple", gzip.compress(PAIR), Content_Encoding="gzip").declined
        assert front.ask("triple", bytes(8), **{HEADER_LENGTH: "0"}).declined
        assert front.ask("triple", b"").declined
        assert front.ask("tri%70le", PAIR).declined
        for line in (b"GET /r/v2/models/triple/infer", b"POST /r/v2", b"POST /r/v1/models/triple/predictions"):
            with front.connect() as sock:
                sock.sendall(line + b" HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
                assert b"@gateway" in sock.recv(1000)

    def test_is_counted_by_nobody(self, front: Fronted) -> None:
        front.ask("nobody", PAIR)
        assert "nobody" not in front.services.metrics.render().decode() and front.counted("requests_in_flight") == 0
        assert front.counted("requests_total", endpoint=ENDPOINT, method="POST", status="404") == 0


class TestTokens:
    def test_a_private_model(self, front: Fronted, served: Served) -> None:
        assert front.answer("secret", PAIR).status == 401
        answer = front.answer("secret", PAIR, **served.user)
        assert (answer.status, answer.data) == (200, [2.0, 4.0])
        assert front.ask("secret", PAIR, Authorization="Bearer nonsense").declined

    def test_a_session_that_ended_is_not_remembered(self, front: Fronted, served: Served) -> None:
        issued = served.services.tokens.sign_in("somebody", "another long password", "127.0.0.1")
        header = {"Authorization": f"Bearer {issued.access_token}"}
        assert front.answer("secret", PAIR, **header).status == 200
        served.services.tokens.sign_out(served.services.tokens.authenticate(issued.access_token))
        assert front.ask("secret", PAIR, **header).declined, "and the workers say why"

    def test_another_scheme(self, front: Fronted) -> None:
        assert front.ask("triple", PAIR, Authorization="Basic YTpi").status == 401


@pytest.fixture(scope="module")
def slow_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One model that takes a while."""
    folder = tmp_path_factory.mktemp("slow")
    slow(folder / "models" / "slow" / "1" / "model.onnx", 1000)
    times(folder / "models" / "triple" / "1" / "model.onnx", 3)
    made = start_server(folder / "models", folder, "--thrift-socket", str(folder / "t"))
    made.addresses["socket"] = str(folder / "t")
    yield made
    assert made.stop() == 0, made.log.read_text()


@pytest.fixture
def busy(served: Served, slow_host: Process, tmp_path: Path) -> Iterator[Fronted]:
    services = over(served.services, slow_host["socket"])
    made = Fronted(services, tmp_path / "front")
    with through_front.running(services, made.path, f"{slow_host['socket']}.lane"):
        services.models.renew_declaration("slow")
        services.models.renew_declaration("triple")
        yield made
    services.models.close()


def held(slow_host: Process) -> AbstractContextManager[None]:
    """While the slow model's process stands still: none of its requests is over before the test has seen what it waits for."""
    return stopped(executors(slow_host.process.pid, "slow"))


def successes(front: Fronted) -> int:
    return front.services.models.statistics("slow")[0].success.count


class TestWaiting:
    def test_slow_requests_hold_nobody_up(self, busy: Fronted, slow_host: Process) -> None:
        with held(slow_host):
            waiting = [busy.send("slow", tensor(number)) for number in range(20)]
            assert busy.answer("triple", PAIR).data == [3.0, 6.0], "before the first of the slow ones"
        assert b'"data":[0.0]' in waiting[0].recv(1000)
        for sock in waiting:
            sock.close()

    def test_who_goes_away_is_not_served(self, busy: Fronted, slow_host: Process) -> None:
        before = successes(busy)
        with held(slow_host):
            first = busy.send("slow", tensor(1))
            waiting = [busy.send("slow", tensor(number)) for number in range(10)]
            eventually(lambda: busy.counted("requests_in_flight") == 11, "all are asked")
            for sock in waiting:
                sock.close()
            gone = {"endpoint": ENDPOINT, "method": "POST", "status": "499"}
            eventually(lambda: busy.counted("requests_total", **gone) == 10, "their going is noticed")
        with first:
            assert b"200 OK" in first.recv(1000)
        busy.answer("slow", tensor(1))
        # those that had begun to run when their callers went were run; with a queue before them, that is one at most
        assert successes(busy) - before <= 3
        assert busy.counted("requests_in_flight") == 0

    def test_time_is_up(self, busy: Fronted) -> None:
        body = json.loads(tensor(1))
        with busy.send("slow", tensor(1)):
            answer = busy.ask("slow", json.dumps({**body, "parameters": {"timeout": 20_000}}).encode())
        assert (answer.status, answer.headers["Outboard-Code"]) == (504, Code.DEADLINE_EXCEEDED)

    def test_what_is_in_flight_is_finished_before_it_ends(self, served: Served, slow_host: Process, tmp_path: Path) -> None:
        services = over(served.services, slow_host["socket"])
        made = Fronted(services, tmp_path / "front")
        front = through_front.Front(services, made.path, f"{slow_host['socket']}.lane", 64 << 20)
        services.models.renew_declaration("slow")
        thread = threading.Thread(target=front.serve)
        thread.start()
        with contextlib.ExitStack() as opened:
            with held(slow_host):
                sock, idle = opened.enter_context(made.send("slow", tensor(7))), opened.enter_context(made.connect())
                eventually(lambda: made.counted("requests_in_flight") == 1, "it is asked")
                front.leave(30)
            assert b'"data":[7.0]' in sock.recv(1000)
            thread.join(30)
            assert not thread.is_alive() and idle.recv(1) == b"" and not made.path.exists()
        services.models.close()


class TestModelHosts:
    def test_one_that_was_killed_and_comes_back(self, served: Served, tmp_path: Path) -> None:
        times(tmp_path / "models" / "triple" / "1" / "model.onnx", 3)
        services = over(served.services, str(tmp_path / "t"))
        made = Fronted(services, tmp_path / "front")
        with through_front.running(services, made.path, f"{tmp_path / 't'}.lane"):
            assert made.ask("triple", PAIR).declined, "nobody is there yet"
            for _ in range(2):
                host = start_server(tmp_path / "models", tmp_path, "--thrift-socket", str(tmp_path / "t"))
                assert made.answer("triple", PAIR).data == [3.0, 6.0]
                host.process.kill()
                host.stop()
                eventually(lambda: made.ask("triple", PAIR).declined, "its end is noticed")
        services.models.close()


class TestBadCompany:
    @pytest.mark.parametrize(
        "sent",
        [
            b"\0" * 100 + b"\r\n\r\n",
            b"POST\r\n\r\n",
            b"POST /only HTTP/1.1\r\n\r\n",
            b"POST /r/v2/models/triple/infer HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"POST /r/v2/models/triple/infer HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST /r/v2/models/triple/infer HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n",
            b"POST /r/v2/models/triple/infer HTTP/1.1\r\nContent-Length: 1\r\n\r\n{}",
            b"x" * 70_000,
        ],
    )
    def test_is_shown_the_door(self, front: Fronted, sent: bytes) -> None:
        with front.connect() as sock:
            sock.sendall(sent)
            assert sock.recv(1000) == b""
        assert front.answer("triple", PAIR).status == 200

    def test_two_requests_at_once(self, busy: Fronted, slow_host: Process) -> None:
        with held(slow_host), busy.send("slow", tensor(1)) as sock:
            eventually(lambda: busy.counted("requests_in_flight") == 1, "it is asked")
            sock.sendall(request("slow", tensor(1)))
            assert sock.recv(1000) == b""
        eventually(lambda: busy.counted("requests_in_flight") == 0, "it is given up")

    def test_a_request_in_pieces(self, front: Fronted) -> None:
        front.answer("triple", PAIR)
        with front.connect() as sock:
            for byte in request("triple", PAIR):
                sock.sendall(bytes([byte]))
            assert b'"data":[3.0,6.0]' in sock.recv(1000)
            sock.sendall(request("triple", PAIR)[:-1])
        assert front.answer("triple", PAIR).status == 200
