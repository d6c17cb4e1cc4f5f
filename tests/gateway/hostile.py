"""A seeded stream of hostile requests for `/v2/.../infer` and `/v1/.../predictions`, and what sends them at an address.

Nothing here knows how the target is served: `run("127.0.0.1", 8080, ...)` works against one application as against everything behind
nginx. Each request is good for a model of the target but for what makes it hostile, so that it gets as deep as it can.
"""

import contextlib
import gzip
import http.client
import io
import json
import math
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

HEADER_LENGTH = "Inference-Header-Content-Length"
JSON = "application/json"
DEPTH = 1000


@dataclass(frozen=True)
class Targets:
    """Models of the target: `floats` takes x FP32 [batch, 2], `texts` takes x BYTES [n], `pictures` one picture."""

    floats: str = "triple"
    texts: str = "text"
    pictures: str = "efficientnet-lite0"


@dataclass(frozen=True)
class Hostile:
    """`announced`: the Content-Length where it is a lie; the target may then close the connection instead of answering."""

    kind: str
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    announced: int | None = None


def stream(seed: int, count: int, targets: Targets) -> Iterator[Hostile]:
    """`count` requests, the same for the same seed."""
    rng = random.Random(seed)
    for number in range(count):
        yield KINDS[number % len(KINDS)](rng, targets)


def v2(model: str) -> str:
    return f"/v2/models/{model}/infer"


def v1(model: str) -> str:
    return f"/v1/models/{model}/predictions"


def good_v2() -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0], "parameters": {"note": "n"}}
    return {"id": "i", "inputs": [tensor], "outputs": [{"name": "y", "parameters": {"binary_data": False}}], "parameters": {"p": 1}}


def good_v1() -> dict[str, Any]:
    return {"inputs": {"x": [[1.5, -2.0]]}, "outputs": ["y"]}


def good_picture(rng: random.Random) -> bytes:
    out = io.BytesIO()
    image = Image.new("RGB", (rng.randint(1, 40), rng.randint(1, 40)), (rng.randrange(256), 7, 99))
    image.save(out, rng.choice(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
    return out.getvalue()


def either(rng: random.Random, targets: Targets) -> tuple[str, dict[str, Any]]:
    return (v2(targets.floats), good_v2()) if rng.random() < 0.5 else (v1(targets.floats), good_v1())


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut out, put in, or all but the beginning gone."""
    body = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(body) + 1)
        match rng.randrange(4):
            case 0 if body:
                body[at % len(body)] = rng.randrange(256)
            case 1:
                del body[at : at + rng.randint(1, 9)]
            case 2:
                body[at:at] = rng.choice([rng.randbytes(rng.randint(1, 20)), b"\0", b"[", b"{", b'"', b"1e999", b"NaN", b"\\ud800"])
            case _:
                body = body[:at]
    return bytes(body)


ODD: list[Callable[[random.Random], Any]] = [
    lambda _: None,
    lambda _: True,
    lambda _: "",
    lambda _: [],
    lambda _: {},
    lambda _: -1,
    lambda _: 2**63,
    lambda _: -(2**70),
    lambda _: 10**300,
    lambda _: 1e308,
    lambda _: math.nan,
    lambda _: math.inf,
    lambda _: "\ud800",
    lambda _: "x\0y",
    lambda _: "a" * 10_000,
    lambda _: [[[[]]]],
    lambda _: [1, [2], "three"],
    lambda _: {"b64": "!"},
    lambda _: {"b64": "AAAA"},
    lambda _: {"shared_memory_region": "r", "binary_data_size": 4},
    lambda _: [2**31, 2**31, 2**31],
    lambda _: [0] * 40,
    lambda rng: rng.choice(["BOOL", "UINT8", "INT64", "FP16", "BF16", "BYTES", "FP8", "fp32"]),
    lambda rng: rng.randint(-(2**40), 2**40),
    lambda rng: [rng.random() for _ in range(rng.randint(0, 300))],
]


def with_odd_values(rng: random.Random, value: Any) -> Any:
    """The value with one of its nodes replaced, or a key renamed, dropped or doubled."""
    if rng.random() < 0.25 or not isinstance(value, (dict, list)) or not value:
        return rng.choice(ODD)(rng)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        return [with_odd_values(rng, item) if index == at else item for index, item in enumerate(value)]
    key = rng.choice(list(value))
    rest = {name: item for name, item in value.items() if name != key}
    match rng.randrange(6):
        case 0:
            return rest
        case 1:
            return rest | {rng.choice(["", "\udfff", "\0", key * 2, "a" * 3000]): value[key]}
        case _:
            return rest | {key: with_odd_values(rng, value[key])}


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def bad_json(rng: random.Random, targets: Targets) -> Hostile:
    path, good = either(rng, targets)
    return Hostile("bad JSON", path, damaged(rng, dumped(good)), (("Content-Type", JSON),))


def noise(rng: random.Random, targets: Targets) -> Hostile:
    path, _ = either(rng, targets)
    content_type = rng.choice(
        [JSON, "text/plain", "", "application/octet-stream", "multipart/form-data", "image/png", "a/b; charset=nonsense", "\xff"]
    )
    return Hostile("noise", path, rng.randbytes(rng.randrange(3000)), (("Content-Type", content_type),))


def odd_values(rng: random.Random, targets: Targets) -> Hostile:
    path, good = either(rng, targets)
    return Hostile("odd values", path, dumped(with_odd_values(rng, good)), (("Content-Type", JSON),))


def deep(rng: random.Random, targets: Targets) -> Hostile:
    """Nested DEPTH deep and more, whole or never closed, at the top or where a tensor's data belongs."""
    path, good = either(rng, targets)
    depth = rng.choice([33, 200, DEPTH, DEPTH, 100_000])
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    nest = opening * depth + b"1" + (closing * depth if rng.random() < 0.7 else b"")
    body = nest if rng.random() < 0.3 else dumped(good).replace(b"[1.5, -2.0]", nest, 1)
    return Hostile("deep", path, body, (("Content-Type", JSON),))


def header_lengths(rng: random.Random, targets: Targets) -> Hostile:
    head = dumped({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}]})
    body = head + struct.pack("<2f", 1.5, -2)
    length = rng.choice(
        ["-1", "", "abc", "1.5", "9" * 40, "0", "1", str(len(head) - 1), str(len(head) + 1), str(len(body)), str(len(body) + 1), "0x10"]
    )
    return Hostile("header length", v2(targets.floats), body, ((HEADER_LENGTH, length),))


def binary_sizes(rng: random.Random, targets: Targets) -> Hostile:
    size = rng.choice([-1, 0, 7, 9, 2**31, 2**63, 2**64, 1.5, "8", True, None])
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": rng.choice([[1, 2], [2], [-1, 2], [2**62, 4], [0, 2]]),
        "parameters": {"binary_data_size": size},
    }
    head = dumped({"inputs": [tensor] * rng.randint(1, 3)})
    return Hostile("binary size", v2(targets.floats), head + bytes(rng.choice([0, 7, 8, 9, 16, 24])), ((HEADER_LENGTH, str(len(head))),))


def lying_texts(rng: random.Random, targets: Targets) -> Hostile:
    raw = b"".join(struct.pack("<I", rng.choice([0, 1, 3, 5, 2**31, 2**32 - 1])) + b"abc" for _ in range(3)) + b"?" * rng.randrange(3)
    tensor = {"name": "x", "datatype": "BYTES", "shape": [rng.choice([0, 1, 3, 4, 10**9])], "parameters": {"binary_data_size": len(raw)}}
    head = dumped({"inputs": [tensor]})
    return Hostile("lying text length", v2(targets.texts), head + raw, ((HEADER_LENGTH, str(len(head))),))


def broken_coding(rng: random.Random, targets: Targets) -> Hostile:
    path, good = either(rng, targets)
    coding = rng.choice(["gzip", "deflate"])
    packed = gzip.compress(dumped(good), mtime=0) if coding == "gzip" else zlib.compress(dumped(good))
    named = rng.choice([coding, coding, coding, "gzip", "deflate", "br", "gzip, gzip", "\xff"])
    return Hostile("broken coding", path, damaged(rng, packed), (("Content-Type", JSON), ("Content-Encoding", named)))


def bomb(rng: random.Random, targets: Targets) -> Hostile:
    """100 MiB of spaces in about 100 kB, or as much of brackets."""
    path, _ = either(rng, targets)
    return Hostile("bomb", path, rng.choice([SPACES, BRACKETS]), (("Content-Type", JSON), ("Content-Encoding", "gzip")))


def packed_repetition(piece: bytes, count: int) -> bytes:
    compressor = zlib.compressobj(9, wbits=31)
    block = piece * 4096
    return b"".join([*(compressor.compress(block) for _ in range(count // 4096)), compressor.flush()])


SPACES = packed_repetition(b" ", 100 << 20)
BRACKETS = packed_repetition(b"[],", 12 << 20)


def multipart(rng: random.Random, name: str, content: bytes, boundary: str = "b0undary") -> bytes:
    filename = rng.choice(["photo.jpg", "../../etc/passwd", "\xff\xfe", 'a"b', ""])
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: image/jpeg\r\n\r\n'
    return head.encode() + content + f"\r\n--{boundary}--\r\n".encode()


def broken_multipart(rng: random.Random, targets: Targets) -> Hostile:
    body = multipart(rng, "image", good_picture(rng))
    boundary = rng.choice(["b0undary", "b0undary", "other", "", "b" * 300, "(.*)", "\xff"])
    if rng.random() < 0.3:
        part = b'--b0undary\r\nContent-Disposition: form-data; name="image"\r\n\r\n1\r\n'
        body = part * rng.choice([2, 50, 1500])
    return Hostile(
        "broken multipart", v1(targets.pictures), damaged(rng, body), (("Content-Type", f"multipart/form-data; boundary={boundary}"),)
    )


def broken_picture(rng: random.Random, targets: Targets) -> Hostile:
    """A damaged file, or one whose head promises 16 million million pixels."""
    content = damaged(rng, good_picture(rng))
    if rng.random() < 0.2:
        head = b"IHDR" + struct.pack(">IIBBBBB", 2**22, 2**22, 8, 2, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    body = multipart(rng, rng.choice(["image", "image", "top_k", "nobody", "\0"]), content)
    return Hostile("broken picture", v1(targets.pictures), body, (("Content-Type", "multipart/form-data; boundary=b0undary"),))


def broken_form(rng: random.Random, targets: Targets) -> Hostile:
    fields = rng.choice(
        [b"x=[[1,2]]", b"x=%5B%5B1", b"x=[" * 500, b"top_k=9&x=1", b"outputs=,,&x=1", b"x=" + b"[" * 5000, b"a&" * 3000, b"image=%ff"]
    )
    return Hostile("broken form", v1(targets.floats), damaged(rng, fields), (("Content-Type", "application/x-www-form-urlencoded"),))


def lying_length(rng: random.Random, targets: Targets) -> Hostile:
    path, good = either(rng, targets)
    body = dumped(good)
    announced = rng.choice([0, 1, len(body) - 1, len(body) + 1, len(body) + 1000])
    return Hostile("lying length", path, body, (("Content-Type", JSON),), announced)


def odd_names(rng: random.Random, targets: Targets) -> Hostile:
    name = rng.choice(["%00", "..%2f..", "%ff%fe", "%ed%a0%80", "a" * 2000, "%25s", "-", "%F0%9F%92%A9", "triple%00"])
    query = rng.choice(["", "?version=-1", "?version=%00", "?version=" + "9" * 400, "?version=1&version=2", "?%ff=1", "?x"])
    path, good = rng.choice([(v2(name), good_v2()), (v1(name) + query, good_v1()), (v1(targets.floats) + query, good_v1())])
    return Hostile(
        "odd names", path, damaged(rng, dumped(good)), (("Content-Type", JSON), ("Traceparent", rng.choice(["\xff", "00-0-0-0", ""])))
    )


KINDS: list[Callable[[random.Random, Targets], Hostile]] = [
    bad_json,
    odd_values,
    deep,
    header_lengths,
    binary_sizes,
    lying_texts,
    broken_coding,
    broken_multipart,
    broken_picture,
    broken_form,
    lying_length,
    odd_names,
    noise,
    odd_values,
    bad_json,
    broken_picture,
    odd_values,
    broken_multipart,
    broken_coding,
    bomb,
]


def send(host: str, port: int, request: Hostile) -> int:
    """The answer's status, 0 where the connection was closed without one."""
    length = len(request.body) if request.announced is None else request.announced
    lines = [f"POST {request.path} HTTP/1.1", f"Host: {host}", "Connection: close", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    with socket.create_connection((host, port), timeout=60) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may answer, and hang up, before it has read everything
            sock.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + request.body)
            if length > len(request.body):
                sock.shutdown(socket.SHUT_WR)  # nothing follows; where all was sent it would look like a caller who left
        answer = http.client.HTTPResponse(sock, method="POST")
        try:
            answer.begin()
            answer.read()
            return answer.status
        except (http.client.HTTPException, ConnectionError):
            return 0
        finally:
            answer.close()


def run(host: str, port: int, requests: Iterator[Hostile]) -> dict[str, int]:
    """Sends them one after the other. Returns how often each status came; fails on a 5xx other than 501, and on a missing answer."""
    statuses: dict[str, int] = {}
    for number, request in enumerate(requests):
        status = send(host, port, request)
        statuses[str(status)] = statuses.get(str(status), 0) + 1
        what = f"request {number} ({request.kind}) got {status}: {replace(request, body=request.body[:300])}"
        assert status or request.announced is not None, what
        assert status < 500 or status == 501, what
    return statuses
