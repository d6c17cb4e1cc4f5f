"""An executor inside the server's own process, for debugging: `executor = "thread"` in model.toml. Nothing protects the server from it."""

import itertools
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from idl import board as boards
from idl.board import Board
from idl.lane_calls import LaneAnswer
from idl.lane_pool import LanePool
from idl.lane_streams import LaneStream
from idl.messages import InferRequest
from inference_server.executors.farewell import ask_to_leave, has_left
from inference_server.executors.process import Loaded, LoadRequest, read_loaded

_numbers = itertools.count(1)


class ThreadExecutor:
    """As ProcessExecutor, without a process: it cannot crash alone, is not limited, and gives no memory back."""

    def __init__(self, run_dir: Path, wanted: LoadRequest, memory_limit: int) -> None:
        from inference_server.executors.loading import load  # not at the top: only here does the server itself run models
        from inference_server.executors.serving import Executor

        self.pid = os.getpid()
        self.path = run_dir / f"x{self.pid}t{next(_numbers)}.lane"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(self.path))
        self.path.chmod(0o660)
        listener.listen(4096)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptor = boards.create()
        try:
            self.board = Board(descriptor, writable=True)
            shown = boards.read_only(descriptor)
        finally:
            os.close(descriptor)
        self._pool = LanePool(str(self.path), memory_limit)
        self._executor = Executor(listener, theirs, self.board, shown, memory_limit)
        self._sockets = (listener, theirs)
        self._thread = threading.Thread(target=self._executor.serve, args=(load,), name=f"executor-{wanted.name}", daemon=True)
        self._thread.start()
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._control.send(json.dumps({"load": wanted.asked}).encode())
            self.loaded: Loaded = read_loaded(self._control.recv(1 << 20))
        except BaseException:
            self.close()
            raise

    @property
    def outstanding(self) -> int:
        return self.board.in_flight

    def call(self, request: InferRequest) -> LaneAnswer:
        return self._pool.call(request)

    def stream(self, request: InferRequest, watch: int) -> LaneStream:
        return LaneStream(self._pool, request, watch)

    def watch(self, on_death: Callable[[], None]) -> None:
        """It dies with the server only."""

    def leave(self) -> None:
        ask_to_leave(self._control)

    def left(self, timeout_s: float) -> bool:
        return has_left(self._control, timeout_s)

    def why(self) -> str:
        return ""

    def kill(self) -> None:
        """Cannot be done to a thread."""

    def memory_bytes(self) -> int:
        return 0

    def trim(self, idle_since: float) -> None:
        self._pool.trim(idle_since)

    def close(self) -> None:
        """Ends the loop after the run that it is in. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._pool.close()
        self.path.unlink(missing_ok=True)
        self._control.close()
        self._thread.join()
        for sock in self._sockets:
            sock.close()
