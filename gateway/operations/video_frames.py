"""The program of `video`: an mp4 on standard input, its frames on standard output. It imports nothing of ours.

Each message is a letter, a length of 4 bytes and as many bytes: F a frame (BMP), D the end, L over a limit, U unsupported, E an error.
Arguments: frames a second (0: all), most frames, most pixels of one, seconds of processor time, bytes of memory.
"""

import resource
import struct
import sys
from typing import Any

_HEAD = struct.Struct("<cI")


def main(rate: float, most: int, pixels: int, seconds: int, memory: int) -> None:
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    try:
        import av
    except ImportError:
        tell(b"U", "there is no decoder for videos here (pip install 'outboard[gateway]')")
        return
    try:
        decode(av, rate, most, pixels)
    except MemoryError:
        tell(b"L", "it needs more memory than a video may")
    except av.FFmpegError as error:
        tell(b"E", f"the video is damaged: {error.strerror or type(error).__name__}")


def decode(av: Any, rate: float, most: int, pixels: int) -> None:
    """A frame for each 1 / rate seconds: the first that is shown at or after it."""
    # the format is said, because others name files and addresses that would be opened
    with av.open(sys.stdin.buffer, format="mp4") as container:
        if not container.streams.video:
            tell(b"E", "it has no pictures in it")
            return
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        due, count, begin = 0.0, 0, None
        for frame in container.decode(stream):
            if frame.width * frame.height > pixels:
                tell(b"L", f"its frames ({frame.width} x {frame.height}) have over {pixels} pixels")
                return
            shown = frame.time if frame.time is not None else count / 25
            begin = shown if begin is None else begin
            if rate and shown - begin + 1e-6 < due:
                continue
            if count >= most:
                tell(b"L", f"it has more than {most} frames")
                return
            count += 1
            send(b"F", bitmap(frame))
            while rate and due <= shown - begin + 1e-6:
                due += 1 / rate
        send(b"D", b"")


def bitmap(frame: Any) -> bytes:
    """24 bits a pixel, rows from the top, each filled up to 4 bytes."""
    plane = frame.reformat(format="bgr24").planes[0]
    width, height, data, line = frame.width, frame.height, bytes(plane), plane.line_size
    if turns := round(getattr(frame, "rotation", 0) / 90) % 4:
        from PIL import Image

        # the number of quarter turns counter-clockwise
        upright = Image.frombytes("RGB", (width, height), data, "raw", "RGB", line).transpose(
            (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)[turns - 1]
        )
        (width, height), data, line = upright.size, upright.tobytes(), upright.width * 3
    padding = b"\0" * (-width * 3 % 4)
    body = b"".join(data[at : at + width * 3] + padding for at in range(0, height * line, line))
    head = struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 24, 0, len(body), 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + len(body), 0, 0, 54) + head + body


def tell(kind: bytes, message: str) -> None:
    send(kind, message.encode()[:900])


def send(kind: bytes, content: bytes) -> None:
    sys.stdout.buffer.write(_HEAD.pack(kind, len(content)) + content)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), *map(int, sys.argv[2:6]))
