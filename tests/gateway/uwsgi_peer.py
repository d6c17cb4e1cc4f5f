"""The other end of a gateway under uWSGI: requests over HTTP and as nginx sends them, whole or half, and what processes it has."""

import http.client
import json
import socket
import struct
from pathlib import Path

from gateway.settings import Settings
from tests.eventually import eventually
from tests.gateway.conftest import PASSWORD, Gateway
from tests.gateway.test_metrics import parse, value
from tests.processes import free_port

REGISTRATION = json.dumps({"username": "ann", "password": PASSWORD}).encode()


def some_settings(folder: Path) -> Settings:
    return Settings(
        data_dir=folder, model_hosts=("thrift://127.0.0.1:1",), http_port=free_port(), max_body_bytes=1 << 20, log_level="debug"
    )


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

    def inside() -> bool:
        return value(parse(gateway.text("/metrics")), "requests_in_flight") == count + 1

    eventually(inside, "the requests reached workers", 20, 0.02)


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
    eventually(lambda: not session_of(gateway), "its processes have gone", 20, 0.02)


def uwsgi_request(path: str, variables: dict[str, str], body: bytes = b"") -> socket.socket:
    """A request as nginx sends it."""
    packet = b"".join(struct.pack("<H", len(part)) + part for pair in variables.items() for part in map(str.encode, pair))
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(path)
    sock.sendall(struct.pack("<BHB", 0, len(packet), 0) + packet + body)
    return sock


def half_a_request_from_nginx(gateway: Gateway) -> socket.socket:
    """The same, as nginx sends it."""
    variables = {"REQUEST_METHOD": "POST", "PATH_INFO": "/v1/users", "QUERY_STRING": "", "SERVER_PROTOCOL": "HTTP/1.1"}
    variables |= {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(REGISTRATION))}
    sock = uwsgi_request(gateway.settings.socket, variables, REGISTRATION[:10])

    def inside() -> bool:
        with uwsgi_request(gateway.settings.socket, {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}) as asking:
            return value(parse(exchange(asking)[2].decode()), "requests_in_flight") == 2

    eventually(inside, "the request reached a worker", 20, 0.02)
    return sock
