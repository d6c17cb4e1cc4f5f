"""Python models in their box, as the server starts them: what they cannot do and see, what bounds them, and what is said where there is no box."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from idl.codes import Code, ServingError
from idl.messages import InferRequest, Tensor
from inference_server.engine import Engine
from inference_server.executors import sandbox, thread_limit
from inference_server.executors.process import Watcher, Zygote
from tests.engines import engine_over
from tests.inference_server.conftest import floats
from tests.inference_server.test_python_models import ask, load, refused
from tests.needs import boxed, has_box
from tests.python_models import DOUBLE, DOUBLE_TOML, python_model

REQUIRED = DOUBLE_TOML + '[python]\nsandbox = "required"\n'
EXECUTES = """
import ctypes, os, socket, subprocess
def infer(inputs, parameters):
    exec(parameters.get("do", ""))
    return {"y": inputs["x"]}
"""
NONE_HERE = "bubblewrap is not installed (Debian: apt install bubblewrap)"


class Listeners:
    """Of the test, outside of any box: one that is reached by address, one by name, one by path."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "listening.sock")
        self.name = f"\0outboard-test-{os.getpid()}"
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.unix = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2)]
        for listener, address in zip(self.unix, (self.path, self.name), strict=True):
            listener.bind(address)
            listener.listen()

    def close(self) -> None:
        for each in (self.tcp, *self.unix):
            each.close()


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[Listeners]:
    made = Listeners(tmp_path)
    yield made
    made.close()


@boxed
def test_no_listener_of_the_host_is_reached_from_its_box(engine: Engine, repository: Path, listeners: Listeners) -> None:
    port = listeners.tcp.getsockname()[1]
    reaches = [f"socket.create_connection(('127.0.0.1', {port}), 2)"]
    reaches += [f"socket.socket(socket.AF_UNIX).connect({address!r})" for address in (listeners.path, listeners.name)]
    for reach in reaches:
        exec(reach)  # noqa: S102 - it answers, outside of the box
    load(engine, repository, EXECUTES, REQUIRED)
    for reach in reaches:
        failed = refused(engine, parameters={"do": reach})
        assert failed.code is Code.MODEL_FAILED
        assert any(name in failed.message for name in ("ConnectionRefusedError", "Network is unreachable", "FileNotFoundError")), (
            failed.message
        )
    listeners.tcp.settimeout(0)
    listeners.tcp.accept()
    with pytest.raises(BlockingIOError):
        listeners.tcp.accept()


@boxed
def test_what_it_cannot_do_in_its_box(engine: Engine, repository: Path) -> None:
    load(engine, repository, EXECUTES, REQUIRED)
    attempts = {
        "os.listdir('/var/lib')": "FileNotFoundError",
        "open('/etc/passwd')": "FileNotFoundError",
        f"open({str(Path(__file__))!r})": "FileNotFoundError",
        "open('/proc/sys/kernel/core_pattern', 'r+')": "Read-only file system",
        "open('/proc/sysrq-trigger', 'w')": "Error",
        "open('/proc/self/oom_score_adj', 'w')": "Read-only file system",
        "open('/dev/x', 'w')": "Read-only file system",
        f"open({str(repository / 'm' / '1' / 'model.py')!r}, 'a')": "Read-only file system",
        "open('/usr/x', 'w')": "Read-only file system",
        "os.ftruncate(1, 0)": "OSError",
        "os.ftruncate(2, 0)": "OSError",
        "os.fork()": "PermissionError",
        "subprocess.run(['/bin/true'])": "Error",
        "os.kill(1, 9) or os.kill(-1, 9) or open('/none')": "Error",
        "os.setuid(0)": "Error",
        "socket.socket(40, socket.SOCK_STREAM)": "Address family not supported",
        "assert not ctypes.CDLL(None).unshare(0x10000000)": "AssertionError",
        "[open('/tmp/f', 'ab').write(bytes(2**20)) for _ in range(100)]": "No space left",
        "[open('/dev/shm/f', 'ab').write(bytes(2**20)) for _ in range(100)]": "No space left",
    }
    for attempt, said in attempts.items():
        failed = refused(engine, parameters={"do": attempt})
        assert failed.code is Code.MODEL_FAILED and said in failed.message, (attempt, failed.message)
    assert floats(ask(engine)) == [1, 2]


@boxed
def test_it_sees_nothing_of_the_servers(engine: Engine, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its environment, in whatever process of the box, nor its files, nor its network, nor its processes."""
    monkeypatch.setenv("OUTBOARD_SERVER_TOKEN", "hidden")
    monkeypatch.setenv("SOMEBODYS_KEY", "hidden")
    code = """
    import json, os
    def infer(inputs):
        network = [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]]
        processes = [name for name in os.listdir("/proc") if name.isdigit()]
        environ = [open(f"/proc/{each}/environ").read() for each in processes]
        files = [os.readlink(f"/proc/{each}/fd/{number}") for each in processes for number in os.listdir(f"/proc/{each}/fd") if os.path.islink(f"/proc/{each}/fd/{number}")]
        return {"y": inputs["x"]}, {"env": json.dumps(dict(os.environ)), "network": " ".join(network), "environ": json.dumps(environ), "files": json.dumps(files), "processes": len(processes)}
    """
    with (tmp_path / "a file of the server's").open("w+"):
        load(engine, repository, code, "threads = 1\n" + REQUIRED)
        said = ask(engine).parameters
    assert "hidden" not in f"{said['env']}{said['environ']}"
    assert '"OMP_NUM_THREADS": "1"' in str(said["env"]), "what the code itself is to know"
    assert said["network"] == "lo" and said["processes"] == 2
    files = str(said["files"]).strip('[]"').split('", "')
    assert files and all(
        file.startswith(("/dev/null", "pipe:", "socket:", "anon_inode:", "/memfd:outboard-", "/proc/")) for file in files
    ), files


@boxed
@pytest.mark.skipif(not thread_limit.to_watch(), reason="the kernel keeps the limit: see test_boxes.py")
def test_too_many_threads_end_it_alone(engine: Engine, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_limit, "MOST", 64)
    code = """
    import threading
    def infer(inputs, parameters):
        over = threading.Event()
        for _ in range(int(parameters.get("threads", 0))): threading.Thread(target=over.wait).start()
        if "threads" in parameters: over.wait(parameters["wait"])
        over.set()
        return {"y": inputs["x"]}
    """
    load(engine, repository, code, REQUIRED)
    assert floats(ask(engine, parameters={"threads": 20, "wait": 0.2})) == [1, 2]
    failed = refused(engine, parameters={"threads": 100, "wait": 20}, deadline=time.monotonic() + 20)
    assert failed.code is Code.MODEL_FAILED and "over its limit of 64 threads" in failed.message
    assert floats(ask(engine)) == [1, 2]


@boxed
def test_what_it_writes_is_its_memory(engine: Engine, repository: Path) -> None:
    code = """
    def infer(inputs, parameters):
        for folder in ("/dev/shm", "/tmp") if parameters else ():
            with open(f"{folder}/large", "wb") as file:
                for _ in range(60): file.write(bytes(2**20))
        while parameters: pass
        return {"y": inputs["x"]}
    """
    load(engine, repository, code, 'memory = "100MiB"\n' + REQUIRED)
    failed = refused(engine, parameters={"write": True}, deadline=time.monotonic() + 20)
    assert failed.code is Code.MODEL_FAILED and "over its memory limit of 100 MiB" in failed.message
    assert floats(ask(engine)) == [1, 2]


@pytest.mark.parametrize("said", [b"x", b"[]", b"{}", b'{"failed": "no code", "message": 1}', b'{"ready": 1, "queue": 2}', b"[" * 5000])
def test_what_its_code_says_in_its_executors_place_is_no_error_of_the_servers(engine: Engine, repository: Path, said: bytes) -> None:
    code = f"""
    import os, socket
    def load():
        for number in os.listdir("/proc/self/fd"):
            try: socket.socket(fileno=os.dup(int(number))).send({said!r})
            except OSError: pass
    def infer(inputs): return inputs
    """
    python_model(repository / "m", code, DOUBLE_TOML)
    with pytest.raises(ServingError) as caught:
        engine.repository_model_load("m", {})
    assert caught.value.code is Code.INVALID_MODEL and caught.value.message.endswith("its process told something that cannot be read")


@boxed
def test_large_answers_and_many_requests_go_through_the_filter(engine: Engine, repository: Path) -> None:
    load(engine, repository, DOUBLE, REQUIRED)
    rows = np.arange(500_000, dtype=np.float32)
    request = InferRequest("m", (Tensor("x", "FP32", rows.shape, rows.tobytes()),))
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(bytes(engine.model_infer(request).outputs[0].data))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [(rows * 2).tobytes()] * 4


def sandbox_of(engine: Engine, model: str = "m") -> str:
    return engine.model_metadata(model, "").properties.get("sandbox", "")


@boxed
def test_the_metadata_says_that_it_is_boxed(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    assert sandbox_of(engine) == "on"
    load(engine, repository, toml=DOUBLE_TOML + '[python]\nsandbox = "off"\n', version=2)
    assert sandbox_of(engine) == "off: its settings say so (python.sandbox)"


def test_without_a_box_it_is_loaded_and_everybody_is_told(
    engine: Engine, repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sandbox, "_unusable", lambda: NONE_HERE)
    with caplog.at_level(logging.WARNING, "outboard.server"):
        load(engine, repository)
    assert floats(ask(engine)) == [2, 4]
    assert sandbox_of(engine) == f"off: {NONE_HERE}"
    (told,) = [record.fields for record in caplog.records if record.message == "no sandbox: its code can do what the server can"]  # type: ignore[attr-defined]
    assert told == {"model": "m", "reason": NONE_HERE}


def cannot_be_loaded(engine: Engine, repository: Path, toml: str) -> str:
    python_model(repository / "m", DOUBLE, toml)
    with pytest.raises(ServingError) as caught:
        engine.repository_model_load("m", {})
    assert caught.value.code is Code.UNSUPPORTED
    return caught.value.message


def test_code_that_needs_a_box_is_refused_without_one(engine: Engine, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_unusable", lambda: NONE_HERE)
    said = cannot_be_loaded(engine, repository, REQUIRED)
    assert said.endswith(f"its code may only run in a sandbox, and there is none here: {NONE_HERE}")
    said = cannot_be_loaded(engine, repository, 'executor = "thread"\n' + REQUIRED)
    assert said.endswith("its code may only run in a sandbox, and it runs in the server's own process (executor)")


def test_a_server_may_demand_boxes(zygote: Zygote, watcher: Watcher, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_over(zygote, watcher, repository, sandbox="required") as engine:
        if has_box():
            load(engine, repository)
            assert sandbox_of(engine) == "on"
        said = cannot_be_loaded(engine, repository, DOUBLE_TOML + '[python]\nsandbox = "off"\n')
        assert said.endswith("its code may only run in a sandbox, and its settings say so (python.sandbox)")
        assert "server's own process" in cannot_be_loaded(engine, repository, 'executor = "thread"\n' + DOUBLE_TOML)
        monkeypatch.setattr(sandbox, "_unusable", lambda: NONE_HERE)
        assert cannot_be_loaded(engine, repository, DOUBLE_TOML).endswith(f"there is none here: {NONE_HERE}")
