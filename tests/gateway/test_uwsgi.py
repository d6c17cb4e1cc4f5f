"""The gateway as it really runs: uWSGI, several workers, started, used and stopped from outside."""

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.settings import Settings
from tests.eventually import eventually
from tests.gateway.conftest import PASSWORD, Gateway, free_port, spawn, start_gateway
from tests.gateway.test_metrics import parse, value

Start = Callable[[Settings], Gateway]
REGISTRATION = json.dumps({"username": "ann", "password": PASSWORD}).encode()


def some_settings(folder: Path) -> Settings:
    return Settings(
        data_dir=folder, model_hosts=("thrift://127.0.0.1:1",), http_port=free_port(), max_body_bytes=1 << 20, log_level="debug"
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return some_settings(tmp_path / "data")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for the tests that leave it as it was."""
    gateway = start_gateway(some_settings(tmp_path_factory.mktemp("running") / "data"))
    yield gateway
    assert gateway.program.stop() == 0, gateway.program.log


def exchange(sock: socket.socket, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    answer = http.client.HTTPResponse(sock, method=method)
    answer.begin()
    with answer:
        return answer.status, {name.lower(): text for name, text in answer.headers.items()}, answer.read()


def send(gateway: Gateway, head: str, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
    with gateway.connect() as sock:
        sock.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        for piece in pieces:
            sock.sendall(piece)
        return exchange(sock, head.split()[0])


def wait_in_flight(gateway: Gateway, count: int) -> None:
    """Until `count` requests besides the asking one are being answered."""
    deadline = time.monotonic() + 20
    while value(parse(gateway.text("/metrics")), "requests_in_flight") != count + 1:
        assert time.monotonic() < deadline, "the request did not reach a worker"


def half_a_request(gateway: Gateway) -> socket.socket:
    """A request that a worker is answering and that ends when `REGISTRATION[10:]` follows."""
    sock = gateway.connect()
    head = f"POST /v1/users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(REGISTRATION)}\r\n\r\n"
    sock.sendall(head.encode() + REGISTRATION[:10])
    wait_in_flight(gateway, 1)
    return sock


def session_of(gateway: Gateway) -> set[int]:
    """The processes of this gateway: it leads a session of its own."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == gateway.program.process.pid and fields[0] != "Z":
                found.add(int(entry.name))
    return found


def wait_until_gone(gateway: Gateway) -> None:
    deadline = time.monotonic() + 20
    while session_of(gateway):
        assert time.monotonic() < deadline, f"left over: {session_of(gateway)}"


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


def uwsgi_request(path: str, variables: dict[str, str], body: bytes = b"") -> socket.socket:
    """A request as nginx sends it."""
    packet = b"".join(struct.pack("<H", len(part)) + part for pair in variables.items() for part in map(str.encode, pair))
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(path)
    sock.sendall(struct.pack("<BHB", 0, len(packet), 0) + packet + body)
    return sock


def half_a_request_from_nginx(gateway: Gateway) -> socket.socket:
    variables = {"REQUEST_METHOD": "POST", "PATH_INFO": "/v1/users", "QUERY_STRING": "", "SERVER_PROTOCOL": "HTTP/1.1"}
    variables |= {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(REGISTRATION))}
    sock = uwsgi_request(gateway.settings.socket, variables, REGISTRATION[:10])
    deadline = time.monotonic() + 20
    while True:
        with uwsgi_request(gateway.settings.socket, {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}) as asking:
            if value(parse(exchange(asking)[2].decode()), "requests_in_flight") == 2:
                return sock
        assert time.monotonic() < deadline, "the request did not reach a worker"


@pytest.fixture(params=[(way, 30.0) for way in ("HTTP", "behind nginx", "with event loops")], ids=lambda pair: pair[0])
def busy(request: pytest.FixtureRequest, gateways: Start, settings: Settings, tmp_path: Path) -> Iterator[tuple[Gateway, socket.socket]]:
    """A gateway, for each way to listen, and a request that one of its workers is answering."""
    listens, drain_timeout_s = request.param
    settings = replace(settings, drain_timeout_s=drain_timeout_s)
    if listens == "HTTP":
        gateway = gateways(settings)
        sock = half_a_request(gateway)
    else:
        hosts = (f"thrift+unix://{tmp_path}/nobody",) if listens == "with event loops" else settings.model_hosts
        gateway = gateways(replace(settings, socket=str(tmp_path / "gateway.sock"), model_hosts=hosts))
        sock = half_a_request_from_nginx(gateway)
    with sock:
        yield gateway, sock


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "Ctrl-C"])
def test_a_stop_lets_requests_in_flight_finish(busy: tuple[Gateway, socket.socket], how: str) -> None:
    gateway, sock = busy
    running = len(session_of(gateway))
    if how == "Ctrl-C":
        # a terminal sends it to every process at once
        os.killpg(gateway.program.process.pid, signal.SIGINT)
    else:
        gateway.program.process.send_signal(signal.Signals[how])
    deadline = time.monotonic() + 20
    while len(session_of(gateway)) == running:
        assert time.monotonic() < deadline, "the idle worker did not end"
    sock.sendall(REGISTRATION[10:])
    status, _, body = exchange(sock)
    assert status == 201 and json.loads(body)["username"] == "ann"
    assert gateway.program.process.wait(20) == 0
    wait_until_gone(gateway)
    assert not [path for path in gateway.settings.data_dir.parent.rglob("*.sock") if path.is_socket()]


@pytest.mark.parametrize("busy", [("behind nginx", 1.0)], indirect=True, ids=["behind nginx"])
def test_a_stop_does_not_wait_for_ever(busy: tuple[Gateway, socket.socket]) -> None:
    gateway, _ = busy
    gateway.program.process.send_signal(signal.SIGTERM)
    assert gateway.program.process.wait(20) == 0
    gateway.program.wait_for("NO MERCY")
    wait_until_gone(gateway)


@pytest.mark.parametrize(("behind", "moment"), [("", "python"), ("nginx", "python"), ("nginx", "imports"), ("nginx", "workers")])
def test_a_stop_during_the_start_is_not_lost(settings: Settings, tmp_path: Path, behind: str, moment: str) -> None:
    """uWSGI ignores SIGTERM until its master is up: whoever stopped it before that waited for as long as a stop may take."""
    settings = replace(settings, socket=str(tmp_path / "gateway.sock")) if behind else settings
    program = spawn([sys.executable, "-m", "gateway"], settings.to_env())
    awaited = {
        "python": lambda: '"gateway_starting"' in program.log,
        "imports": lambda: "added " in program.log,
        "workers": lambda: "spawned uWSGI worker 1" in program.log,
    }
    try:
        eventually(awaited[moment], moment)
        began = time.monotonic()
        program.stop(signal.SIGTERM, 10)
        assert time.monotonic() - began < 5
    finally:
        program.stop(signal.SIGKILL)


@pytest.fixture
def with_event_loops(gateways: Start, settings: Settings, tmp_path: Path) -> Gateway:
    """Behind nginx, with a model host on this machine that is not there."""
    hosts = (f"thrift+unix://{tmp_path}/nobody",)
    return gateways(replace(settings, socket=str(tmp_path / "gateway.sock"), model_hosts=hosts, hot_processes=2))


def ask_event_loop(gateway: Gateway, number: int) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(gateway.settings.hot_sockets[number]))
        sock.sendall(b"POST /id/v2/models/m/infer HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
        return sock.recv(1000)


def test_the_master_only_imports(with_event_loops: Gateway) -> None:
    """What it opened or started would be everybody's after the fork."""
    master = Path("/proc") / str(with_event_loops.program.process.pid)
    assert len(list((master / "task").iterdir())) == 1
    opened = {str(link.readlink()) for link in (master / "fd").iterdir()}
    files = {name for name in opened if name.startswith("/") and not name.startswith("/dev/")}
    assert {Path(name).name for name in files} <= {"gateway.lock", "uwsgi-start.log"}, files


def test_event_loops_that_have_no_model_host_decline(with_event_loops: Gateway) -> None:
    for number in range(len(with_event_loops.settings.hot_sockets)):
        assert b"X-Accel-Redirect: @gateway\r\n" in ask_event_loop(with_event_loops, number)


def test_event_loops_end_with_a_master_that_was_killed(with_event_loops: Gateway) -> None:
    assert len(session_of(with_event_loops)) >= 1 + with_event_loops.settings.processes + len(with_event_loops.settings.hot_sockets)
    with_event_loops.program.process.kill()
    with_event_loops.program.process.wait(20)
    wait_until_gone(with_event_loops)


def test_an_event_loop_that_was_killed_is_replaced(with_event_loops: Gateway) -> None:
    program, count = with_event_loops.program, len(with_event_loops.settings.hot_sockets)
    ready = [json.loads(line) for line in program.lines if '"gateway_front_ready"' in line]
    os.kill(next(each["pid"] for each in ready if each["front"] == 1), signal.SIGKILL)
    program.wait_for('"gateway_front_ready"', count + 1)
    assert b"@gateway" in ask_event_loop(with_event_loops, 0)


def test_workers_end_with_a_master_that_was_killed(gateways: Start, settings: Settings) -> None:
    gateway = gateways(settings)
    assert len(session_of(gateway)) >= 1 + settings.processes
    gateway.program.process.kill()
    gateway.program.process.wait(20)
    wait_until_gone(gateway)


def test_a_worker_that_was_killed_is_replaced_and_counted_on(gateways: Start, settings: Settings) -> None:
    gateway = gateways(replace(settings, processes=1))
    for _ in range(5):
        gateway.text("/livez")
    (ready,) = [json.loads(line) for line in gateway.program.lines if '"gateway_worker_ready"' in line]
    with half_a_request(gateway):
        os.kill(ready["pid"], signal.SIGKILL)
        gateway.program.wait_for('"gateway_worker_ready"', 2)
    samples = parse(gateway.text("/metrics"))
    assert value(samples, "requests_in_flight") == 1
    assert value(samples, "requests_total", endpoint="/livez", method="GET", status="200") == 5


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


def test_one_gateway_for_one_data_folder(running: Gateway) -> None:
    second = spawn([sys.executable, "-m", "gateway"], replace(running.settings, http_port=free_port()).to_env())
    assert second.process.wait(20) == 1
    second.stop()
    assert "another gateway runs" in second.log and "Traceback" not in second.log


@pytest.mark.parametrize(
    ("variable", "text", "status"),
    [
        ("THREADS", "x", 2),
        ("NO_SUCH", "1", 2),
        ("MODEL_HOSTS", "ftp://x", 2),
        ("DATA_DIR", "/dev/null/x", 1),
        ("ADMIN_PASSWORD", "short", 2),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_a_line(tmp_path: Path, variable: str, text: str, status: int) -> None:
    environ = {"OUTBOARD_GATEWAY_DATA_DIR": str(tmp_path), "OUTBOARD_GATEWAY_" + variable: text}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOARD_")}
    ran = subprocess.run([sys.executable, "-m", "gateway"], env=clean | environ, capture_output=True, text=True, timeout=30)
    assert ran.returncode == status, ran.stderr
    assert ran.stderr.startswith("outboard: ") and "Traceback" not in ran.stderr


def test_a_port_that_is_taken_is_said(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        program = spawn([sys.executable, "-m", "gateway"], replace(settings, http_port=taken.getsockname()[1]).to_env())
        assert program.process.wait(20) != 0
        program.stop()
    assert "Address already in use" in program.log


def test_behind_nginx_it_speaks_the_uwsgi_protocol(gateways: Start, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    gateways(replace(settings, socket=str(path)))
    assert path.stat().st_mode & 0o777 == 0o660
    variables = {"REQUEST_METHOD": "GET", "PATH_INFO": "/livez", "QUERY_STRING": "", "HTTP_X_REQUEST_ID": "mine"}
    with uwsgi_request(str(path), variables) as sock:
        status, headers, body = exchange(sock)
    assert (status, headers["x-request-id"], json.loads(body)) == (200, "mine", {"status": "alive"})
    assert "connection" not in headers
