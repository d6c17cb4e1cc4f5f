"""What an executor that was started afresh does: the life of its process."""

import gc
import io
import json
import os
import socket
import sys
from collections.abc import Sequence

from inference_server.executors import thread_limit


def main(arguments: Sequence[str]) -> None:
    """`arguments`: what it is told, as JSON, then the descriptors of its listener, its control socket and its board. Never returns."""
    status = 1
    try:
        told = json.loads(arguments[0])
        _print_lines()
        thread_limit.hold(told["most_threads"])
        listener, control, board = (socket.socket(fileno=int(arguments[1])), socket.socket(fileno=int(arguments[2])), int(arguments[3]))
        from idl.board import Board, read_only
        from inference_server.executors.becoming import be_an_executor
        from inference_server.executors.loading import load
        from inference_server.executors.serving import Executor

        be_an_executor(told["name"], told["parent"] or os.getppid())
        shown, mapped = read_only(board), Board(board, writable=True)
        os.close(board)
        control.send(b'{"born": true}')
        gc.freeze()
        Executor(listener, control, mapped, shown, told["memory_limit"]).serve(load)
        status = 0
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status)


def _print_lines() -> None:
    """Each line when it is printed: standard output is a pipe, which Python otherwise fills first."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
