"""Processes of scripts: their limits, and boxes that come, are prepared, and go."""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from idl.codes import Code, ServingError
from inference_server.backends.script import Limits, checked
from inference_server.engine import Engine
from inference_server.executors import sandbox
from inference_server.executors.process import Zygote
from inference_server.executors.script_box import ScriptBox
from tests.eventually import eventually
from tests.needs import boxed
from tests.script_models import GOOD, ask, asked, load, refused, running_below, script_model

pytestmark = boxed


def test_a_call_that_takes_too_long_costs_itself_only(engine: Engine, repository: Path) -> None:
    code = """
    def preprocess(inputs):
        while "loop" in inputs: pass
        return {"y": 1}
    """
    load(engine, repository, code, "[script]\ntimeout = 1.5")
    (before,) = (executor.pid for executor in engine._served["s"].versions[1].executors)
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda more=more: answers.append(refused(engine, **more) if more else ask(engine)))
        for more in ({"loop": 1}, {}, {}, {})
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (late,) = (answer for answer in answers if isinstance(answer, ServingError))
    assert (late.code, late.message) == (Code.MODEL_FAILED, "the script took longer than 1.5 s")
    assert [answer for answer in answers if answer is not late] == [{"y": ("INT64", 1)}] * 3, "who waited behind it is answered"
    assert [executor.pid for executor in engine._served["s"].versions[1].executors] == [before], "the model's process has gone on"


def test_a_deadline_and_a_caller_that_goes_end_the_call(engine: Engine, repository: Path, zygote: Zygote) -> None:
    load(engine, repository, "def preprocess(inputs):\n  while inputs: pass\n  return {}", "[script]\ntimeout = 60")
    box = running_below(zygote._process.pid)
    begun = time.monotonic()
    with pytest.raises(ServingError) as caught:
        engine.model_infer(asked("s", "preprocess", {"x": 1}, deadline=time.monotonic() + 0.3))
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert ask(engine) == {} and time.monotonic() - begun < 30
    eventually(lambda: running_below(zygote._process.pid) == box, "nothing of the call is left")


def test_memory_is_bounded_and_given_back(engine: Engine, repository: Path) -> None:
    code = """
    import mmap
    import numpy as np

    def preprocess(inputs):
        if "list" in inputs: kept = [bytearray(2**20) for _ in range(200)]
        if "array" in inputs: kept = np.ones((200, 2**20), np.uint8)
        if "shared" in inputs: kept = [mmap.mmap(-1, 2**24) for _ in range(100)]
        return {"y": np.ones(2**22, np.uint8).sum(dtype=int)}
    """
    load(engine, repository, code, '[script]\nmemory = "64MiB"')
    for what in ("list", "array", "shared"):
        error = refused(engine, **{what: 1})
        assert (error.code, error.message) == (Code.MODEL_FAILED, "the script used more memory than 64 MiB"), what
    assert ask(engine) == {"y": ("INT64", 2**22)}


def test_a_models_memory_is_that_of_its_script_and_its_box(engine: Engine, repository: Path) -> None:
    load(engine, repository, "def preprocess(inputs):\n  return {'y': len(bytes(inputs['n'].item()))}", 'memory = "128MiB"')
    assert ask(engine, n=40 * 2**20) == {"y": ("INT64", 40 * 2**20)}
    assert refused(engine, n=100 * 2**20).message == "the script used more memory than 64 MiB"


def test_a_reload_takes_the_new_script_and_leaves_no_box_behind(engine: Engine, repository: Path, zygote: Zygote) -> None:
    before = running_below(zygote._process.pid)
    load(engine, repository)
    boxes = running_below(zygote._process.pid)
    assert engine.capacity().models[0].memory_bytes > 10 * 2**20, "its box is counted"
    load(engine, repository, "def preprocess(inputs): return {'v': 2}", version=2)
    assert ask(engine) == {"v": ("INT64", 2)}
    eventually(lambda: not running_below(zygote._process.pid).keys() & (boxes.keys() - before.keys()), "the old box has gone")
    engine.repository_model_unload("s", {})
    eventually(lambda: running_below(zygote._process.pid) == before, "every box has gone")


def test_a_box_that_is_killed_comes_back(engine: Engine, repository: Path, zygote: Zygote) -> None:
    before = running_below(zygote._process.pid)
    load(engine, repository)
    for pid in running_below(zygote._process.pid).keys() - before.keys() - {each.pid for each in engine._served["s"].versions[1].executors}:
        os.kill(pid, 9)
    error = refused(engine, x=1)
    assert (error.code, error.message) == (Code.MODEL_FAILED, "the script could not be run: its box has ended")
    assert ask(engine, x=1) == {"x": ("INT64", 2)}


def test_what_a_call_imports_is_there_before_the_next(engine: Engine, repository: Path) -> None:
    code = """
    import sys

    def preprocess(inputs):
        had = "xml.dom.minidom" in sys.modules
        import xml.dom.minidom
        import beside
        sys.modules["antigravity.__main__"] = sys.modules["no/module"] = sys
        return {"had": had, "own": "beside" in sys.modules}
    """
    (script_model(repository / "s", code).parent / "beside.py").write_text("x = 1")
    engine.repository_model_load("s", {})
    assert ask(engine)["had"] == ("BOOL", False)
    eventually(lambda: ask(engine)["had"] == ("BOOL", True), "it is imported beforehand")


def test_a_script_that_wants_too_much_beforehand_does_without(zygote: Zygote) -> None:
    limits = Limits(10, 2**25, 2**20)
    box = ScriptBox(None, limits)
    try:
        found = checked(GOOD.encode(), box, limits)
        box.prepare(["no.such.module", "json.tool", "json.__main__"])
        assert checked(GOOD.encode(), box, limits).functions == found.functions
        first = box._pid
        box.prepare([*sorted(sys.stdlib_module_names), "onnxruntime"])
        assert checked(GOOD.encode(), box, limits).functions == found.functions
        assert box._pid != first and box._modules == []
    finally:
        box.close()


def test_a_box_ends_with_its_executor(engine: Engine, repository: Path, zygote: Zygote) -> None:
    before = running_below(zygote._process.pid)
    load(engine, repository)
    boxes = running_below(zygote._process.pid).keys() - before.keys()
    (executor,) = engine._served["s"].versions[1].executors
    assert len(boxes) > 1
    executor.kill()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in boxes), "the executor, and its box, have gone")
    eventually(lambda: engine.model_ready("s", ""), "it is back")
    assert ask(engine, x=1) == {"x": ("INT64", 2)}


def test_two_instances_work_side_by_side(engine: Engine, repository: Path) -> None:
    load(engine, repository, "import time\ndef preprocess(inputs):\n  time.sleep(0.4)\n  return {}", "instances = 2")
    begun = time.monotonic()
    threads = [threading.Thread(target=ask, args=(engine,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.model_statistics("s", "")[0].success.count == 2
    assert time.monotonic() - begun < 5


def test_without_a_box_there_is_no_script(engine: Engine, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    monkeypatch.setattr(sandbox, "_unusable", sandbox._unusable.__wrapped__)
    with pytest.raises(ServingError) as caught:
        load(engine, repository)
    assert caught.value.code is Code.UNSUPPORTED
    assert caught.value.message == (
        "model 's' version 1: scripts only run in a sandbox, and there is none here: bubblewrap is not installed (Debian: apt install bubblewrap)"
    )
