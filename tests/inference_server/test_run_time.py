"""What callers set while the server runs: shared memory, trace and log settings; and what becomes of it when a client is killed."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idl.classification import classify
from idl.codes import Code, ServingError
from idl.generated import inference_pb2 as pb
from idl.messages import SharedRegion, Tensor
from idl.shared_regions import FOLDER, Place, Region, place
from idl.tensors import decode, encode
from idl.trace_control import Followed, Published
from idl.traces import Tracer
from inference_server import logs, trace_settings
from inference_server.front.calls import pack
from inference_server.log_settings import LogSettings
from inference_server.shared_memory import MOST_REGIONS, SharedMemory
from inference_server.trace_settings import TraceSettings, started_with
from tests.processes import descriptors
from tests.test_traces import Kept


def refusal(run: Any, *arguments: Any, **keywords: Any) -> ServingError:
    try:
        run(*arguments, **keywords)
    except ServingError as error:
        return error.with_traceback(None)  # whose frames would hold regions
    raise AssertionError("it was not refused")


@pytest.fixture
def key() -> Iterator[str]:
    """The key of 64 bytes of shared memory."""
    file = Path(FOLDER) / f"outboard-test-{os.getpid()}"
    file.write_bytes(bytes(range(64)))
    yield f"/{file.name}"
    file.unlink(missing_ok=True)


def whole(key: str) -> Path:
    return Path(FOLDER) / key.removeprefix("/")


# regions ---------------------------------------------------------------------------------------------------------------------------


def test_what_is_no_shared_memory_is_refused(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64))
    link, fifo, folder = (whole(f"{key}-{kind}") for kind in ("link", "fifo", "folder"))
    link.symlink_to(tmp_path / "file")
    os.mkfifo(fifo)
    folder.mkdir()
    try:
        for bad in (
            "",
            "/",
            ".",
            "..",
            "a/b",
            "../../etc/passwd",
            "a\0b",
            "x" * 256,
            "/not-there",
            *(each.name for each in (link, fifo, folder)),
        ):
            error = refusal(Region, SharedRegion("r", bad, 0, 8))
            assert error.code is Code.INVALID_INPUT and "'r'" in error.message and FOLDER not in error.message, bad
    finally:
        link.unlink()
        fifo.unlink()
        folder.rmdir()
    for offset, size in ((0, 65), (60, 5), (2**62, 1), (0, 0), (-1, 8), (0, 2**63)):
        assert refusal(Region, SharedRegion("r", key, offset, size)).code is Code.INVALID_INPUT


def test_places_are_checked(key: str) -> None:
    region = Region(SharedRegion("r", key, 16, 32))
    assert bytes(region.read("x", Place("r", 4, 28))) == bytes(range(44, 48))
    for size, offset in ((33, 0), (4, 29), (2**64, 0), (0, 33)):
        assert "outside" in refusal(region.read, "x", Place("r", size, offset)).message
    assert "12 bytes, and 8 were given" in refusal(region.write, "x", Place("r", 8, 0), bytes(12)).message
    for wrong in ({"shared_memory_byte_size": 8}, {"shared_memory_region": "r"}, {"shared_memory_region": 1, "shared_memory_byte_size": 8}):
        assert refusal(place, "x", wrong).code is Code.INVALID_INPUT
    assert place("x", {"other": 1}) is None


def test_memory_that_shrinks_ends_nothing_and_does_not_grow_again(key: str) -> None:
    region, over = Region(SharedRegion("r", key, 0, 64)), threading.Event()

    def shrink() -> None:
        while not over.is_set():
            os.truncate(whole(key), 0)
            os.truncate(whole(key), 64)

    thread = threading.Thread(target=shrink)
    thread.start()
    read = 0
    for _ in range(2000):
        try:
            read += len(region.read("x", Place("r", 64, 0)))
        except ServingError as error:
            assert error.code is Code.INVALID_INPUT
    over.set()
    thread.join()
    assert read % 64 == 0
    os.truncate(whole(key), 8)
    assert refusal(region.write, "y", Place("r", 64, 0), bytes(64)).code is Code.INVALID_INPUT
    assert whole(key).stat().st_size == 8


def test_a_region_in_use_outlives_its_name_and_its_owner(key: str) -> None:
    memory = SharedMemory(enabled=True)
    script = f"import os, time; open({str(whole(key))!r}, 'wb').write(b'12345678'); print('there', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None and owner.stdout.readline()
        memory.register(SharedRegion("r", key, 0, 8))
        owner.kill()
    before = descriptors()
    region = memory.region("r")
    memory.unregister("r")
    memory.unregister("r")
    whole(key).unlink()
    assert bytes(region.read("x", Place("r", 8, 0))) == b"12345678"
    region.write("y", Place("r", 8, 0), b"abcdefgh")
    assert bytes(region.read("x", Place("r", 8, 0))) == b"abcdefgh"
    assert refusal(memory.region, "r").code is Code.NOT_FOUND
    del region
    assert descriptors() == before - 1


def test_regions_are_bounded_and_named_once(key: str) -> None:
    memory = SharedMemory(enabled=True)
    for number in range(MOST_REGIONS):
        memory.register(SharedRegion(str(number), key, 0, 8))
    assert refusal(memory.register, SharedRegion("7", key, 0, 8)).code is Code.ALREADY_EXISTS
    assert refusal(memory.register, SharedRegion("one more", key, 0, 8)).code is Code.INSUFFICIENT_CAPACITY
    memory.unregister("")
    assert memory.status("") == ()


# the front ----------------------------------------------------------------------------------------------------------------------------------


def test_the_front_leaves_extended_requests_to_the_server() -> None:
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="FP32", shape=[1]).parameters["shared_memory_region"].string_param = "r"
    assert pack(message.SerializeToString()) is None
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"1234"])
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    assert pack(message.SerializeToString()) is not None
    message.outputs.add(name="y").parameters["classification"].int64_param = 1
    assert pack(message.SerializeToString()) is None


# settings --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Published]:
    made = Published(tmp_path)
    yield made
    made.close()


def settings(traces: TraceSettings, model: str = "") -> tuple[str, str, str]:
    """Level, rate, count."""
    told = traces.change(model, {})
    return told["trace_level"][0], told["trace_rate"][0], told["trace_count"][0]


def test_which_requests_are_traced(tmp_path: Path, published: Published) -> None:
    traces = TraceSettings(started_with(True, 1.0), published)
    tracer = Tracer(Kept(), 1.0, control=Followed(tmp_path))

    def take(model: str) -> bool:
        return tracer.enter("", model) is not None

    assert settings(traces) == ("TIMESTAMPS", "1", "-1") and take("m")
    assert traces.change("", {"trace_level": ("OFF",)})["trace_level"] == ["OFF"] and not take("m")
    traces.change("", {"trace_level": ("TIMESTAMPS",), "trace_rate": ("3",)})
    assert [take("m") for _ in range(7)] == [True, False, False, True, False, False, True]
    traces.change("m", {"trace_rate": ("1",), "trace_count": ("2",)})
    assert [take("m") for _ in range(4)] == [True, True, False, False] and settings(traces, "m") == ("TIMESTAMPS", "1", "0")
    assert [take("n") for _ in range(3)] == [False, False, True], "other models go on with the server's"
    assert settings(traces, "n") == ("TIMESTAMPS", "3", "-1")
    traces.change("m", {"trace_count": ("1",)})
    assert [take("m") for _ in range(3)] == [True, False, False], "a count begins anew"
    traces.change("", {"trace_count": ("5",)})
    traces.change("m", {"trace_count": ("-1",)})
    assert [take("m") for _ in range(6)] == [True] * 6 and settings(traces)[2] == "5", "no limit, whatever the server's is"
    traces.change("m", {"trace_level": ("OFF",)})
    assert not take("m") and settings(traces, "m")[0] == "OFF" and settings(traces)[0] == "TIMESTAMPS"
    cleared = dict.fromkeys(("trace_level", "trace_rate", "trace_count"), ())
    assert traces.change("m", cleared) == traces.change("", {}), "what the server's are counts again"
    traces.change("", cleared)
    assert settings(traces) == ("TIMESTAMPS", "1", "-1") and take("m"), "and after them what it was started with"


def test_a_model_without_settings_follows_the_servers(tmp_path: Path, published: Published) -> None:
    traces = TraceSettings(started_with(True, 0.0), published)
    assert settings(traces) == ("TIMESTAMPS", "0", "-1")
    traces.change("m", {"trace_count": ("4",)})
    traces.change("", {"trace_rate": ("2",)})
    assert settings(traces, "m") == ("TIMESTAMPS", "2", "4"), "only what was set for it is its own"


def test_counts_are_as_many_as_there_are_cells(tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_settings, "MOST_COUNTS", 2)
    traces = TraceSettings(started_with(True, 1.0), published)
    for name in ("", "m", "m"):
        traces.change(name, {"trace_count": ("5",)})
    assert refusal(traces.change, "n", {"trace_count": ("5",), "trace_rate": ("9",)}).code is Code.INSUFFICIENT_CAPACITY
    assert settings(traces, "n") == ("TIMESTAMPS", "1", "5"), "nothing of it was taken"
    traces.change("m", {"trace_count": ()})
    assert traces.change("n", {"trace_count": ("6",)})["trace_count"] == ["6"]


def test_a_change_that_cannot_be_written_is_none(tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = TraceSettings(started_with(True, 1.0), published)
    for error, code in ((OSError(28, "No space left on device"), Code.INSUFFICIENT_CAPACITY), (TimeoutError("busy"), Code.UNAVAILABLE)):

        def publish(*_: Any, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(Published, "publish", publish)
            assert refusal(traces.change, "", {"trace_rate": ("5",)}).code is code
        assert settings(traces)[1] == "1"


@pytest.mark.parametrize(
    ("name", "values", "code"),
    [
        ("trace_rate", ("-1",), Code.INVALID_INPUT),
        ("trace_rate", ("1", "2"), Code.INVALID_INPUT),
        ("trace_rate", ("many",), Code.INVALID_INPUT),
        ("trace_rate", ("9" * 5000,), Code.INVALID_INPUT),
        ("trace_count", ("-2",), Code.INVALID_INPUT),
        ("trace_level", ("LOUD",), Code.INVALID_INPUT),
        ("trace_level", ("TENSORS",), Code.UNSUPPORTED),
        ("trace_mode", ("triton",), Code.UNSUPPORTED),
        ("trace_file", ("/tmp/x",), Code.UNSUPPORTED),
        ("log_frequency", ("5",), Code.UNSUPPORTED),
        ("trace_colour", ("red",), Code.INVALID_INPUT),
    ],
)
def test_trace_settings_that_are_refused_change_nothing(published: Published, name: str, values: tuple[str, ...], code: Code) -> None:
    traces = TraceSettings(published=published)
    assert refusal(traces.change, "m", {"trace_rate": ("5",), name: values}).code is code
    assert settings(traces, "m") == ("OFF", "1000", "-1")


def test_other_processes_follow_the_log_level(tmp_path: Path) -> None:
    logger = logging.getLogger("outboard")
    before = logger.level
    follower = logs.Follower(tmp_path)
    try:
        logger.setLevel(logging.INFO)
        follower.look()
        assert logger.level == logging.INFO, "nothing is published"
        LogSettings(lambda level: logs.publish(tmp_path, level)).change({"log_verbose_level": 2})
        logger.setLevel(logging.INFO)
        follower.look()
        assert logger.level == logging.DEBUG
        logs.forget(tmp_path)
        (tmp_path / "log-level").write_text("nonsense")
        follower.look()
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(before)


def test_a_level_that_is_switched_off_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    root, logger = logging.root.handlers[:], logging.getLogger("outboard")
    before, root_level = logger.level, logging.root.level
    try:
        logs.configure("info")
        settings = LogSettings()
        settings.change({"log_warning": False})
        logger.warning("no")
        logger.error("yes")
        logger.info("and this")
        said = capsys.readouterr().err
        assert '"yes"' in said and '"and this"' in said and '"no"' not in said
    finally:
        logging.root.handlers[:] = root
        logger.setLevel(before)
        logging.root.setLevel(root_level)


# classes ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datatype", "values", "best"),
    [
        ("INT8", [-128, 127, 0], ["127:1", "0:2", "-128:0"]),
        ("UINT64", [2**64 - 1, 0, 2**63], ["18446744073709551615:0", "9223372036854775808:2", "0:1"]),
        ("INT64", [-(2**63), 2**63 - 1, 2**63 - 2], ["9223372036854775807:1", "9223372036854775806:2", "-9223372036854775808:0"]),
        ("FP64", [np.nan, np.inf, -np.inf], ["inf:1", "-inf:2", "nan:0"]),
        ("FP16", [0.5, 0.5, 1], ["1.000000:2", "0.500000:0", "0.500000:1"]),
        ("BF16", [0x3F80, 0x4000, 0xBF80], ["2.000000:1", "1.000000:0", "-1.000000:2"]),
    ],
)
def test_the_best_classes_of_every_kind_of_number(datatype: str, values: list[Any], best: list[str]) -> None:
    kind = {"BF16": np.uint16, "FP16": np.float16, "INT8": np.int8, "UINT64": np.uint64, "INT64": np.int64, "FP64": np.float64}[datatype]
    given = Tensor("y", datatype, (3,), encode(np.array(values, kind), datatype))
    made = classify(given, 3, ())
    assert [text.decode() for text in decode(made.name, made.datatype, made.shape, made.data)] == best


def test_shapes_of_classes() -> None:
    def shape(*size: int) -> tuple[int, ...]:
        array = np.zeros(size, np.float32)
        return classify(Tensor("y", "FP32", size, array.tobytes()), 2, ("a",)).shape

    assert [shape(2, 3), shape(2, 2, 2), shape(5), shape(), shape(0, 3), shape(2, 0), shape(0)] == [
        (2, 2), (2, 2), (2,), (1,), (0, 2), (2, 0), (0,),
    ]  # fmt: skip
    for datatype, data in (("BYTES", b"\1\0\0\0a"), ("BOOL", b"\1")):
        assert refusal(classify, Tensor("y", datatype, (1,), data), 1, ()).code is Code.INVALID_INPUT


def test_where_nothing_is_traced_settings_tell_so_and_cannot_be_changed() -> None:
    traces = TraceSettings(started_with(False, 1.0))
    assert settings(traces) == ("OFF", "1000", "-1")
    assert traces.change("m", {"trace_level": ("OFF",), "trace_rate": (), "trace_count": ("-1",)})["trace_level"] == ["OFF"]
    for changed in ({"trace_rate": ("5",)}, {"trace_level": ("TIMESTAMPS",)}, {"trace_count": ("5",)}):
        error = refusal(traces.change, "m", changed)
        assert error.code is Code.UNSUPPORTED and "OUTBOARD_SERVER_TRACE_ENDPOINT" in error.message
    assert [started_with(True, share).rate for share in (1.0, 0.1, 0.3, 0.0)] == [1, 10, 3, 0]
