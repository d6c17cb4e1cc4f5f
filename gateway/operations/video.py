"""Frames of a video, decoded in a process of its own within limits: a decoder of a dozen formats is no place for strangers' bytes in ours.

The process (`gateway/operations/video_frames.py`) gets the file as its standard input and writes each frame as a BMP.
"""

import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gateway.operations.input_files import FormLimits
from idl.codes import Code, ServingError
from idl.tensors import invalid

_PROGRAM = Path(__file__).with_name("video_frames.py")
_HEAD = struct.Struct("<cI")
_MOST_MEMORY = 1 << 30
"""Beside what frames take: libraries, and what the decoder holds back."""
_FRAMES_HELD = 24


def frames(where: str, data: bytes, rate: float | None, limits: FormLimits) -> Iterator[bytes]:
    """`rate` a second, or every one with None, in the order in which they are shown, upright. Raises invalid_input, too_large,
    deadline_exceeded, unsupported where there is no decoder."""
    if data[4:8] != b"ftyp":
        from gateway.operations.file_kinds import kind_of

        raise invalid(f"{where} is {kind_of(data) or 'nothing that is known'}, not an mp4 video")
    pixels = limits.pictures.max_pixels
    left_s = max(1, int(limits.pictures.deadline - time.monotonic()) + 1)
    memory = _MOST_MEMORY + _FRAMES_HELD * 3 * min(pixels, 16_000_000) + len(data)
    told = [str(0 if rate is None else rate), str(limits.samples), str(pixels), str(left_s), str(memory)]
    descriptor = os.memfd_create("video", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "w+b") as file:
        file.write(data)
        file.flush()
        file.seek(0)
        command = [_python(), "-I", str(_PROGRAM), *told]
        with subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}) as process:
            try:
                yield from _received(where, process, limits)
            finally:
                process.kill()


def _received(where: str, process: "subprocess.Popen[bytes]", limits: FormLimits) -> Iterator[bytes]:
    number = 0
    while True:
        kind, size = _HEAD.unpack(_read(where, process, _HEAD.size, limits) or b"X\0\0\0\0")
        if kind == b"D" and number:
            return
        if kind == b"F":
            number += 1
            limits.check(where, number)
            yield _read(where, process, size, limits)
            continue
        message = _read(where, process, min(size, 1000), limits).decode(errors="replace") if size else ""
        if kind == b"L":
            raise ServingError(Code.TOO_LARGE, f"{where}: {message}")
        if kind == b"U":
            raise ServingError(Code.UNSUPPORTED, f"{where}: {message}")
        raise invalid(f"{where}: {message or ('it has no frames' if kind == b'D' else 'the video cannot be decoded')}")


def _read(where: str, process: "subprocess.Popen[bytes]", size: int, limits: FormLimits) -> bytes:
    """b"" where the process has ended before."""
    assert process.stdout is not None
    descriptor, parts = process.stdout.fileno(), bytearray()
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    while len(parts) < size:
        left_ms = int((limits.pictures.deadline - time.monotonic()) * 1000)
        if left_ms <= 0 or not waiting.poll(left_ms):
            raise ServingError(Code.DEADLINE_EXCEEDED, f"{where}: the video was not decoded in the time allowed")
        piece = os.read(descriptor, min(size - len(parts), 1 << 20))
        if not piece:
            return b""
        parts += piece
    return bytes(parts)


def _python() -> str:
    """With our packages: inside uWSGI `sys.executable` is an interpreter without them."""
    for path in (Path(sys.prefix) / "bin" / "python3", Path(sys.prefix) / "bin" / "python", Path(sys.executable)):
        if path.is_file():
            return str(path)
    return "python3"
