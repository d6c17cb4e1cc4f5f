"""Steady HTTP load that remembers every single request, for what happens while something changes.

`python -m benchmarks.loads.steady URL BODY_FILE HEADERS_JSON CALLERS` prints `started`, goes on until its standard input ends, then
prints a JSON list of [end on the monotonic clock in s, latency in ms, HTTP status or 0, the answer's "version"].
"""

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.payloads import HttpRequest

CALLERS = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """`end` in seconds of the monotonic clock, which all processes of a machine share; status 0: the connection broke."""

    end: float
    latency_ms: float
    status: int
    version: str


@contextmanager
def steady(base: str, request: HttpRequest, body: Path) -> Iterator[list[Answer]]:
    """Load while the block runs; the list is filled when it ends."""
    command = [sys.executable, "-m", "benchmarks.loads.steady", base + request.path, str(body), json.dumps(request.headers), str(CALLERS)]
    answers: list[Answer] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        try:
            yield answers
        finally:
            process.stdin.close()
            printed = process.stdout.read()
    answers += [Answer(*row) for row in json.loads(printed)]


class _Caller(threading.Thread):
    def __init__(self, url: str, body: bytes, headers: dict[str, str], stop: threading.Event) -> None:
        super().__init__()
        self._url, self._body, self._headers, self._stop_asked = urlsplit(url), body, headers, stop
        self.rows: list[tuple[float, float, int, str]] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._url.netloc, timeout=30)
        while not self._stop_asked.is_set():
            begin = time.monotonic()
            try:
                connection.request("POST", self._url.path, self._body, self._headers)
                answer = connection.getresponse()
                content, status = answer.read(), answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
                content, status = b"", 0
            end = time.monotonic()
            version = str(json.loads(content).get("version", "")) if status == 200 else ""
            self.rows.append((end, (end - begin) * 1e3, status, version))
        connection.close()


def main(url: str, body: str, headers: str, callers: str) -> None:
    stop = threading.Event()
    threads = [_Caller(url, Path(body).read_bytes(), json.loads(headers), stop) for _ in range(int(callers))]
    for thread in threads:
        thread.start()
    print("started", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps([row for thread in threads for row in thread.rows]))


if __name__ == "__main__":
    main(*sys.argv[1:])
