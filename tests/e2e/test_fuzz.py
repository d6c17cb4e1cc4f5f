"""300 seeded damaged messages through each door: gRPC's bytes, framing included, Thrift's, and HTTP. Nothing dies, nothing grows, and the
answers are right afterwards.
"""

import json
import random
import socket
import struct
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from idl.generated import inference_pb2 as pb
from idl.thrift_binary import CALL, message
from idl.thrift_schema import Inference, schema
from inference_client import Client
from tests.onnx_models import times
from tests.processes import Process, alive, descendants, start_server, start_up
from tests.proofs.process_trees import private_bytes

SEED, CASES, AT_ONCE = 20261121, 300, 30
QUIET_S = 0.1
"""So long a server that waits for more is waited for."""
MOST_GROWTH = 24e6
X = np.float32([[1, 2]])


# what is damaged -------------------------------------------------------------------------------------------------------------------


def grpc_call() -> bytes:
    """One connection's bytes: preface, settings, the headers and the message of a ModelInfer (RFC 9113; headers as RFC 7541, 6.2.2)."""
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[X.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    body = request.SerializeToString()
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/inference.GRPCInferenceService/ModelInfer",
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in headers.items())
    framed = b"\0" + struct.pack(">I", len(body)) + body
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"") + _frame(1, 4, 1, block) + _frame(0, 1, 1, framed)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def thrift_call() -> bytes:
    tensor = schema.Tensor(name="x", datatype="FP32", shape=[1, 2], data=X.tobytes())
    request = schema.InferRequest(model_name="m", inputs=[tensor], id="r", parameters={"a": "b"})
    return b"".join(bytes(part) for part in message("ModelInfer", CALL, 7, Inference.ModelInfer_args(request=request)))


def http_call() -> bytes:
    body = json.dumps({"id": "r", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": X.ravel().tolist()}]}).encode()
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """One to four of: bits turned, bytes changed, a piece left out, said twice or moved, a number made huge, an early end, noise behind."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 4)):
        at, size = chance.randrange(len(data) + 1), chance.randint(1, 12)
        kind = chance.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + size] = chance.randbytes(len(data[at : at + size]))
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = data[at : at + size]
        elif kind == 4:
            data[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0"])
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            data += chance.randbytes(chance.randint(1, 200))
        else:
            piece = bytes(data[at : at + size])
            del data[at : at + size]
            where = chance.randrange(len(data) + 1)
            data[where:where] = piece
        if not data:
            return chance.randbytes(9)
    return bytes(data)


# who gets it -----------------------------------------------------------------------------------------------------------------------


def send(address: str, data: bytes) -> None:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.settimeout(QUIET_S)
        try:
            sock.sendall(data)
            while sock.recv(65536):
                pass
        except (TimeoutError, ConnectionError):
            return


def fuzz(address: str, whole: bytes, seed: int, cases: int) -> None:
    chance = random.Random(seed)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda data: send(address, data), [damaged(whole, chance) for _ in range(cases)]))


def unharmed(process: Process, address: str, whole: bytes, check: Callable[[], None]) -> None:
    """`check` raises unless the answers are right."""
    check()
    fuzz(address, whole, SEED - 1, CASES // 3)  # what is allocated once
    check()
    before = descendants(process.process.pid)
    held = {pid: private_bytes(pid) for pid in before}
    fuzz(address, whole, SEED, CASES)
    check()
    assert alive(before) == before, "a process died"
    grown = sum(private_bytes(pid) for pid in before) - sum(held.values())
    assert grown < MOST_GROWTH, f"{grown / 1e6:.1f} MB more"


def right(address: str) -> None:
    with Client(address, local_lane=False) as client:
        for _ in range(20):
            assert client.infer("m", {"x": X}).outputs["y"].tolist() == [[2, 4]]


@pytest.fixture(scope="module", params=["auto", "grpcio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp(f"fuzz-{request.param}")
    times(folder / "models" / "m" / "1" / "model.onnx", 2)
    made = start_server(folder / "models", folder, "--grpc-front", request.param)
    yield made
    assert made.stop() == 0, made.log.read_text()


def test_grpc(server: Process) -> None:
    unharmed(server, server["grpc"], grpc_call(), lambda: right(f"grpc://{server['grpc']}"))
    assert b'"internal error"' not in Path(server.log).read_bytes()


def test_thrift(server: Process) -> None:
    unharmed(server, server["thrift"], thrift_call(), lambda: right(f"thrift://{server['thrift']}"))
    assert b'"internal error"' not in Path(server.log).read_bytes()


def test_http(tmp_path: Path) -> None:
    times(tmp_path / "models" / "m" / "1" / "model.onnx", 2)
    up = start_up(tmp_path / "data", "--no-demo", "--models", str(tmp_path / "models"))
    body = http_call().partition(b"\r\n\r\n")[2]

    def check() -> None:
        for _ in range(20):
            with urllib.request.urlopen(f"{up['http']}/v2/models/m/infer", body, timeout=30) as answer:
                assert json.load(answer)["outputs"][0]["data"] == [2, 4]

    unharmed(up, urlsplit(up["http"]).netloc, http_call(), check)
    assert up.stop() == 0, up.log.read_text()


def test_what_is_sent_undamaged_is_answered(server: Process) -> None:
    """The bytes that are damaged are right ones."""
    for name, whole, sign in (
        ("grpc", grpc_call(), np.float32([[2, 4]]).tobytes()),
        ("thrift", thrift_call(), np.float32([[2, 4]]).tobytes()),
    ):
        host, _, port = server[name].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(whole)
            seen = b""
            while sign not in seen:
                piece = sock.recv(65536)
                assert piece, f"{name} closed the connection after {seen!r}"
                seen += piece
