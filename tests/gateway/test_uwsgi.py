"""The gateway as it really runs: uWSGI, several workers, and what they answer from outside."""

import json
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.settings import Settings
from tests.gateway.conftest import PASSWORD, Gateway, spawn, start_gateway
from tests.gateway.test_metrics import parse, value
from tests.gateway.uwsgi_peer import exchange, send, session_of, some_settings, uwsgi_request, wait_in_flight
from tests.processes import free_port

Start = Callable[[Settings], Gateway]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return some_settings(tmp_path / "data")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for the tests that leave it as it was."""
    gateway = start_gateway(some_settings(tmp_path_factory.mktemp("running") / "data"))
    yield gateway
    assert gateway.program.stop() == 0, gateway.program.log


def test_every_answer_says_that_the_connection_ends(running: Gateway) -> None:
    status, headers, body = send(running, "GET /livez HTTP/1.1\nHost: x\nX-Request-Id: mine")
    assert (status, headers["connection"], headers["x-request-id"]) == (200, "close", "mine")
    assert json.loads(body) == {"status": "alive"}
    status, headers, body = send(running, "HEAD /livez HTTP/1.1\nHost: x")
    assert (status, headers["connection"], body) == (200, "close", b"")


@pytest.mark.parametrize("size", [5_000, 15_000])
def test_long_query_strings_arrive(running: Gateway, size: int) -> None:
    assert send(running, f"GET /livez?a={'x' * size} HTTP/1.1\nHost: x")[0] == 200


JSON_POST = "POST /v1/tokens HTTP/1.1\nHost: x\nContent-Type: application/json\n"
SIGN_IN = b'{"username": "nobody", "password": "wrong wrong"}'


def test_chunked_bodies_arrive(running: Gateway) -> None:
    pieces = [b"%x\r\n%s\r\n" % (len(part), part) for part in (SIGN_IN[:1], SIGN_IN[1:20], SIGN_IN[20:])]
    status, _, body = send(running, JSON_POST + "Transfer-Encoding: chunked", *pieces, b"0\r\n\r\n")
    assert status == 401, body


def test_a_slow_body_arrives(running: Gateway) -> None:
    """Every byte in a packet of its own."""
    with running.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall((JSON_POST + f"Content-Length: {len(SIGN_IN)}\n\n").replace("\n", "\r\n").encode())
        for byte in SIGN_IN:
            sock.sendall(bytes([byte]))
        assert exchange(sock)[0] == 401


def test_a_body_that_is_announced_is_asked_for(running: Gateway) -> None:
    with running.connect() as sock:
        sock.sendall((JSON_POST + f"Expect: 100-continue\nContent-Length: {len(SIGN_IN)}\n\n").replace("\n", "\r\n").encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(SIGN_IN)
        assert exchange(sock)[0] == 401


@pytest.mark.parametrize("size", [100_000, 1_000_000, 2_000_000])
def test_a_body_over_the_limit_is_refused_and_the_answer_arrives(running: Gateway, size: int) -> None:
    body = b" " * size
    status, _, answer = send(running, JSON_POST + f"Content-Length: {size}", body)
    assert status == 413 and json.loads(answer)["code"] == "too_large"
    status, _, answer = send(running, JSON_POST + "Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (size, body))
    assert status == 413 and json.loads(answer)["code"] == "too_large"


@pytest.mark.parametrize("body", [b"zz\r\nabc\r\n", b"-5\r\nabc\r\n", b"ffffffffffffffffff\r\nabc\r\n"])
def test_chunks_that_are_none_are_refused(running: Gateway, body: bytes) -> None:
    status, _, answer = send(running, JSON_POST + "Transfer-Encoding: chunked", body, b"0\r\n\r\n")
    assert status == 400 and json.loads(answer)["code"] == "invalid_input"


def test_a_caller_that_goes_away_in_the_middle_harms_nobody(running: Gateway) -> None:
    for encoding in ("Content-Length: 1000", "Transfer-Encoding: chunked"):
        with running.connect() as sock:
            sock.sendall((JSON_POST + f"{encoding}\n\n").replace("\n", "\r\n").encode() + b"5\r\nab")
    wait_in_flight(running, 0)
    assert send(running, "GET /livez HTTP/1.1\nHost: x")[0] == 200


def test_idle_connections_cost_no_thread(running: Gateway) -> None:
    idle = [running.connect() for _ in range(2 * running.settings.processes * running.settings.threads)]
    try:
        assert send(running, "GET /livez HTTP/1.1\nHost: x")[0] == 200
    finally:
        for sock in idle:
            sock.close()


def test_workers_are_counted_together(running: Gateway) -> None:
    labels = {"endpoint": "/v1/errors", "method": "GET", "status": "200"}
    before = value(parse(running.text("/metrics")), "requests_total", **labels)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: running.text("/v1/errors"), range(60)))
    for _ in range(8):
        assert value(parse(running.text("/metrics")), "requests_total", **labels) == before + 60


def test_the_log_is_json_and_holds_no_query_string(running: Gateway) -> None:
    send(running, "GET /livez?password=hunter2 HTTP/1.1\nHost: x\nX-Request-Id: look-for-me")
    running.program.wait_for("look-for-me")
    lines = [line for line in running.program.lines if line.startswith("{")]
    events = [json.loads(line) for line in lines]
    (seen,) = [event for event in events if event.get("request_id") == "look-for-me"]
    assert {name: seen[name] for name in ("level", "event", "method", "path", "status")} == {
        "level": "debug",
        "event": "request",
        "method": "GET",
        "path": "/livez",
        "status": 200,
    }
    assert seen["ms"] > 0
    assert "hunter2" not in running.program.log
    assert sum(event["event"] == "gateway_worker_ready" for event in events) == running.settings.processes


def test_the_first_administrator_signs_up_with_the_token_that_is_printed(gateways: Start, settings: Settings) -> None:
    gateway = gateways(settings)
    (command,) = [line for line in gateway.program.lines if "signup_token" in line]
    assert f"http://127.0.0.1:{settings.http_port}/v1/users" in command
    printed = command.partition("-d '")[2].partition("'")[0]
    body = printed.replace("YOURS", PASSWORD)
    assert body != printed
    with pytest.raises(urllib.error.HTTPError, match="400"):  # a password that everybody can read is none
        urllib.request.urlopen(urllib.request.Request(gateway.url("/v1/users"), printed.encode(), {"Content-Type": "application/json"}))
    request = urllib.request.Request(gateway.url("/v1/users"), body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["role"] == "administrator"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(gateway.url("/v1/users"), body.replace("admin", "eve").encode(), request.headers))


def test_the_first_administrators_password_is_used_and_forgotten(gateways: Start, settings: Settings) -> None:
    gateway = gateways(replace(settings, admin_password=PASSWORD))
    assert "signup_token" not in gateway.program.log
    body = json.dumps({"username": "admin", "password": PASSWORD}).encode()
    with urllib.request.urlopen(urllib.request.Request(gateway.url("/v1/tokens"), body, {"Content-Type": "application/json"})) as answer:
        assert json.load(answer)["access_token"]
    for process in session_of(gateway):
        assert PASSWORD.encode() not in Path(f"/proc/{process}/environ").read_bytes()


def test_behind_nginx_it_speaks_the_uwsgi_protocol(gateways: Start, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    gateways(replace(settings, socket=str(path)))
    assert path.stat().st_mode & 0o777 == 0o660
    variables = {"REQUEST_METHOD": "GET", "PATH_INFO": "/livez", "QUERY_STRING": "", "HTTP_X_REQUEST_ID": "mine"}
    with uwsgi_request(str(path), variables) as sock:
        status, headers, body = exchange(sock)
    assert (status, headers["x-request-id"], json.loads(body)) == (200, "mine", {"status": "alive"})
    assert "connection" not in headers


def test_one_gateway_for_one_data_folder(running: Gateway) -> None:
    second = spawn([sys.executable, "-m", "gateway"], replace(running.settings, http_port=free_port()).to_env())
    assert second.process.wait(20) == 1
    second.stop()
    assert "another gateway runs" in second.log and "Traceback" not in second.log
