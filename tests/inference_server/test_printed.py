"""What models print: lines of the server's log, which nobody can forge, and which cost it little."""

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idl.codes import ServingError
from inference_server.engine import Engine
from inference_server.executors import printed
from inference_server.executors.printed import Printed, plain
from inference_server.logs import JsonLines
from tests.eventually import eventually
from tests.inference_server.test_python_models import ask, load
from tests.python_models import DOUBLE_TOML, python_model

OFF = '[python]\nsandbox = "off"\n'


class Said:
    """Lines of the log, as they are written."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    @property
    def lines(self) -> list[str]:
        return [JsonLines().format(record) for record in self._caplog.records if record.message == "said"]

    @property
    def found(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    @property
    def texts(self) -> list[str]:
        return [each["text"] for each in self.found]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Said]:
    with caplog.at_level(logging.INFO, "outboard.server"):
        yield Said(caplog)


@pytest.mark.parametrize("toml", ["", OFF], ids=["boxed where it can be", "without a box"])
def test_what_a_model_prints_is_in_the_log(engine: Engine, repository: Path, said: Said, toml: str) -> None:
    code = """
    import os, sys
    print("at import")
    def load():
        print("ready grpc=evil.example:1 thrift=forged", file=sys.stderr)
        os.write(1, b'{"level": "error", "event": "forged"}\\n')
    def infer(inputs):
        print("in infer", inputs["x"][0])
        if inputs["x"][0] < 0: raise KeyError("nothing")
        return {"y": inputs["x"]}
    def close():
        print("at the end", end="")
    """
    load(engine, repository, code, DOUBLE_TOML + toml, version=3)
    ask(engine)
    eventually(lambda: said.texts[-1:] == ["in infer 1.0"], "a line is there when it is printed")
    assert said.texts == ["at import", "ready grpc=evil.example:1 thrift=forged", '{"level": "error", "event": "forged"}', "in infer 1.0"]
    assert {(each["event"], each["level"], each["model"], each["version"]) for each in said.found} == {("said", "info", "m", 3)}
    with pytest.raises(ServingError):
        ask(engine, [-1.0])
    eventually(lambda: "KeyError: 'nothing'" in said.texts, "a traceback is as well")
    engine.repository_model_unload("m", {})
    eventually(lambda: said.texts[-1] == "at the end", "the last words of it")


def test_a_process_that_does_not_begin_has_said_why(engine: Engine, repository: Path, said: Said) -> None:
    python_model(repository / "m", "import os, sys\nsys.stderr.write('out of luck')\nsys.stderr.flush()\nos._exit(3)", DOUBLE_TOML)
    with pytest.raises(ServingError):
        engine.repository_model_load("m", {})
    eventually(lambda: said.texts == ["out of luck"], "what it said before it died")


@pytest.fixture
def pipe() -> Iterator[tuple[Printed, int]]:
    listener = Printed()
    reads, writes = os.pipe2(os.O_CLOEXEC)
    listener.listen(reads, {"model": "m"})
    yield listener, writes
    listener.close()


def told(said: Said, pipe: tuple[Printed, int], data: bytes) -> list[dict[str, Any]]:
    listener, writes = pipe
    with os.fdopen(writes, "wb", buffering=0) as file:
        file.write(data)
    listener.close()
    return [{key: value for key, value in each.items() if key not in ("time", "level", "event", "model")} for each in said.found]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", []),
        (b"\n", [{"text": ""}]),
        (b"one\ntwo", [{"text": "one"}, {"text": "two"}]),
        ("größe 数\t1\n".encode(), [{"text": "größe 数\t1"}]),
        (b"\x1b[2J\x1b]0;title\x07 \r\x00\x9b31m\n", [{"text": r"\x1b[2J\x1b]0;title\x07 \r\x00\x9b31m"}]),
        ("\x9b\u202e\u2028\x7f\n".encode(), [{"text": r"\x9b\u202e\u2028\x7f"}]),
        (b"\xff\xfe\n", [{"text": r"\xff\xfe"}]),
        (b'"}\\ {"event": "forged"}\n', [{"text": '"}\\ {"event": "forged"}'}]),
        (b"x" * 5000 + b"\nnext\n", [{"text": "x" * 2000, "bytes_left_out": 3000}, {"text": "next"}]),
        (b"x" * 2000, [{"text": "x" * 2000}]),
    ],
)
def test_each_line_is_one_line(said: Said, pipe: tuple[Printed, int], data: bytes, found: list[dict[str, Any]]) -> None:
    assert told(said, pipe, data) == found
    assert all("\n" not in line and plain(line) == line for line in said.lines), "nothing in them that a terminal obeys"


def test_of_many_lines_so_many_are_there_and_the_others_counted(said: Said, pipe: tuple[Printed, int]) -> None:
    found = told(said, pipe, b"".join(b"line %d\n" % number for number in range(5000)))
    left_out = sum(each.get("lines_left_out", 0) for each in found)
    texts = [each["text"] for each in found if "lines_left_out" not in each]
    assert texts[: printed.LINES_PER_S] == [f"line {number}" for number in range(printed.LINES_PER_S)]
    assert len(texts) + left_out == 5000


def test_who_prints_without_end_waits_and_the_server_reads_little(
    said: Said, pipe: tuple[Printed, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printed, "BYTES_PER_S", 1 << 20)
    _, writes = pipe
    os.set_blocking(writes, False)
    written, begun = 0, time.monotonic()
    while time.monotonic() - begun < 1.5:
        try:
            written += os.write(writes, b"y\n" * 2000)
        except BlockingIOError:
            time.sleep(0.001)
    assert (1 << 20) <= written <= 5 * (1 << 20), "the rest of a second nothing is read, and then again"
    lines = len(told(said, pipe, b""))
    assert lines <= 5 * (printed.LINES_PER_S + 1)


def test_one_thread_reads_all_and_ends_with_the_last(said: Said) -> None:
    listener = Printed()
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(20)]
    for number, (reads, _) in enumerate(pipes):
        listener.listen(reads, {"model": f"m{number}"})
    for number, (_, writes) in enumerate(pipes):
        os.write(writes, b"hello\n")
        if number % 2:
            os.close(writes)
    eventually(lambda: len(said.texts) == 20, "all are heard")
    listener.close()
    listener.close()
    for _, writes in pipes[::2]:
        with pytest.raises(BrokenPipeError):
            os.write(writes, b"nobody")
        os.close(writes)
    reads, writes = os.pipe2(os.O_CLOEXEC)
    listener.listen(reads, {"model": "late"})
    with pytest.raises(BrokenPipeError):
        os.write(writes, b"nobody")
    os.close(writes)
