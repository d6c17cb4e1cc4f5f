"""Uploads through nginx and uWSGI: MB a second in pieces and as a form, and what the gateway's processes hold. `python -m benchmarks.uploads`."""

import json
import os
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnx
import requests
from onnx import TensorProto, helper, numpy_helper

from benchmarks.processes import memory
from tests.processes import start_up

MB = 1_000_000
SIZE = 200 * MB
PIECE = 8 * MB
PASSWORD = "correct horse battery"


def a_model(path: Path, seed: int) -> Path:
    """An ONNX file of SIZE bytes: one matrix of weights, of which a row is used."""
    rows = SIZE // 4000
    weights = numpy_helper.from_array(np.random.default_rng(seed).random((rows, 1000), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["w", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1000])],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def held(pid: int) -> float:
    """MB of the gateway's processes below `pid`."""
    return sum(each.pss for each in memory(pid) if "uwsgi" in each.command or "gateway" in each.command) / MB


class Peak:
    """The most that they hold, looked at ten times a second while the block lasts."""

    def __init__(self, pid: int) -> None:
        self._pid, self.most = pid, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self.most = max(self.most, held(self._pid))

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def ask(url: str, body: Any, **headers: str) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    method = headers.pop("method", "POST")
    with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=600) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield file.tell() - len(piece), piece


def main() -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, second = a_model(folder / "first.onnx", 1), a_model(folder / "second.onnx", 2)
        size = first.stat().st_size
        up = start_up(folder / "data", "--no-demo")
        try:
            home = up["http"]
            assert urlsplit(home).hostname == "127.0.0.1"
            plain = {"Content-Type": "application/json"}
            ask(f"{home}/v1/users", {"username": "ann", "password": PASSWORD}, **plain)
            token = ask(f"{home}/v1/tokens", {"username": "ann", "password": PASSWORD}, **plain)["access_token"]
            signed = {"Authorization": f"Bearer {token}"}
            rest = held(up.process.pid)
            with Peak(up.process.pid) as peak:
                began = time.perf_counter()
                made = ask(f"{home}/v1/uploads", {"file_name": "first.onnx", "size": size}, **plain, **signed)
                session = requests.Session()
                for offset, piece in pieces(first):
                    headers = signed | {"Content-Type": "application/octet-stream", "Upload-Offset": str(offset)}
                    answer = session.patch(f"{home}/v1/uploads/{made['id']}", data=piece, headers=headers, timeout=600)
                    assert answer.ok, answer.text
                taken = time.perf_counter() - began
                began = time.perf_counter()
                ask(f"{home}/v1/models", {"name": "first", "upload": made["id"]}, **plain, **signed)
                tried = time.perf_counter() - began
                began = time.perf_counter()
                with second.open("rb") as file:
                    form = {"name": (None, "second"), "model": ("second.onnx", file)}
                    answer = requests.post(f"{home}/v1/models", files=form, headers=signed, timeout=600)
                assert answer.status_code == 201, answer.text
                whole = time.perf_counter() - began
            print(
                f"in pieces of {PIECE // MB} MB: {size / MB / taken:.0f} MB/s; then {tried:.1f} s until the model host has tried the model"
            )
            print(f"as a form, tried and kept: {size / MB / whole:.0f} MB/s")
            print(f"the gateway's processes: {rest:.0f} MB before, {peak.most:.0f} MB at most")
        finally:
            up.stop()


if __name__ == "__main__":
    main()
