"""What runs inside a script's box: a process that has imported numpy and never runs a script, and one forked from it for each call, which does.

Nothing of a script outlives its call. The first process is told over its control socket (SOCK_SEQPACKET, JSON): {"import": [modules]}, which
is answered with {"imported": n}; {"call": limits} with the call's socket and, where somebody listens, a pipe for what is printed; {"kill":
true}. When the call's process has ended it says {"ended": status of wait}. End of file ends it, and the box with it.

The second process takes one question and gives one answer (`backends.script_frames`), whose parameters are one of

    {"found": {...}}     CHECK: which functions are there, what the script has imported, how long that took
    {"gave": [modules]}  the outputs are the answer's tensors; what the call has imported
    {"raised": text, "line": n, "kind": "input" | "memory" | "syntax" | ""}
    {"wrong": text}      what was given is no answer, or the script has not the functions that it should have
    {"large": bytes}     the answer has more bytes than it may have
"""

import contextlib
import errno
import gc
import importlib
import inspect
import json
import marshal
import os
import re
import resource
import select
import signal
import socket
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from idl import lane, tensors
from idl.tensors import Array
from inference_server.backends import script_frames as frames
from inference_server.executors import script_values, syscall_filter

_API = "outboard_model"
_CHANNEL = 3
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_LONGEST_WORDS = 500
_MOST_CODE = 4 << 20
_OPEN_FILES = 64
_CODE = "code"


class InvalidInput(ValueError):
    """Raised by a script: the request cannot be answered as it is. Its words go to the caller."""


def main(arguments: Sequence[str]) -> None:
    """`arguments`: the descriptor of the control socket. Never returns."""
    try:
        syscall_filter.put_on(syscall_filter.of_their_parent())
        control = socket.socket(fileno=int(arguments[0]))
        gc.collect()
        gc.freeze()
        control.send(b'{"born": true}')
        Parent(control).serve()
    finally:
        os._exit(1)


class Parent:
    """The process that scripts' processes are forked from. One call at a time."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._child = 0
        self._ending = -1

    def serve(self) -> None:
        """Until the control socket's other end is closed."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._ending:
                    self._ended()
                elif not self._told():
                    return

    def _told(self) -> bool:
        text, descriptors, _, _ = socket.recv_fds(self._control, 1 << 18, 2)
        if not text:
            return False
        told = json.loads(text)
        if "import" in told:
            self._control.send(json.dumps({"imported": _imported(told["import"])}).encode())
        elif "call" in told:
            self._begin(told["call"], descriptors)
        elif "kill" in told and self._child:
            os.kill(self._child, signal.SIGKILL)
        for each in descriptors:
            os.close(each)
        return True

    def _begin(self, limits: Mapping[str, int], descriptors: Sequence[int]) -> None:
        pid = os.fork()
        if not pid:
            _child(limits, *descriptors)
        self._child, self._ending = pid, os.pidfd_open(pid)
        self._poll.register(self._ending, select.POLLIN)

    def _ended(self) -> None:
        _, status = os.waitpid(self._child, 0)
        self._poll.unregister(self._ending)
        os.close(self._ending)
        self._child, self._ending = 0, -1
        self._control.send(json.dumps({"ended": status}).encode())


def _imported(names: Sequence[str]) -> int:
    """Modules that a script uses are there before it is forked: only what is installed, and none that wants a thread or does not like it here."""
    count = 0
    for name in names:
        if _MODULE.fullmatch(name) and "__" not in name and name not in sys.modules:
            try:
                importlib.import_module(name)
                count += 1
            except BaseException:  # noqa: BLE001 - it is then imported in each call, and fails there
                sys.modules.pop(name, None)
    gc.collect()
    gc.freeze()
    return count


def _child(limits: Mapping[str, int], channel: int, output: int = -1) -> None:
    """A call's process, from its fork to its end. Never returns."""
    status = frames.NO_WAY_OUT
    try:
        _own(channel, output)
        _limited(limits)
        syscall_filter.put_on(syscall_filter.of_scripts())
        _serve(socket.socket(fileno=_CHANNEL))
        status = 0
    finally:
        os._exit(status)


def _own(channel: int, output: int) -> None:
    """The call's socket as descriptor 3, standard output and error where somebody listens, and nothing else of the parent's."""
    if output < 0:
        output = os.open("/dev/null", os.O_WRONLY)
    kept, printed = os.dup(channel), os.dup(output)
    for target in (1, 2):
        os.dup2(printed, target)
    if kept != _CHANNEL:
        os.dup2(kept, _CHANNEL)
    os.closerange(_CHANNEL + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _limited(limits: Mapping[str, int]) -> None:
    for name, most in (
        (resource.RLIMIT_DATA, limits["data"]),
        (resource.RLIMIT_AS, limits["space"]),
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_STACK, min(8 << 20, resource.getrlimit(resource.RLIMIT_STACK)[0] % (1 << 62))),
    ):
        resource.setrlimit(name, (most, most))


def _serve(channel: socket.socket) -> None:
    no_memory = b"".join(frames.answer([], {"raised": "MemoryError", "line": 0, "kind": "memory"}))
    try:
        parts = _answered(channel)
    except MemoryError:
        channel.sendall(no_memory)
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    for part in parts:
        channel.sendall(part)


def _received(channel: socket.socket, size: int) -> memoryview:
    """Writable: what a script is given is its own."""
    view = memoryview(bytearray(size))
    at = 0
    while at < size:
        got = channel.recv_into(view[at:])
        if not got:
            os._exit(1)
        at += got
    return view


def _answered(channel: socket.socket) -> frames.Parts:
    head_size, code_size, body_size = frames.QUESTION.unpack(_received(channel, frames.QUESTION.size))
    head, code = lane.unpack_head(bytes(_received(channel, head_size))), bytes(_received(channel, code_size))
    body, said = _received(channel, body_size), head.parameters
    before = set(sys.modules)
    try:
        if said["function"] == frames.CHECK:
            return _checked(code)
        inputs = {t.name: _input(t, body[t.offset : t.offset + t.size]) for t in head.tensors}
        found = script_values.described(_called(code, said["function"], inputs), said["function"])
        size = sum(len(content) for *_, content in found)
        if size > said["limit"]:
            return frames.answer([], {"large": size})
        return frames.answer(found, {"gave": _imports(before)})
    except MemoryError:
        raise
    except script_values.NotATensor as error:
        return frames.answer([], {"wrong": _cut(str(error))})
    except BaseException as error:  # noqa: BLE001 - whatever it raises is its answer
        return frames.answer([], _raised(error))


def _input(tensor: lane.TensorHead, data: memoryview) -> Array:
    return tensors.decode(tensor.name, tensor.datatype, tensor.shape, data)


def _called(code: bytes, function: str, inputs: Mapping[str, Array]) -> Any:
    if "numpy.random" in sys.modules:
        np.random.seed(int.from_bytes(os.urandom(4), "little"))  # else every call would draw the same numbers
    return getattr(_loaded(marshal.loads(code)), function)(inputs)


def _loaded(code: types.CodeType) -> types.ModuleType:
    api = types.ModuleType(_API)
    api.InvalidInput = InvalidInput  # type: ignore[attr-defined]
    module = types.ModuleType("script")
    module.__file__ = frames.FILE
    sys.modules |= {_API: api, "script": module}
    sys.path[:] = [frames.FOLDER, *sys.path[1:]]  # in the place of this package's own folder
    exec(code, module.__dict__)  # noqa: S102 - what this process is for
    return module


def _checked(source: bytes) -> frames.Parts:
    code = compile(source, frames.FILE, "exec", dont_inherit=True)
    before, begun = set(sys.modules), time.monotonic()
    module = _loaded(code)
    functions = [name for name in frames.FUNCTIONS if hasattr(module, name)]
    if not functions:
        return frames.answer([], {"wrong": f"it has neither {' nor '.join(frames.FUNCTIONS)}"})
    if why := next(filter(None, (_unfit(name, getattr(module, name)) for name in functions)), ""):
        return frames.answer([], {"wrong": why})
    found = {"functions": functions, "imports": _imports(before), "load_ms": round(1000 * (time.monotonic() - begun), 3)}
    data = marshal.dumps(code)
    if len(data) > _MOST_CODE:
        return frames.answer([], {"wrong": f"it is too long: compiled it has {len(data)} bytes, at most {_MOST_CODE} are taken"})
    return frames.answer([(_CODE, "UINT8", (len(data),), data)], {"found": found})


def _unfit(name: str, function: Any) -> str:
    """Why it is no function that can be called with the tensors; "" where it is one."""
    if not callable(function):
        return f"{name} is a {type(function).__name__}, not a function"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return f"{name} gives its answer bit by bit: a function with return is wanted"
    return "" if _takes_one(function) else f"{name} takes exactly one argument, a dict of name -> array"


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    return len(parameters) == 1 and parameters[0].kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )


def _imports(before: set[str]) -> list[str]:
    """Installed modules that came since."""
    own = {_API, "script"}
    names = [name for name in sorted(set(sys.modules) - before - own) if _MODULE.fullmatch(name)]
    return [name for name in names if not str(getattr(sys.modules[name], "__file__", "") or "").startswith(frames.FOLDER)][:2000]


def _raised(error: BaseException) -> dict[str, Any]:
    """What went wrong, and where in the script."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return {"raised": "OSError", "line": 0, "kind": "memory"}
    kind = "input" if isinstance(error, InvalidInput) else "syntax" if isinstance(error, SyntaxError) else ""
    try:
        words = error.msg if isinstance(error, SyntaxError) else str(error)
    except BaseException:  # noqa: BLE001 - its own code again
        words = ""
    line = (error.lineno or 0) if isinstance(error, SyntaxError) else 0
    at = error.__traceback__
    while at is not None and not (isinstance(error, SyntaxError) and line):
        line = at.tb_lineno if at.tb_frame.f_code.co_filename == frames.FILE else line
        at = at.tb_next
    name = type(error).__name__
    text = words if kind == "input" else f"{name}: {words}" if words else name
    return {"raised": _cut(str(text)), "line": line if isinstance(line, int) else 0, "kind": kind}


def _cut(text: str) -> str:
    return " ".join(text[: 4 * _LONGEST_WORDS].split())[:_LONGEST_WORDS].encode("utf-8", "replace").decode()
