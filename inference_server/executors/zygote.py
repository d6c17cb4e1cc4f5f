"""The process that executors are forked from: it has imported numpy and onnxruntime, and nothing else.

It holds no session, no CUDA context and as few threads as the imports leave, so a fork is ready in milliseconds and shares the
libraries' memory. The supervisor talks to it over a SOCK_SEQPACKET pair: one JSON message {"name", "memory_limit"} with three
descriptors (the listening lane socket, the executor's end of its control socket, its board), one answer {"pid"} with a pidfd. End of
file on that socket ends the zygote, and with it, by the parent-death signal, every executor.
"""

import array
import contextlib
import gc
import json
import os
import signal
import socket
import sys

# before numpy: threads that its BLAS starts would not survive a fork
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy

import inference_server.backends.onnx  # noqa: F401 - for the processes to come
from idl.board import Board, read_only
from inference_server.backends.runtime import onnxruntime
from inference_server.executors.becoming import be_an_executor
from inference_server.executors.loading import load
from inference_server.executors.serving import Executor

_SMALLEST_MODEL = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
"""ONNX, IR version 8, opset 13: y = Identity(x), float [1]."""


def main(descriptor: int, server: int) -> None:
    """Serves fork requests on `descriptor` until end of file. `server`: the pid of the process that started this one."""
    ours = os.getpid()
    onnxruntime.set_default_logger_severity(
        4
    )  # what goes wrong is raised; printed, names out of a model's file could look like our own lines
    _rehearse()
    channel = socket.socket(fileno=descriptor)
    be_an_executor("outboard-zygote", server)
    signal.signal(signal.SIGCHLD, _reap)
    gc.collect()
    gc.freeze()
    while True:
        text, ancillary, _, _ = channel.recvmsg(4096, 64)
        if not text:
            return
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        asked = json.loads(text)
        try:
            pid = os.fork()
        except OSError as error:  # no memory or no more processes: every running executor depends on this process going on
            channel.send(json.dumps({"failed": error.strerror}).encode())
        else:
            if pid == 0:
                channel.close()
                _run(ours, asked, *descriptors)
            _answer(channel, pid)
        for received in descriptors:
            os.close(received)


def _rehearse() -> None:
    """A session is made, run and let go of: what onnxruntime sets up at its first one (the operators that it knows) every executor then
    shares, and need not set up again. Measured for each: 2 MB and 3 ms less.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # more would be threads, which a fork leaves behind
    session = onnxruntime.InferenceSession(_SMALLEST_MODEL, options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": numpy.zeros(1, numpy.float32)})


def _answer(channel: socket.socket, pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # dead and reaped already: its control socket says so
        channel.send(json.dumps({"pid": pid}).encode())
        return
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))
    channel.sendmsg([json.dumps({"pid": pid}).encode()], [rights])
    os.close(pidfd)


def _run(parent: int, asked: dict[str, object], listener: int, control: int, board: int) -> None:
    """The child's whole life; never returns."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        gc.set_threshold(20_000, 20, 50)  # a request leaves no cycles; a model that does is still cleaned up after
        be_an_executor(str(asked["name"]), parent)
        shown, mapped = read_only(board), Board(board, writable=True)
        os.close(board)
        limit = int(str(asked["memory_limit"]))
        Executor(socket.socket(fileno=listener), socket.socket(fileno=control), mapped, shown, limit).serve(load)
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
