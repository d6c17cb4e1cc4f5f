"""Every script of the hostile set (`tests/hostile_scripts.py`) is held, says what it did, and leaves everything else as it was."""

import os
import re
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from idl.codes import Code, ServingError
from inference_server.backends.script import Limits
from inference_server.engine import Engine
from inference_server.executors import sandbox, script_checks, syscall_filter
from inference_server.executors.process import Zygote
from tests.eventually import eventually
from tests.hostile_scripts import ANSWERS, BAD_SOURCES, HONEST, SCRIPTS
from tests.inference_server.conftest import floats, request
from tests.needs import boxed
from tests.processes import resident
from tests.python_models import python_model
from tests.script_models import arrays, asked, running_below, script_model

pytestmark = boxed

SECRET = "token-of-the-operator"
COMBINED = """
from names import SCRIPTS

def preprocess(inputs):
    name = inputs.pop("name").item().decode()
    module = {"__name__": "script"}
    exec(compile(SCRIPTS[name], "script.py", "exec"), module)
    return module["preprocess"](inputs)
"""
"""All of them as one model: each is loaded and called in the process of its own call, as if it were the model's own script."""


def combined(folder: Path, timeout_s: float) -> None:
    file = script_model(folder, COMBINED, f'[script]\ntimeout = {timeout_s}\nmemory = "64MiB"\n')
    sources = {name: hostile.code for name, hostile in SCRIPTS.items()} | {"honest": HONEST}
    (file.parent / "names.py").write_text(f"SCRIPTS = {sources!r}\n")


class Bystander:
    """Asks another model all the while."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._over = threading.Event()
        self.answers = 0
        self.wrong: list[object] = []
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        while not self._over.wait(0.02):
            try:
                found: object = floats(self._engine.model_infer(request("other", [1, 2])))
            except ServingError as error:
                found = error
            self.answers += 1
            if found != [2, 4]:
                self.wrong.append(found)

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def called(engine: Engine, model: str, name: str, paths: list[str]) -> str:
    """How the script ends: "" for an honest answer, else its error."""
    inputs = {"x": np.int64([1, 2]), "paths": np.array(paths, object), "name": name}
    try:
        outputs = arrays(engine.model_infer(asked(model, "preprocess", inputs)))
    except ServingError as error:
        assert error.code in (Code.MODEL_FAILED, Code.TOO_LARGE), (name, error.code)
        return error.message
    assert {key: value.tolist() for key, value in outputs.items()} == {"x": [2, 3]}, name
    return ANSWERS


def test_every_hostile_script_is_held(engine: Engine, repository: Path, zygote: Zygote, tmp_path: Path) -> None:
    combined(repository / "quick", 30)
    combined(repository / "slow", 0.5)
    python_model(repository / "other")
    for name in ("other", "quick", "slow"):
        engine.repository_model_load(name, {})
    token = tmp_path / "token"
    token.write_text(SECRET)
    sockets = [str(path) for path in zygote.run_dir.glob("*.lane")]
    paths = [str(token), str(repository / "other"), sockets[0]]
    tree = running_below(zygote._process.pid)
    assert called(engine, "quick", "honest", paths) == ANSWERS
    memory, bystander, found = resident(tree), Bystander(engine), {}
    try:
        for name, hostile in SCRIPTS.items():
            model = "slow" if "took longer" in hostile.says else "quick"
            found[name] = called(engine, model, name, paths)
            assert called(engine, "quick", "honest", paths) == ANSWERS, f"after {name!r}"
    finally:
        bystander.close()
    wrong = {name: said for name, said in found.items() if not re.match(SCRIPTS[name].says, said) or (said and not SCRIPTS[name].says)}
    assert not wrong, wrong
    for each in paths:  # what it was told it may repeat
        found = {name: said.replace(each, "") for name, said in found.items()}
    leaks = (SECRET, str(repository), str(Path.cwd()), str(zygote.run_dir), "Traceback")
    assert not {name: said for name, said in found.items() for leak in leaks if leak in said}
    assert bystander.answers and not bystander.wrong
    eventually(lambda: running_below(zygote._process.pid) == tree, "the same processes as before, and none besides")
    assert resident(tree) < memory + 16 * 2**20
    eventually(lambda: called(engine, "slow", "honest", paths) == ANSWERS, "so does the one whose calls took too long")
    assert token.read_text() == SECRET


def test_a_script_is_looked_at_in_a_box_of_which_nothing_is_left(engine: Engine, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script_checks, "_LIMITS", Limits(1.5, 64 * 2**20, 2**20))
    before, running = list(repository.iterdir()), running_below(os.getpid())
    report = engine.validate_script(HONEST.encode())
    assert report.functions == ("preprocess",) and 0 <= report.load_ms < 5000
    hostile = {name: (each.code.encode(), each.says) for name, each in SCRIPTS.items() if not each.loads}
    looked_at = hostile | BAD_SOURCES
    with ThreadPoolExecutor(script_checks.MOST) as pool:
        outcomes = {name: pool.submit(engine.validate_script, source) for name, (source, _) in looked_at.items()}
        said = {name: outcome.exception() for name, outcome in outcomes.items()}
    for name, (_, says) in looked_at.items():
        error = said[name]
        assert isinstance(error, ServingError) and error.code is Code.INVALID_INPUT and re.match(says, error.message), (name, error)
    assert list(repository.iterdir()) == before and engine.repository_index(ready=False) == ()
    eventually(lambda: running_below(os.getpid()).keys() <= running.keys(), "no box is left")


def test_without_a_box_no_script_is_looked_at(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_unusable", lambda: "bubblewrap is not installed")
    with pytest.raises(ServingError) as caught:
        engine.validate_script(HONEST.encode())
    assert (caught.value.code, caught.value.message) == (
        Code.UNSUPPORTED,
        "scripts only run in a sandbox, and there is none here: bubblewrap is not installed",
    )


def test_no_more_than_two_scripts_are_looked_at_at_once(engine: Engine) -> None:
    checks = script_checks.ScriptChecks()
    with ThreadPoolExecutor(8) as pool:
        outcomes = [pool.submit(checks.check, HONEST.encode()) for _ in range(8)]
        said = [each.exception() for each in outcomes]
    assert said.count(None) >= 2
    busy = [error for error in said if isinstance(error, ServingError)]
    assert all((error.code, error.retry_after_ms) == (Code.OVERLOADED, 500) for error in busy) and len(busy) + said.count(None) == 8
    assert checks.check(HONEST.encode()).functions == ("preprocess",)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filters_are_ones_that_the_kernel_takes(machine: str) -> None:
    for program in (syscall_filter.of_scripts(machine), syscall_filter.of_their_parent(machine), syscall_filter.of_models(machine)):
        steps = [struct.unpack("=HBBI", program[at : at + 8]) for at in range(0, len(program), 8)]
        assert len(steps) < 4096, "BPF_MAXINSNS"
        assert steps[-1] == (0x06, 0, 0, 0x7FFF0000), "what is not refused is allowed"
        ends = [index + 1 + jump for index, (code, yes, no, _) in enumerate(steps) if code & 7 == 5 for jump in (yes, no)]
        assert max(ends) < len(steps), "every jump stays inside"
    assert not syscall_filter.known("riscv64")
