"""Spans to a collector, over OTLP/HTTP with JSON: in the background, bounded, and never in a request's way.

Source of the rules: OpenTelemetry Protocol Specification, "OTLP/HTTP". A collector that is away, or says 429, 502, 503 or 504, is asked
again, later each time; what comes meanwhile and finds no room is dropped, and counted.
"""

import contextlib
import http.client
import json
import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from idl.shared_cells import map_cells
from idl.traces import Control, Span, Tracer, to_otlp

log = logging.getLogger("outboard.traces")

MOST_WAITING, BATCH = 8192, 512
EVERY_S, TIMEOUT_S, FLUSH_S = 1.0, 10.0, 3.0
LEAST_PAUSE_S, MOST_PAUSE_S = 1.0, 30.0
_AGAIN = (429, 502, 503, 504)
_PATH = "/v1/traces"
SUFFIX = ".spans"
EXPORTED, DROPPED = 0, 1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where spans are sent."""

    tls: bool
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """`http://collector:4318` or `https://...`; without a path, OTLP's own. Raises ValueError."""
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise ValueError(f"{text!r} is not an address") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise ValueError(f"{text!r} is not an address such as http://127.0.0.1:4318")
        path = parts.path if parts.path not in ("", "/") else _PATH
        return cls(parts.scheme == "https", parts.hostname, port or (443 if parts.scheme == "https" else 4318), path)


class SpanCounts:
    """How many spans one process has exported and dropped; in a file where others add them up. The file outlives its process."""

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.Lock()
        descriptor = os.memfd_create("outboard-spans") if path is None else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, 16)
            self.cells = map_cells(descriptor, 2, writable=True)
        finally:
            os.close(descriptor)

    def add(self, cell: int, count: int) -> None:
        with self._lock:
            self.cells[cell] += count


def counted(folder: Path) -> tuple[int, int]:
    """(exported, dropped) of all processes whose files lie in `folder`."""
    exported = dropped = 0
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            cells = memoryview(path.read_bytes().ljust(16, b"\0")).cast("q")
            exported, dropped = exported + cells[EXPORTED], dropped + cells[DROPPED]
    return exported, dropped


class Exporter:
    """Satisfies `traces.Sink`. Thread-safe; its thread begins with the first span, so it may be made before a fork."""

    def __init__(self, endpoint: Endpoint, service: str, version: str, counts: SpanCounts, *, most: int = MOST_WAITING) -> None:
        self._endpoint, self._service, self._version, self._counts, self._most = endpoint, service, version, counts, most
        self._changed = threading.Condition()
        self._waiting: deque[Span] = deque()
        self._thread: threading.Thread | None = None
        self._closing_at: float | None = None
        self._is_away = False

    def add(self, span: Span) -> None:
        with self._changed:
            if self._closing_at is not None or len(self._waiting) >= self._most:
                self._counts.add(DROPPED, 1)
                return
            self._waiting.append(span)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
                self._thread.start()
            elif len(self._waiting) == BATCH:
                self._changed.notify()

    def _run(self) -> None:
        pause_s = 0.0
        while True:
            with self._changed:
                if self._closing_at is None:
                    self._changed.wait_for(self._is_due if not pause_s else self._is_closing, pause_s or EVERY_S)
                closing_at = self._closing_at
                spans = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            if not spans:
                if closing_at is not None:
                    return
                continue
            again_s = self._send(spans, TIMEOUT_S if closing_at is None else max(0.1, closing_at - time.monotonic()))
            if again_s is None:
                pause_s = 0.0
                continue
            if closing_at is not None:
                with self._changed:
                    self._counts.add(DROPPED, len(spans) + len(self._waiting))
                    self._waiting.clear()
                return
            with self._changed:
                self._waiting.extendleft(reversed(spans))
                while len(self._waiting) > self._most:
                    self._waiting.pop()
                    self._counts.add(DROPPED, 1)
            pause_s = min(MOST_PAUSE_S, again_s or max(LEAST_PAUSE_S, 2 * pause_s))

    def _is_due(self) -> bool:
        return self._is_closing() or len(self._waiting) >= BATCH

    def _is_closing(self) -> bool:
        return self._closing_at is not None

    def _send(self, spans: list[Span], timeout_s: float) -> float | None:
        """None where they are done with; else how long the collector wants to be left alone, in seconds, 0 where it does not say."""
        body = json.dumps(to_otlp(self._service, self._version, spans), separators=(",", ":")).encode()
        try:
            status, after, said = self._post(body, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            self._tell(f"{type(error).__name__}: {error}")
            return 0.0
        if status in _AGAIN:
            self._tell(f"status {status}")
            return float(after) if after.isdigit() else 0.0
        if not 200 <= status < 300:
            self._tell(f"status {status}, and {len(spans)} spans are dropped")
            self._counts.add(DROPPED, len(spans))
            return None
        refused = min(len(spans), _refused(said))
        self._is_away = False
        self._counts.add(EXPORTED, len(spans) - refused)
        if refused:
            self._counts.add(DROPPED, refused)
        return None

    def _post(self, body: bytes, timeout_s: float) -> tuple[int, str, bytes]:
        there = self._endpoint
        kind = http.client.HTTPSConnection if there.tls else http.client.HTTPConnection
        connection = kind(there.host, there.port, timeout=timeout_s)
        try:
            connection.request("POST", there.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.getheader("Retry-After", ""), answer.read(1 << 16)
        finally:
            connection.close()

    def _tell(self, reason: str) -> None:
        if not self._is_away:
            log.warning("the collector of traces does not take them: %s", reason)
        self._is_away = True

    def close(self) -> None:
        """Sends what is left, for FLUSH_S at most. Idempotent."""
        with self._changed:
            if self._closing_at is None:
                self._closing_at = time.monotonic() + FLUSH_S
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(FLUSH_S + 1)


def _refused(said: bytes) -> int:
    """Of a partial success."""
    try:
        return int(json.loads(said)["partialSuccess"]["rejectedSpans"])
    except (ValueError, KeyError, TypeError):
        return 0


def version() -> str:
    """Of this release."""
    try:
        return metadata.version("outboard")
    except metadata.PackageNotFoundError:
        return "0"


def make_tracer(
    endpoint: str, rate: float, service: str, version: str, counts: Path | None = None, control: Control | None = None
) -> Tracer | None:
    """None where `endpoint` is "": nothing is traced. Raises ValueError for an endpoint that is none. `counts`: see SpanCounts."""
    if not endpoint:
        return None
    return Tracer(Exporter(Endpoint.parse(endpoint), service, version, SpanCounts(counts)), rate, control=control)
