"""The process that executors are forked from, when it cannot fork, and when it hangs: what serves goes on, and what could not start does so later."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from idl.codes import Code, ServingError
from inference_server import control_groups
from inference_server.engine import Engine
from inference_server.executors import process
from inference_server.executors.process import Watcher, Zygote
from tests.engines import engine_over, own_zygote
from tests.eventually import eventually
from tests.inference_server.conftest import floats, request
from tests.onnx_models import times


class ProcessLimit:
    """A control group that bounds how many processes and threads the ones in it may be: it binds root, too, which a resource limit does not."""

    def __init__(self) -> None:
        group = control_groups.own("pids")
        if group is None or group.version != 1:
            raise OSError("no version 1 hierarchy counts processes here")
        self.folder = group.folder / f"outboard-test-{os.getpid()}"
        self.home = group.folder
        self.folder.mkdir()

    def hold(self, pid: int) -> None:
        """No more than there are."""
        (self.folder / "cgroup.procs").write_text(str(pid))
        (self.folder / "pids.max").write_text((self.folder / "pids.current").read_text())

    def free(self) -> None:
        (self.folder / "pids.max").write_text("max")

    def close(self) -> None:
        for pid in (self.folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (self.home / "cgroup.procs").write_text(pid)
        self.folder.rmdir()


@pytest.fixture
def process_limit() -> Iterator[ProcessLimit]:
    try:
        made = ProcessLimit()
    except OSError as error:
        pytest.skip(f"processes cannot be bounded here: {error}")
    yield made
    made.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Zygote]:
    with own_zygote(tmp_path / "run") as made:
        yield made


@pytest.fixture
def harmed(own: Zygote, repository: Path) -> Iterator[Engine]:
    """An engine over that zygote, with a model that serves."""
    watcher = Watcher()
    times(repository / "a" / "1" / "model.onnx", 2)
    with engine_over(own, watcher, repository) as made:
        made.load_all()
        yield made
    watcher.close()


def refusal(engine: Engine, name: str) -> ServingError:
    with pytest.raises(ServingError) as caught:
        engine.repository_model_load(name, {})
    return caught.value


def pid_of(engine: Engine, name: str) -> int:
    (executor,) = engine._served[name].versions[1].executors
    return executor.pid


def test_a_fork_that_is_refused_harms_nothing_that_serves(
    harmed: Engine, own: Zygote, repository: Path, process_limit: ProcessLimit
) -> None:
    times(repository / "b" / "1" / "model.onnx", 3)
    zygote, serving = own._process.pid, pid_of(harmed, "a")
    process_limit.hold(zygote)
    for _ in range(3):
        error = refusal(harmed, "b")
        assert error.code is Code.NOT_READY and "no process can be started for it: Resource temporarily unavailable" in error.message
        assert error.retry_after_ms > 0
        assert floats(harmed.model_infer(request("a", [[1, 2]]))) == [2, 4]
    assert (own._process.pid, pid_of(harmed, "a")) == (zygote, serving), "nobody was restarted"
    process_limit.free()
    harmed.repository_model_load("b", {})
    assert floats(harmed.model_infer(request("b", [[1, 2]]))) == [3, 6]


def test_a_crash_while_no_process_can_be_forked_is_mended_later(harmed: Engine, own: Zygote, process_limit: ProcessLimit) -> None:
    process_limit.hold(own._process.pid)
    os.kill(pid_of(harmed, "a"), signal.SIGKILL)
    eventually(lambda: not harmed.model_ready("a", ""), "its death is noticed")
    (index,) = (each for each in harmed.repository_index(ready=False) if each.name == "a")
    assert (index.state, index.reason) == ("UNAVAILABLE", "its process is starting again") and not harmed.server_ready()
    process_limit.free()
    eventually(lambda: harmed.model_ready("a", ""), "back")
    assert floats(harmed.model_infer(request("a", [[1, 2]]))) == [2, 4]


def test_a_zygote_that_hangs_is_replaced_and_everything_comes_back(
    harmed: Engine, own: Zygote, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "FORK_TIMEOUT_S", 0.3)
    times(repository / "b" / "1" / "model.onnx", 3)
    hanging, serving = own._process.pid, pid_of(harmed, "a")
    os.kill(hanging, signal.SIGSTOP)
    assert floats(harmed.model_infer(request("a", [[1, 2]]))) == [2, 4], "who runs does not need it"
    began = time.monotonic()
    assert refusal(harmed, "b").code is Code.NOT_READY
    assert time.monotonic() - began < 5
    monkeypatch.undo()  # the next one has the time that a start takes on a busy machine

    def back() -> bool:
        with contextlib.suppress(ServingError):
            return floats(harmed.model_infer(request("a", [[1, 2]]))) == [2, 4] and pid_of(harmed, "a") != serving
        return False

    eventually(back, "forked from another zygote", 30)
    harmed.repository_model_load("b", {})
    assert own._process.pid != hanging
    assert floats(harmed.model_infer(request("b", [[1, 2]]))) == [3, 6]


def test_a_server_stops_although_its_zygote_hangs(own: Zygote, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher()
    times(repository / "a" / "1" / "model.onnx", 2)
    with engine_over(own, watcher, repository) as engine:
        engine.load_all()
        os.kill(own._process.pid, signal.SIGSTOP)
    watcher.close()
    monkeypatch.setattr(process, "FORK_TIMEOUT_S", 0.3)
    own.close()
    assert own._process.returncode == -signal.SIGKILL
