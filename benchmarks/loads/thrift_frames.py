"""Thrift load: one process, many connections, a ready-made frame on each, one at a time; replies are checked, not decoded.

`python -m benchmarks.loads.thrift_frames HOST PORT FRAME_FILE CONCURRENCY SECONDS` prints one line of JSON.
"""

import json
import selectors
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.figures import Sample, sample
from idl.thrift_binary import REPLY, Reader

NAME = "thrift frames (Python, one process)"


def load(address: str, frame: Path, concurrency: int, seconds: float) -> Sample:
    host, _, port = address.rpartition(":")
    command = [sys.executable, "-m", "benchmarks.loads.thrift_frames", host, port, str(frame), str(concurrency), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True)
    return Sample(**json.loads(done.stdout))


def is_success(reply: bytes | bytearray) -> bool:
    """Whether a whole framed reply carries the result, field 0, and not a declared exception."""
    reader = Reader(reply, 4)
    _, kind, _ = reader.message_begin()
    return kind == REPLY and bytes(reader.data[reader.position + 1 : reader.position + 3]) == b"\0\0"


class _Connection:
    __slots__ = ("received", "sent_at", "socket", "wanted")

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = bytearray()
        self.wanted = 4
        self.sent_at = 0.0

    def send(self, frame: bytes) -> None:
        self.received.clear()
        self.wanted = 4
        self.sent_at = time.perf_counter()
        self.socket.sendall(frame)

    def is_answered(self) -> bool:
        """Takes what has arrived; True once a whole frame is here."""
        piece = self.socket.recv(1 << 16)
        if not piece:
            raise ConnectionError("the server closed the connection")
        self.received += piece
        if self.wanted == 4 and len(self.received) >= 4:
            self.wanted = 4 + int.from_bytes(self.received[:4], "big")
        return len(self.received) >= self.wanted


def drive(host: str, port: int, frame: bytes, concurrency: int, seconds: float) -> Sample:
    connections = [_Connection(host, port) for _ in range(concurrency)]
    latencies: list[float] = []
    errors = 0
    with selectors.EpollSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(frame)
        start = now = time.perf_counter()
        while now - start < seconds:
            for key, _ in selector.select(1):
                connection = key.data
                if not connection.is_answered():
                    continue
                now = time.perf_counter()
                latencies.append((now - connection.sent_at) * 1e3)
                errors += not is_success(connection.received)
                connection.send(frame)
            now = time.perf_counter()
    for connection in connections:
        connection.socket.close()
    return sample(latencies, now - start, errors)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    result = drive(arguments[0], int(arguments[1]), Path(arguments[2]).read_bytes(), int(arguments[3]), float(arguments[4]))
    print(json.dumps(asdict(result)))
