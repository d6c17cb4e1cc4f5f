"""Real nginx before the real gateway: each variant of the configuration, and what only the two together can show."""

import base64
import contextlib
import gzip
import hashlib
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.error_texts import TEXTS
from gateway.errors import STATUS
from gateway.settings import Settings
from idl.codes import Code
from outboard import nginx, nginx_pages
from tests.certificates import Authority
from tests.e2e.nginx_program import MAX_BODY, Nginx, ask, some_values
from tests.gateway.conftest import PASSWORD, Gateway, Program, start_gateway
from tests.needs import needs
from tests.processes import free_port

pytestmark = [needs("nginx"), needs("openssl")]
REGISTRATION = json.dumps({"username": "ann", "password": PASSWORD}).encode()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    settings = Settings(
        data_dir=folder / "data", model_hosts=("thrift://127.0.0.1:1",), socket=str(folder / "gateway.sock"), log_level="debug"
    )
    made = start_gateway(replace(settings, max_body_bytes=MAX_BODY, threads=2))
    yield made
    assert made.program.stop() == 0


@pytest.fixture(scope="module")
def front(gateway: Gateway) -> Iterator[Nginx]:
    """The http variant."""
    made = Nginx("http", some_values(gateway.settings.socket_path.parent, metrics_allow=()))
    yield made
    assert made.program.stop(signal.SIGQUIT) == 0, made.program.log
    assert "hunter2" not in made.program.log


def test_what_nginx_answers_by_itself_is_what_the_gateway_would_say() -> None:
    for refusal in nginx.REFUSALS:
        code = Code(refusal.code)
        assert refusal.title == TEXTS[code].title
        assert refusal.status == STATUS[code] or refusal.status in (405, 408, 414, 431), "the status of HTTP's own"


@pytest.mark.parametrize("kind", ["http", "tls", "tls and redirect", "grpc", "grpc over tls", "access log"])
def test_every_variant_is_accepted(tmp_path: Path, certificate: dict[str, Path], kind: str) -> None:
    values = some_values(
        tmp_path / "a folder; with {odd} 'characters' #", access_log=kind == "access log", grpc_target="unix:/odd {g}.sock"
    )
    values = replace(values, gateway_socket=Path("/odd ; {s}.sock"))  # not in tmp_path, whose name can be too long for a socket
    if "tls" in kind:
        values = replace(values, **certificate, redirect_listen=f"127.0.0.1:{free_port()}" if "redirect" in kind else "")
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(nginx.render(kind.split()[0].replace("access", "http"), values))
    binary = nginx.find()
    assert binary is not None
    ran = subprocess.run(nginx.command(binary, configuration, "-t", "-q"), capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert "@{" not in configuration.read_text()


@pytest.mark.parametrize("folder", ['a"b', "a$b", "a\\b", "a\nb"])
def test_paths_that_cannot_be_written_there_are_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ValueError, match="path"):
        nginx.render("http", replace(some_values(tmp_path), run_dir=tmp_path / folder))
    with pytest.raises(ValueError, match="colon"):
        nginx.render("http", replace(some_values(tmp_path), gateway_socket=tmp_path / "a:b"))
    with pytest.raises(ValueError, match="certificate"):
        nginx.render("tls", some_values(tmp_path))
    with pytest.raises(ValueError, match="none of"):
        nginx.render("ftp", some_values(tmp_path))


def test_the_request_id_goes_through(gateway: Gateway, front: Nginx) -> None:
    _, headers, body = front.ask("GET", "/nothing", headers={"X-Request-Id": "mine.1"})
    assert headers["x-request-id"] == json.loads(body)["request_id"] == "mine.1"
    gateway.program.wait_for('"request_id": "mine.1"')
    for sent in ({}, {"X-Request-Id": "two words"}):
        _, headers, body = front.ask("GET", "/nothing", headers=sent)
        made = headers["x-request-id"]
        assert len(made) == 32 and json.loads(body)["request_id"] == made
        gateway.program.wait_for(made)


def test_keep_alive_and_head(front: Nginx) -> None:
    with contextlib.closing(front.client()) as client:
        client.connect()
        sock = client.sock
        for method in ("GET", "HEAD", "GET"):
            status, headers, body = ask(client, method, "/livez")
            assert status == 200 and headers.get("connection") != "close"
            assert bool(body) == (method == "GET")
            assert client.sock is sock


def test_long_answers_are_compressed_for_those_who_ask(front: Nginx) -> None:
    plain = front.ask("GET", "/v1/errors")[2]
    status, headers, body = front.ask("GET", "/v1/errors", headers={"Accept-Encoding": "gzip"})
    assert status == 200 and headers["content-encoding"] == "gzip" and "Accept-Encoding" in headers["vary"]
    assert gzip.decompress(body) == plain and len(body) < len(plain) / 2
    assert "content-encoding" not in front.ask("GET", "/livez", headers={"Accept-Encoding": "gzip"})[1]


def test_long_addresses_and_headers(front: Nginx) -> None:
    assert front.ask("GET", "/livez?a=" + "x" * 5_000)[0] == 200
    assert front.ask("GET", "/livez?a=" + "x" * 16_000, headers={"X-Long": "y" * 14_000})[0] == 200
    status, headers, body = front.ask("GET", "/livez?a=" + "x" * 20_000)
    assert status == 414 and headers["content-type"] == "application/problem+json" and json.loads(body)["code"] == "too_large"
    status, _, body = front.ask("GET", "/livez", headers={"X-Long": "y" * 20_000})
    assert status == 431 and json.loads(body)["code"] == "too_large"


def test_a_body_over_the_limit(front: Nginx) -> None:
    body = b" " * (MAX_BODY + 1)
    for encoded in (body, iter([body[: MAX_BODY // 2], body[: MAX_BODY // 2], b" "])):
        status, headers, answer = front.ask("POST", "/v1/users", encoded, {"Content-Type": "application/json", "X-Request-Id": "big"})
        assert status == 413 and headers["content-type"] == "application/problem+json"
        problem = json.loads(answer)
        assert (problem["code"], problem["request_id"], headers["x-request-id"]) == ("too_large", "big", "big")
    status, headers, answer = front.ask("POST", "/v2/models/m/infer", body)
    assert status == 413 and headers["outboard-code"] == "too_large" and set(json.loads(answer)) == {"error"}
    for _ in range(20):  # answered before it is read: what is left must not break the connection under nginx, which is still sending
        assert front.ask("POST", "/v1/users", body[:-1], {"Content-Type": "application/json"})[0] == 413, (
            "within the limit: the gateway's own, 64 KiB"
        )


def test_chunked_bodies_arrive(front: Nginx) -> None:
    pieces = iter([REGISTRATION[:1], REGISTRATION[1:30], REGISTRATION[30:]])
    status, _, body = front.ask("POST", "/v1/users", pieces, {"Content-Type": "application/json"})
    assert status == 201, body


def test_slow_senders_hold_no_worker(gateway: Gateway, front: Nginx) -> None:
    """More of them than there are threads, each in the middle of its body."""
    with contextlib.ExitStack() as stack:
        body = json.dumps({"username": "nobody", "password": "wrong wrong"}).encode()
        head = f"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        slow = [stack.enter_context(front.connect()) for _ in range(2 * gateway.settings.processes * gateway.settings.threads)]
        for sock in slow:
            sock.sendall(head + body[:5])
        assert front.ask("GET", "/livez")[0] == 200
        for byte in body[5:-1]:
            slow[0].sendall(bytes([byte]))
        slow[0].sendall(body[-1:])
        answer = http.client.HTTPResponse(slow[0])
        answer.begin()
        assert answer.status == 401


def test_malformed_requests_and_methods(front: Nginx) -> None:
    for request in (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"NONSENSE\r\n\r\n"):
        with front.connect() as sock:
            sock.sendall(request)
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            assert answer.status == 400 and json.loads(answer.read())["code"] == "invalid_input"
    assert front.ask("TRACE", "/livez")[0] == 405


def test_metrics_are_for_those_who_may_see_them(front: Nginx) -> None:
    status, headers, body = front.ask("GET", "/metrics")
    assert status == 403 and headers["content-type"] == "application/problem+json" and json.loads(body)["code"] == "forbidden"


def test_a_stop_lets_requests_in_flight_finish(gateway: Gateway, started: list[Program]) -> None:
    front = Nginx("http", some_values(gateway.settings.socket_path.parent / "stopped", gateway_socket=gateway.settings.socket_path))
    started.append(front.program)
    body = json.dumps({"username": "nobody", "password": "wrong wrong"}).encode()
    with front.connect() as sock:
        sock.sendall(
            f"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        sock.sendall(body[:5])
        assert front.ask("GET", "/livez")[0] == 200, "the one worker has taken both connections"
        front.program.process.send_signal(signal.SIGQUIT)
        deadline = time.monotonic() + 20
        with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
            while time.monotonic() < deadline:
                front.connect().close()
        sock.sendall(body[5:])
        with contextlib.closing(http.client.HTTPResponse(sock)) as answer:
            answer.begin()
            assert answer.status == 401 and answer.headers["Connection"] == "close"
    assert front.program.process.wait(20) == 0


def test_without_a_gateway_and_without_a_password_in_the_log(tmp_path: Path, started: list[Program]) -> None:
    front = Nginx("http", some_values(tmp_path))
    started.append(front.program)
    for path in ("/v1/me", "/login?user=ann&password=hunter2", "/readyz"):
        status, headers, body = front.ask("GET", path)
        assert status == 503 and headers["content-type"] == "application/problem+json" and headers["retry-after"] == "1"
        assert json.loads(body)["code"] == "unavailable" and json.loads(body)["request_id"] == headers["x-request-id"]
    status, headers, body = front.ask("GET", "/v2/health/live")
    assert status == 503 and json.loads(body) == {"error": "the gateway cannot be reached"} and headers["outboard-code"] == "unavailable"
    front.program.wait_for("/v1/me")
    assert front.program.stop(signal.SIGQUIT) == 0
    assert "hunter2" not in front.program.log and "/login" not in front.program.log


BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_what_nginx_says_to_a_browser_is_a_page(gateway: Gateway, tmp_path: Path, started: list[Program]) -> None:
    """In its language, with a policy that fits, and never for a program, nor for a piece of a page."""
    assert {each.status for each in nginx.REFUSALS} == set(nginx_pages.WORDS)
    front = Nginx("http", some_values(tmp_path))
    started.append(front.program)
    for chosen, lang, words in (({}, "en", "away for a moment"), ({"Accept-Language": "zh-CN,en;q=0.5"}, "zh-CN", "暂时不可用"),
                                ({"Cookie": "outboard_language=zh; outboard_theme=dark", "Accept-Language": "en"}, "zh-CN", 'data-t="dark"')):  # fmt: skip
        status, headers, body = front.ask("GET", "/ui/models?q=hunter2", headers={**BROWSER, **chosen, "X-Request-Id": "away-1"})
        page = body.decode()
        assert status == 503 and headers["content-type"] == "text/html; charset=utf-8" and headers["retry-after"] == "1"
        assert f'lang="{lang}"' in page and words in page and "away-1" in page and "hunter2" not in page and "outboard_" not in page
        for kind in ("style", "script"):
            content = page.partition(f"<{kind}>")[2].partition(f"</{kind}>")[0]
            assert f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in headers["content-security-policy"]
    assert b"<script>" not in front.ask("POST", "/ui/sign-in", b"x", BROWSER)[2], "what was sent is not sent again by itself"
    for path, asked in (("/ui", {}), ("/ui", {**BROWSER, "HX-Request": "true"}), ("/v2/health/live", BROWSER)):
        assert "json" in front.ask("GET", path, headers=asked)[1]["content-type"], (path, asked)
    front.program.stop(signal.SIGQUIT)


def test_a_file_over_the_limit_is_said_on_a_page(front: Nginx) -> None:
    status, headers, body = front.ask("POST", "/ui/account/picture", b" " * (MAX_BODY + 1), BROWSER)
    assert status == 413 and headers["content-type"].startswith("text/html") and b"That is too large" in body


def test_the_access_log_holds_paths_only(gateway: Gateway, tmp_path: Path) -> None:
    values = some_values(tmp_path, gateway_socket=gateway.settings.socket_path, access_log=True)
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(nginx.render("http", values))
    binary = nginx.find()
    assert binary is not None
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(nginx.command(binary, configuration), stdout=log, stderr=subprocess.STDOUT)
    try:
        port = int(values.listen.rpartition(":")[2])
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(ConnectionRefusedError), contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as client:
                ask(client, "GET", "/nothing?password=hunter2", None, {"X-Request-Id": "seen"})
                break
            assert time.monotonic() < deadline
    finally:
        process.send_signal(signal.SIGQUIT)
        assert process.wait(20) == 0
    text = (tmp_path / "log").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("{")]
    event = json.loads(line)
    assert (event["event"], event["request_id"], event["path"], event["status"]) == ("http_request", "seen", "/nothing", 404)
    assert "hunter2" not in text


@needs("setpriv")
@pytest.mark.skipif(os.geteuid() != 0, reason="is not root, so everything here shows it")
def test_it_needs_no_root(started: list[Program]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        values = some_values(folder)
        (folder / "run" / "nginx").mkdir()
        for path in (folder, folder / "run", folder / "run" / "nginx"):
            shutil.chown(path, "nobody")
        front = Nginx("http", values, user="nobody")
        started.append(front.program)
        assert front.ask("GET", "/livez")[0] == 503
        assert front.program.stop(signal.SIGQUIT) == 0
        assert "[emerg]" not in front.program.log and "[alert]" not in front.program.log
    finally:
        shutil.rmtree(folder)


def test_tls(gateway: Gateway, authority: Authority, certificate: dict[str, Path], tmp_path: Path, started: list[Program]) -> None:
    redirect = free_port()
    values = some_values(tmp_path, gateway_socket=gateway.settings.socket_path, redirect_listen=f"127.0.0.1:{redirect}", **certificate)
    front = Nginx("tls", values)
    started.append(front.program)
    trusted = ssl.create_default_context(cafile=str(authority.file))
    with contextlib.closing(http.client.HTTPSConnection("localhost", front.port, context=trusted, timeout=30)) as client:
        status, headers, body = ask(client, "GET", "/livez")
        assert status == 200 and json.loads(body) == {"status": "alive"}
        assert headers["strict-transport-security"].startswith("max-age=")
        assert client.sock.version() in ("TLSv1.2", "TLSv1.3")
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", redirect, timeout=30)) as client:
        status, headers, _ = ask(client, "POST", "/v1/tokens?a=b", b"x", {"Host": "example.org"})
        assert status == 308 and headers["location"] == f"https://example.org:{front.port}/v1/tokens?a=b"
    status, _, body = front.ask("GET", "/livez")
    assert status == 400 and json.loads(body)["code"] == "invalid_input", "clear text on the TLS port"
    trusted.maximum_version = ssl.TLSVersion.TLSv1_2
    trusted.set_alpn_protocols(["h2"])
    with front.connect() as plain, trusted.wrap_socket(plain, server_hostname="localhost") as sock:
        assert sock.selected_alpn_protocol() == "h2"
