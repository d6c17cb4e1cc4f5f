"""What the official client's examples do, with that client as it is: PROTOCOL ADDRESS TOKEN [CHECK...]. One line of JSON for each check:
its name, and what went wrong, "" for nothing.

A program of its own: the official HTTP client patches sockets (gevent), which must not meet ours.
"""

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException, serialize_byte_tensor
from tritonclient.utils import shared_memory as shm


class Official:
    """The client of one protocol, its module, and what the two spell differently."""

    def __init__(self, protocol: str, address: str, token: str) -> None:
        self.grpc = protocol == "grpc"
        self.module: Any = over_grpc if self.grpc else over_http
        self.headers = {} if self.grpc else {"Authorization": f"Bearer {token}"}
        self.client = self.module.InferenceServerClient(address) if self.grpc else self.module.InferenceServerClient(address, concurrency=4)

    def call(self, verb: str, *arguments: Any, **keywords: Any) -> Any:
        return getattr(self.client, verb)(*arguments, headers=dict(self.headers), **keywords)

    def tell(self, verb: str, *arguments: Any, **keywords: Any) -> Any:
        """The same as JSON, by gRPC's names."""
        return self.call(verb, *arguments, **keywords, **({"as_json": True} if self.grpc else {}))

    def input(self, name: str, array: np.ndarray, datatype: str) -> Any:
        return self.module.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)

    def output(self, name: str, classes: int = 0) -> Any:
        return self.module.InferRequestedOutput(name, class_count=classes)

    def refused(self, run: Callable[[], Any], status: str, says: str) -> None:
        try:
            run()
        except InferenceServerException as error:
            assert status in str(error.status()) and says in error.message(), error
            return
        raise AssertionError("it was not refused")


ONES, TENS = np.ones((1, 16), np.int32), np.arange(16, dtype=np.int32)[None] * 10


def health_and_metadata(o: Official) -> None:
    assert o.call("is_server_live") and o.call("is_server_ready") and o.call("is_model_ready", "simple")
    assert not o.call("is_model_ready", "nobody")
    said = o.tell("get_server_metadata")
    assert said["name"] == "outboard" and {"classification", "sequence", "logging", "system_shared_memory"} <= set(said["extensions"]), said
    assert "trace" not in said["extensions"] and "cuda_shared_memory" not in said["extensions"], "nobody takes traces here, nor has a GPU"
    model = o.tell("get_model_metadata", "simple")
    assert [tensor["name"] for tensor in model["inputs"]] == ["INPUT0", "INPUT1"], model


def added(official: Official, **keywords: Any) -> Any:
    inputs = [official.input("INPUT0", TENS, "INT32"), official.input("INPUT1", ONES, "INT32")]
    return official.call("infer", "simple", inputs, **keywords)


def simple_infer(o: Official) -> None:
    result = added(o, outputs=[o.output("OUTPUT0"), o.output("OUTPUT1")], request_id="1")
    assert (result.as_numpy("OUTPUT0") == TENS + ONES).all() and (result.as_numpy("OUTPUT1") == TENS - ONES).all()
    assert result.get_response(**({"as_json": True} if o.grpc else {}))["id"] == "1"


def async_infer(o: Official) -> None:
    inputs = [o.input("INPUT0", TENS, "INT32"), o.input("INPUT1", ONES, "INT32")]
    if o.grpc:
        answers: queue.Queue[Any] = queue.Queue()
        for _ in range(5):
            o.client.async_infer("simple", inputs, lambda result, error: answers.put(error or result))
        results = [answers.get(timeout=30) for _ in range(5)]
    else:
        results = [request.get_result() for request in [o.call("async_infer", "simple", inputs) for _ in range(5)]]
    assert all((result.as_numpy("OUTPUT0") == TENS + ONES).all() for result in results)


def strings(o: Official) -> None:
    texts = np.array([["a", "", "\u6f22\u5b57", "x" * 100_000]], object)
    got = o.call("infer", "text", [o.input("x", texts, "BYTES")]).as_numpy("y")
    assert [[item.decode() for item in row] for row in got] == texts.tolist()


def sequences(o: Official) -> None:
    """Two at a time; over gRPC on one stream, as the official example has it."""
    steps = [(key, turn) for turn in range(4) for key in (1001, "text")]
    asked = [
        {"sequence_id": key, "sequence_start": turn == 0, "sequence_end": turn == 3, "request_id": f"{key}-{turn}"} for key, turn in steps
    ]
    one = [o.input("x", np.float32([[1, 2]]), "FP32"), o.input("by", np.array(1, np.float32), "FP32")]
    if o.grpc:
        answers: queue.Queue[Any] = queue.Queue()
        o.client.start_stream(lambda result, error: answers.put(error or result))
        for each in asked:
            o.client.async_stream_infer("sums", one, **each)
        got = {}
        for _ in asked:
            result = answers.get(timeout=30)
            got[result.get_response().id] = result.as_numpy("y").tolist()
        o.client.stop_stream()
    else:
        got = {each["request_id"]: o.call("infer", "sums", one, **each).as_numpy("y").tolist() for each in asked}
    assert got == {f"{key}-{turn}": [[turn + 1.0, 2.0 * turn + 2]] for key, turn in steps}, got
    o.refused(lambda: o.call("infer", "sums", one, sequence_id=77), "", "77")


def model_control(o: Official) -> None:
    o.call("unload_model", "controlled")
    assert not o.call("is_model_ready", "controlled")
    index = o.tell("get_model_repository_index")
    states = {entry["name"]: entry.get("state") for entry in (index["models"] if o.grpc else index)}
    assert states["controlled"] == "UNAVAILABLE" and states["simple"] == "READY", states
    o.call("load_model", "controlled")
    assert o.call("is_model_ready", "controlled")
    config = json.dumps({"max_batch_size": 0, "parameters": {"who": {"string_value": "the caller"}}})
    o.call("load_model", "controlled", config=config)
    told = o.tell("get_model_config", "controlled")
    assert (told["config"] if o.grpc else told)["parameters"]["who"]["string_value"] == "the caller", told
    o.refused(lambda: o.call("load_model", "nobody"), "NOT_FOUND" if o.grpc else "404", "nobody")


def classification(o: Official) -> None:
    scores = np.float32([[0.25, 4, -1, np.nan], [7, 7, 8, -np.inf]])
    result = o.call("infer", "animals", [o.input("x", scores, "FP32")], outputs=[o.output("scores", classes=3)])
    texts = [[item.decode() for item in row] for row in result.as_numpy("scores")]
    assert texts == [["4.000000:1:dog", "0.250000:0:cat", "-1.000000:2:bird"], ["8.000000:2:bird", "7.000000:0:cat", "7.000000:1:dog"]], (
        texts
    )
    few = o.call("infer", "animals", [o.input("x", scores[:, :2], "FP32")], outputs=[o.output("scores", classes=9)])
    assert few.as_numpy("scores").shape == (2, 2), "never more than there are"
    texts = np.array([["a", "b", "c", "d"]], object)
    o.refused(lambda: o.call("infer", "text", [o.input("x", texts, "BYTES")], outputs=[o.output("y", classes=1)]), "", "is BYTES")


@contextmanager
def region(o: Official, name: str, size: int) -> Iterator[Any]:
    key = f"/outboard-{os.getpid()}-{name}"
    handle = shm.create_shared_memory_region(name, key, size)
    try:
        o.call("register_system_shared_memory", name, key, size)
        yield handle
    finally:
        o.call("unregister_system_shared_memory", name)
        shm.destroy_shared_memory_region(handle)


def from_region(o: Official, name: str, array: np.ndarray, datatype: str, where: str, size: int, offset: int = 0) -> Any:
    made = o.module.InferInput(name, list(array.shape), datatype)
    made.set_shared_memory(where, size, offset=offset)
    return made


def into_region(o: Official, name: str, where: str, size: int, offset: int = 0) -> Any:
    made = o.output(name)
    made.set_shared_memory(where, size, offset=offset)
    return made


def status(official: Official) -> dict[str, Any]:
    said = official.tell("get_system_shared_memory_status")
    return said.get("regions", {}) if official.grpc else {each["name"]: each for each in said}


def shared_memory(o: Official) -> None:
    size = ONES.nbytes
    o.call("unregister_system_shared_memory")
    with region(o, "in", 2 * size) as given, region(o, "out", 2 * size) as taken:
        shm.set_shared_memory_region(given, [TENS, ONES])
        assert set(status(o)) == {"in", "out"} and int(status(o)["in"]["byte_size"]) == 2 * size
        inputs = [from_region(o, "INPUT0", TENS, "INT32", "in", size), from_region(o, "INPUT1", ONES, "INT32", "in", size, size)]
        outputs = [into_region(o, "OUTPUT0", "out", size), into_region(o, "OUTPUT1", "out", size, size)]
        result = o.call("infer", "simple", inputs, outputs=outputs)
        for name, want, offset in (("OUTPUT0", TENS + ONES, 0), ("OUTPUT1", TENS - ONES, size)):
            said = result.get_output(name)
            shape = said.shape if o.grpc else said["shape"]
            assert (shm.get_contents_as_numpy(taken, np.int32, shape, offset) == want).all()
            told = said.parameters if o.grpc else said["parameters"]
            told = told["shared_memory_byte_size"]
            assert (told.int64_param if o.grpc else told) == size
        # one tensor there, the other in the message, both ways
        result = o.call("infer", "simple", [inputs[0], o.input("INPUT1", ONES, "INT32")], outputs=[o.output("OUTPUT1"), outputs[0]])
        assert (result.as_numpy("OUTPUT1") == TENS - ONES).all()
        if o.grpc:
            shm.set_shared_memory_region(taken, [ONES])
            answers: queue.Queue[Any] = queue.Queue()
            o.client.start_stream(lambda result, error: answers.put(error or result))
            o.client.async_stream_infer("simple", inputs, outputs=outputs)
            told = answers.get(timeout=30).get_output("OUTPUT0").parameters["shared_memory_byte_size"]
            o.client.stop_stream()
            assert told.int64_param == size and (shm.get_contents_as_numpy(taken, np.int32, [1, 16]) == TENS + ONES).all()
    assert status(o) == {}


def shared_memory_of_texts(o: Official) -> None:
    texts = np.array([["ab", "", "\u6f22"]], object)
    packed = serialize_byte_tensor(texts)
    size = len(packed.item())
    with region(o, "texts", 2 * size) as handle:
        shm.set_shared_memory_region(handle, [packed])
        o.call("infer", "text", [from_region(o, "x", texts, "BYTES", "texts", size)], outputs=[into_region(o, "y", "texts", size, size)])
        got = shm.get_contents_as_numpy(handle, np.object_, [1, 3], size)
        assert [item.decode() for item in got[0]] == texts[0].tolist()


def shared_memory_that_is_wrong(o: Official) -> None:
    size = ONES.nbytes

    def infer(where: str, size: int, offset: int = 0, out: tuple[str, int] | None = None) -> Any:
        inputs = [from_region(o, "INPUT0", TENS, "INT32", where, size, offset), o.input("INPUT1", ONES, "INT32")]
        return o.call("infer", "simple", inputs, outputs=[into_region(o, "OUTPUT0", *out)] if out else None)

    bad = "INVALID_ARGUMENT" if o.grpc else "400"
    o.refused(lambda: infer("nobody", size), "NOT_FOUND" if o.grpc else "404", "nobody")
    for key in ("../etc/passwd", "/outboard/x", "..", "/", "/outboard-is-not-there", "x" * 300):
        o.refused(lambda key=key: o.call("register_system_shared_memory", "bad", key, size), bad, "'bad'")
    with region(o, "here", size) as handle:
        o.refused(lambda: o.call("register_system_shared_memory", "here", handle._shm_key, size), "ALREADY" if o.grpc else "409", "'here'")
        o.refused(lambda: o.call("register_system_shared_memory", "large", handle._shm_key, 1 << 30), bad, "'large'")
        o.refused(lambda: infer("here", size, size), bad, "outside")
        o.refused(lambda: infer("here", 2**40), bad, "outside")
        o.refused(lambda: infer("here", size - 4), bad, "INPUT0")
        o.refused(lambda: infer("here", size, out=("here", 8)), bad, "OUTPUT0")
        os.truncate(f"/dev/shm/{handle._shm_key.lstrip('/')}", 4)  # under the server's feet
        o.refused(lambda: infer("here", size), bad, "'here'")
        o.refused(lambda: o.call("infer", "simple", [o.input("INPUT0", TENS, "INT32"), o.input("INPUT1", ONES, "INT32")],
                                 outputs=[into_region(o, "OUTPUT0", "here", size)]), bad, "'here'")  # fmt: skip
        os.truncate(f"/dev/shm/{handle._shm_key.lstrip('/')}", size)
    simple_infer(o)


def cuda_shared_memory(o: Official) -> None:
    unsupported = "UNIMPLEMENTED" if o.grpc else "501"
    o.refused(lambda: o.call("get_cuda_shared_memory_status"), unsupported, "CUDA")
    o.refused(lambda: o.call("register_cuda_shared_memory", "gpu", b"AAAA", 0, 4), unsupported, "CUDA")
    o.refused(lambda: o.call("unregister_cuda_shared_memory"), unsupported, "CUDA")


def priority_and_timeout(o: Official) -> None:
    assert (added(o, priority=1, timeout=20_000_000).as_numpy("OUTPUT0") == TENS + ONES).all()
    one, together = [o.input("x", np.float32([1]), "FP32")], threading.Barrier(2)

    def late(_: int) -> str:
        mine = Official(*sys.argv[1:4])  # the official HTTP client is for one thread
        together.wait(30)
        try:
            mine.call("infer", "asleep", one, timeout=1000)
        except InferenceServerException as error:
            return str(error.status())
        return ""

    with ThreadPoolExecutor(2) as pool:  # one runs for half a second, and the other would wait as long
        said = list(pool.map(late, range(2)))
    assert any(("DEADLINE" if o.grpc else "504") in each for each in said), said


def parameters(o: Official) -> None:
    given = {"word": "hi", "count": 3, "flag": True}
    result = o.call("infer", "repeats", [o.input("x", np.float32([1]), "FP32")], parameters=given)
    assert json.loads(result.as_numpy("said")[0]) == given
    said = result.get_response(**({"as_json": True} if o.grpc else {}))["parameters"]
    assert (said["heard"]["string_param"] if o.grpc else said["heard"]) == "hi", said


def statistics(o: Official) -> None:
    simple_infer(o)
    (entry,) = o.tell("get_inference_statistics", "simple")["model_stats"]
    number = int(entry["inference_stats"]["success"]["count"])
    assert number >= 1 and number == int(entry["inference_count"]) and int(entry["last_inference"]) > 0
    assert sum(int(batch["compute_infer"]["count"]) for batch in entry["batch_stats"]) == int(entry["execution_count"])
    assert entry["memory_usage"][0]["type"] == "CPU" and int(entry["memory_usage"][0]["byte_size"]) > 0
    simple_infer(o)
    (later,) = o.tell("get_inference_statistics", "simple")["model_stats"]
    assert int(later["inference_stats"]["success"]["count"]) == number + 1


def configuration(o: Official) -> None:
    told = o.tell("get_model_config", "sums")
    config = told["config"] if o.grpc else told
    (state,) = config["sequence_batching"]["state"]
    assert (state["input_name"], state["output_name"]) == ("sum", "next"), state
    assert int(config["sequence_batching"]["max_sequence_idle_microseconds"]) == 60_000_000


def trace_settings(o: Official) -> None:
    before = o.tell("get_trace_settings")
    before = {name: entry["value"] for name, entry in before["settings"].items()} if o.grpc else before
    assert before["trace_level"] == ["OFF"], before
    o.tell("update_trace_settings", model_name="simple", settings={"trace_rate": None, "trace_level": ["OFF"]})
    unsupported = "UNIMPLEMENTED" if o.grpc else "501"
    o.refused(lambda: o.call("update_trace_settings", settings={"trace_rate": "5"}), unsupported, "TRACE_ENDPOINT")
    o.refused(lambda: o.call("update_trace_settings", settings={"trace_level": ["TIMESTAMPS"]}), unsupported, "trace_level")
    o.refused(lambda: o.call("update_trace_settings", settings={"trace_file": "/tmp/x"}), unsupported, "trace_file")
    o.refused(lambda: o.call("update_trace_settings", settings={"trace_rate": "-1"}), "", "trace_rate")
    o.refused(lambda: o.call("get_trace_settings", "nobody"), "NOT_FOUND" if o.grpc else "404", "nobody")


def log_settings(o: Official) -> None:
    def now() -> dict[str, Any]:
        said = o.tell("get_log_settings")
        return {name: next(iter(entry.values())) for name, entry in said["settings"].items()} if o.grpc else said

    before = now()
    assert before["log_info"] is True and before["log_verbose_level"] == 0 and before["log_format"] == "json", before
    o.tell("update_log_settings", {"log_info": False, "log_verbose_level": 1})
    assert now()["log_info"] is False and now()["log_verbose_level"] == 1
    o.tell("update_log_settings", {"log_info": True, "log_verbose_level": 0})
    assert now() == before
    o.refused(lambda: o.call("update_log_settings", {"log_file": "/tmp/x"}), "UNIMPLEMENTED" if o.grpc else "501", "log_file")
    o.refused(lambda: o.call("update_log_settings", {"log_nothing": True}), "", "log_nothing")


CHECKS = (
    health_and_metadata, simple_infer, async_infer, strings, sequences, model_control, classification, shared_memory, shared_memory_of_texts,
    shared_memory_that_is_wrong, cuda_shared_memory, priority_and_timeout, parameters, statistics, configuration, trace_settings,
    log_settings,
)  # fmt: skip

if __name__ == "__main__":
    official = Official(*sys.argv[1:4])
    for check in CHECKS:
        if len(sys.argv) > 4 and check.__name__ not in sys.argv[4:]:
            continue
        wrong = ""
        try:
            check(official)
        except Exception:  # noqa: BLE001 - the test shows it
            wrong = traceback.format_exc()
        print(json.dumps([check.__name__, wrong]), flush=True)
