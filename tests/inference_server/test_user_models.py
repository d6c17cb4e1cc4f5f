"""The users' repository: names, what a user's model may be, what serves after a restart, and that what is removed is gone."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from idl.codes import Code, ServingError
from inference_server.engine import Engine
from inference_server.executors import sandbox
from inference_server.executors.process import Watcher, Zygote
from inference_server.repository import Repository
from inference_server.types import FileHeader
from inference_server.user_models import UserModels
from tests.engines import engine_over
from tests.inference_server.conftest import floats, request
from tests.needs import boxed
from tests.onnx_models import times
from tests.python_models import DOUBLE, DOUBLE_TOML

LONGEST = ".".join("a" * 64 for _ in range(3))


def header(name: str = "ann.iris", version: int = 1, file: str = "model.onnx", data: bytes = b"bytes", user: bool = True) -> FileHeader:
    return FileHeader(name, version, file, len(data), hashlib.sha256(data).hexdigest(), user)


def put(engine: Engine, name: str, version: int, file: str, data: bytes, user: bool = True) -> bool:
    return engine.put_file(header(name, version, file, data, user), iter([data])).existed


def refused(call: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        call()
    return caught.value


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return tmp_path / "users"


@pytest.fixture
def serving(zygote: Zygote, watcher: Watcher, repository: Path, users: Path) -> Iterator[Engine]:
    with engine_over(zygote, watcher, repository, user_models=users) as made:
        yield made


@pytest.fixture
def onnx(tmp_path: Path) -> bytes:
    return times(tmp_path / "made.onnx", 3).read_bytes()


def answer(engine: Engine, name: str, version: str = "") -> list[float]:
    return floats(engine.model_infer(request(name, [[1, 2]], version=version)))


def page(engine: Engine) -> str:
    registry = CollectorRegistry()
    registry.register(engine._metrics)
    return generate_latest(registry).decode()


def states(engine: Engine) -> dict[str, str]:
    return {f"{each.name}/{each.version}": each.state for each in engine.repository_index(False)}


# names and owners ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ann.iris", "a.b.c", "A-1_.9-x", LONGEST])
def test_names_of_users_models(tmp_path: Path, name: str) -> None:
    repository = Repository([tmp_path], users=UserModels(tmp_path / "users"))
    assert not repository.put_file(header(name), iter([b"bytes"])).existed
    assert repository.put_file(header(name), iter([b"bytes"])).existed
    assert repository.names() == (name,) and repository.operators() == () and (tmp_path / "users" / name / "1" / "model.onnx").is_file()


@pytest.mark.parametrize(
    "name", ["iris", "a.b.c.d", ".a.b", "a..b", "a.b.", "-a.b", "a._b", "a.b/c", "../a.b", "a.é", "a" * 65 + ".b", "", LONGEST + "a"]
)
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    repository = Repository([tmp_path], users=UserModels(tmp_path / "users"))
    assert refused(lambda: repository.put_file(header(name), iter([b"bytes"]))).code is Code.INVALID_INPUT
    assert os.listdir(tmp_path / "users") == []


@pytest.mark.parametrize("file", ["a/b/c/model.onnx", "model.onnx", "weights/w-1.bin"])
def test_files_in_folders(tmp_path: Path, file: str) -> None:
    repository = Repository([tmp_path], users=UserModels(tmp_path / "users"))
    repository.put_file(header(file=file), iter([b"bytes"]))
    assert (tmp_path / "users" / "ann.iris" / "1" / file).read_bytes() == b"bytes"


@pytest.mark.parametrize("file", ["a/b/c/d/e", "a//b", "/a", "a/../b", "a/./b", "a/.b", "../b", "a/", "a/b.part", "a\\b", ""])
def test_files_elsewhere_are_refused(tmp_path: Path, file: str) -> None:
    repository = Repository([tmp_path], users=UserModels(tmp_path / "users"))
    assert refused(lambda: repository.put_file(header(file=file), iter([b"bytes"]))).code is Code.INVALID_INPUT
    assert os.listdir(tmp_path / "users") == []


@pytest.mark.parametrize("file", ["loaded", "serving-version", "serving-labels", "1", "2/model.onnx", "warmup"])
def test_the_servers_own_names_are_refused(tmp_path: Path, file: str) -> None:
    repository = Repository([tmp_path], users=UserModels(tmp_path / "users"))
    assert refused(lambda: repository.put_file(header(version=0, file=file), iter([b"bytes"]))).code is Code.INVALID_INPUT


def test_folders_are_for_users_models_only(tmp_path: Path) -> None:
    repository = Repository([tmp_path])
    assert refused(lambda: repository.put_file(header("m", file="a/b", user=False), iter([b"bytes"]))).code is Code.INVALID_INPUT


def test_settings_are_replaced_and_versions_are_not(tmp_path: Path) -> None:
    repository = Repository([tmp_path], users=UserModels(tmp_path / "users"))
    for data in (b"cpus = 1", b"cpus = 2"):
        assert not repository.put_file(header(version=0, file="model.toml", data=data), iter([data])).existed
        repository.put_file(header(data=b"bytes"), iter([b"bytes"]))
    assert (tmp_path / "users" / "ann.iris" / "model.toml").read_bytes() == b"cpus = 2"
    assert refused(lambda: repository.put_file(header(data=b"other"), iter([b"other"]))).code is Code.ALREADY_EXISTS
    assert (tmp_path / "users" / "ann.iris" / "1" / "model.onnx").read_bytes() == b"bytes"


def test_without_a_users_repository(tmp_path: Path, engine: Engine) -> None:
    assert refused(lambda: Repository([tmp_path]).put_file(header(), iter([b"bytes"]))).code is Code.UNSUPPORTED
    assert refused(lambda: engine.remove_model("ann.iris", 0)).code is Code.UNSUPPORTED


def test_a_name_has_one_owner(serving: Engine, repository: Path, users: Path, onnx: bytes) -> None:
    times(repository / "op.model" / "1" / "model.onnx", 2)
    assert refused(lambda: put(serving, "op.model", 1, "model.onnx", onnx)).code is Code.ALREADY_EXISTS
    put(serving, "ann.iris", 1, "model.onnx", onnx)
    assert refused(lambda: put(serving, "ann.iris", 1, "model.onnx", onnx, user=False)).code is Code.ALREADY_EXISTS
    assert refused(lambda: serving.remove_model("op.model", 0)).code is Code.FORBIDDEN
    times(repository / "ann.iris" / "1" / "model.onnx", 2)
    error = refused(lambda: serving.repository_model_load("ann.iris", {}))
    assert error.code is Code.ALREADY_EXISTS and "one of them has to be removed" in error.message
    assert refused(lambda: serving.remove_model("ann.iris", 0)).code is Code.FORBIDDEN
    assert (users / "ann.iris" / "1" / "model.onnx").is_file()
    serving.load_all()
    assert answer(serving, "ann.iris") == [2, 4], "the operator's"


# what serves -----------------------------------------------------------------------------------------------------------------------------


def test_loaded_on_order_and_again_after_a_restart(
    zygote: Zygote, watcher: Watcher, repository: Path, users: Path, serving: Engine, onnx: bytes
) -> None:
    for name in ("ann.iris", "ann.never", "ann.ended", "ann.gone"):
        put(serving, name, 1, "model.onnx", onnx)
    serving.load_all()
    assert set(states(serving).values()) == {"UNAVAILABLE"} and serving.server_ready()
    for name in ("ann.iris", "ann.ended", "ann.gone"):
        serving.repository_model_load(name, {})
    assert answer(serving, "ann.iris") == [3, 6]
    serving.repository_model_unload("ann.ended", {})
    assert serving.remove_model("ann.gone", 0)
    for control in ("explicit", "poll"):
        with engine_over(zygote, watcher, repository, user_models=users, model_control=control) as again:
            again.load_all()
            assert states(again) == {"ann.iris/1": "READY", "ann.never/1": "UNAVAILABLE", "ann.ended/1": "UNAVAILABLE"}
            if control == "poll":
                again._library.poll()
                again._library.poll()
                assert states(again)["ann.never/1"] == "UNAVAILABLE"


def test_a_load_that_fails_is_not_remembered(serving: Engine, users: Path) -> None:
    put(serving, "ann.bad", 1, "model.onnx", b"this is no model")
    assert refused(lambda: serving.repository_model_load("ann.bad", {})).code is Code.INVALID_MODEL
    assert not (users / "ann.bad" / "loaded").exists()


def test_a_users_model_that_cannot_be_loaded_again_is_no_matter_of_the_server(serving: Engine, users: Path) -> None:
    put(serving, "ann.bad", 1, "model.onnx", b"this is no model")
    (users / "ann.bad" / "loaded").touch()
    serving.load_all()
    assert serving.server_ready() and not serving.model_ready("ann.bad", "")


def test_it_is_private_and_takes_no_liberties(serving: Engine, onnx: bytes) -> None:
    put(serving, "ann.iris", 1, "model.onnx", onnx)
    toml = b'public = true\ninstances = 500\nexecutor = "thread"\n[onnxruntime.cuda]\ngraph = true\n[python]\nsandbox = "off"\n'
    put(serving, "ann.iris", 0, "model.toml", toml)
    serving.repository_model_load("ann.iris", {})
    settings = serving._served["ann.iris"].model.settings
    assert (settings.public, settings.executor, settings.onnxruntime, settings.python["sandbox"]) == (False, "process", {}, "required")
    assert settings.instances == 1, "SetInstances says how many"
    assert '"public": false' in str(serving.model_config("ann.iris", ""))
    order = {"config": '{"parameters": {"outboard": {"string_value": "{\\"public\\": true}"}}}'}
    serving.repository_model_load("ann.iris", order)
    assert not serving._served["ann.iris"].model.settings.public


def test_it_is_no_pipeline(serving: Engine, onnx: bytes) -> None:
    put(serving, "ann.chain", 0, "model.toml", b'[[steps]]\nmodel = "secret"\n')
    put(serving, "ann.chain", 1, "model.onnx", onnx)
    error = refused(lambda: serving.repository_model_load("ann.chain", {}))
    assert error.code is Code.INVALID_MODEL and "no pipeline" in error.message


def test_code_runs_in_a_box_or_not_at_all(serving: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    put(serving, "ann.code", 1, "model.py", DOUBLE.encode())
    put(serving, "ann.code", 0, "model.toml", DOUBLE_TOML.encode() + b'[python]\nsandbox = "off"\n')
    monkeypatch.setattr(sandbox, "unusable", lambda: "there is none")
    error = refused(lambda: serving.repository_model_load("ann.code", {}))
    assert error.code is Code.UNSUPPORTED and "sandbox" in error.message


@boxed
def test_one_that_says_nothing_of_memory_has_what_a_trial_has(
    zygote: Zygote, watcher: Watcher, repository: Path, users: Path, onnx: bytes
) -> None:
    code = b"def infer(inputs):\n    return {'y': inputs['x'] * len(b'x' * int(inputs['x'][0]))}\n"
    with engine_over(zygote, watcher, repository, user_models=users, validation_memory_bytes=128 * 2**20) as engine:
        put(engine, "ann.code", 1, "model.py", code)
        put(engine, "ann.code", 0, "model.toml", DOUBLE_TOML.encode())
        put(engine, "ann.iris", 1, "model.onnx", onnx)
        for name in ("ann.code", "ann.iris"):
            engine.repository_model_load(name, {})
        assert engine.capacity().memory_reserved_bytes == 0
        error = refused(lambda: engine.model_infer(request("ann.code", [1e9])))
        assert error.code is Code.MODEL_FAILED and "over its memory limit of 128 MiB" in error.message
        assert answer(engine, "ann.iris") == [3, 6]
        assert floats(engine.model_infer(request("ann.code", [2]))) == [4], "it comes back"


# removal ---------------------------------------------------------------------------------------------------------------------------------


def test_removed_again_and_again(serving: Engine, users: Path, onnx: bytes) -> None:
    assert not serving.remove_model("ann.iris", 0) and not serving.remove_model("not a name", 0)
    put(serving, "ann.iris", 1, "model.onnx", onnx)
    serving.repository_model_load("ann.iris", {})
    assert answer(serving, "ann.iris") == [3, 6] and "ann.iris" in page(serving)
    assert serving.remove_model("ann.iris", 0)
    assert not serving.remove_model("ann.iris", 0)
    assert refused(lambda: answer(serving, "ann.iris")).code is Code.MODEL_NOT_FOUND
    assert states(serving) == {} and [path for path in users.rglob("*") if path.is_file()] == []
    assert "ann.iris" not in page(serving), "nor is it counted any more"
    for version in (-1, 10**18):
        assert refused(lambda: serving.remove_model("ann.iris", version)).code is Code.INVALID_INPUT  # noqa: B023


def test_one_version_is_removed(serving: Engine, users: Path, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        put(serving, "ann.iris", version, "model.onnx", times(tmp_path / "m.onnx", version).read_bytes())
    put(serving, "ann.iris", 0, "model.toml", b"version_policy = { latest = 2 }")
    serving.repository_model_load("ann.iris", {"version": 3})
    assert serving.remove_model("ann.iris", 1), "one that does not serve"
    assert serving.remove_model("ann.iris", 3)
    assert not (users / "ann.iris" / "serving-version").exists(), "the one that was named is gone"
    assert answer(serving, "ann.iris") == [2, 4] and states(serving) == {"ann.iris/2": "READY"}
    assert refused(lambda: answer(serving, "ann.iris", "3")).code is Code.VERSION_NOT_FOUND
    assert serving.remove_model("ann.iris", 2) and not serving.remove_model("ann.iris", 2)
    assert refused(lambda: answer(serving, "ann.iris")).code is Code.NOT_READY
    assert not (users / "ann.iris" / "loaded").exists()


def test_loads_and_removals_at_once(serving: Engine, onnx: bytes) -> None:
    put(serving, "ann.iris", 1, "model.onnx", onnx)
    codes: list[str] = []

    def work(remove: bool) -> None:
        try:
            serving.remove_model("ann.iris", 0) if remove else serving.repository_model_load("ann.iris", {})
        except ServingError as error:
            codes.append(error.code.value)

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(codes) <= {"model_not_found"}
    assert states(serving) == {} and serving.model_ready("ann.iris", "") is False


def test_what_a_killed_server_left_is_swept(tmp_path: Path) -> None:
    root = tmp_path / "users"
    half = root / ".removed" / "a1b2" / "1"
    half.mkdir(parents=True)
    (half / "model.onnx").write_bytes(b"half")
    part = root / "ann.iris" / "1" / ".model.onnx.1-2.part"
    fresh = root / "ann.iris" / "1" / ".other.onnx.1-2.part"
    part.parent.mkdir(parents=True)
    for path in (part, fresh):
        path.write_bytes(b"half")
    os.utime(part, (1, 1))
    assert UserModels(root).names() == ()
    assert not (root / ".removed").exists() and not part.exists() and fresh.exists(), "a copy under way stays"
