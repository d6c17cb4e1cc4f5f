"""What a load request brings: names that cannot leave their folder, sizes, files that serve alone and go when their version goes."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from idl.codes import Code, ServingError
from inference_server import load_order
from inference_server.engine import Engine
from inference_server.executors.process import Zygote
from inference_server.load_order import LoadOrder
from inference_server.spool import FOLDER, Spool
from tests.engines import LIMIT
from tests.eventually import eventually
from tests.inference_server.conftest import floats, request
from tests.onnx_models import times

CONFIG = "{}"


def refused(call: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        call()
    return caught.value


def files_of(folder: Path) -> list[str]:
    """Also while they are being removed, which `rglob` cannot."""
    found = [Path(parent, name) for parent, folders, names in os.walk(folder) for name in (*folders, *names)]
    return sorted(str(path.relative_to(folder)) for path in found)


# the request -------------------------------------------------------------------------------------------------------------------------------


def test_what_may_be_asked() -> None:
    assert load_order.read("m", {}, 10) == LoadOrder()
    assert load_order.read("m", {"version": 3}, 10) == load_order.read("m", {"version": "3"}, 10) == LoadOrder(3)
    brought = {"config": CONFIG, "file:1/model.onnx": b"x", "file:labels.txt": b"y", "file:warmup/cat.raw": b"z", "file:20/w.bin": b""}
    order = load_order.read("m", brought, 10)
    assert order.config == CONFIG and order.files == {"1/model.onnx": b"x", "labels.txt": b"y", "warmup/cat.raw": b"z", "20/w.bin": b""}


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "/model.onnx", "1/", "../model.onnx", "1/../model.onnx", "1/../../model.onnx", "./1/model.onnx", "/etc/passwd"),
        *("1//model.onnx", "1/2/model.onnx", "01/model.onnx", "0/model.onnx", "-1/model.onnx", "x/model.onnx", "1/.hidden", ".hidden"),
        *("1/model\0.onnx", "1/model\n.onnx", "1/a\\b", "1/model.onnx.part", "serving-version", "serving-labels", "1", "warmup"),
        *("1/" + "x" * 200, "1/" + "é", "warmup/../x", "../warmup/x", "1 /model.onnx"),
    ],
)
def test_a_name_that_is_not_plain_is_refused(name: str) -> None:
    error = refused(lambda: load_order.read("m", {"config": CONFIG, f"file:{name}": b"x"}, 10))
    assert error.code is Code.INVALID_INPUT and len(error.message) < 400


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"colour": "red"}, Code.INVALID_INPUT),
        ({"version": "../1"}, Code.VERSION_NOT_FOUND),
        ({"version": True}, Code.VERSION_NOT_FOUND),
        ({"version": None}, Code.VERSION_NOT_FOUND),
        ({"version": "9" * 100}, Code.VERSION_NOT_FOUND),
        ({"config": b"{}"}, Code.INVALID_INPUT),
        ({"config": " "}, Code.INVALID_INPUT),
        ({"config": None}, Code.INVALID_INPUT),
        ({"file:1/model.onnx": b"x"}, Code.INVALID_INPUT),
        ({"config": CONFIG, "file:1/model.onnx": "text"}, Code.INVALID_INPUT),
        ({"config": CONFIG, "file:1/model.onnx": 3}, Code.INVALID_INPUT),
        ({"config": CONFIG, "file:1/a": b"x" * 6, "file:1/b": b"x" * 5}, Code.TOO_LARGE),
        ({"config": CONFIG, **{f"file:1/f{number}": b"" for number in range(1001)}}, Code.TOO_LARGE),
    ],
)
def test_a_wrong_parameter_is_refused(parameters: dict[str, Any], code: Code) -> None:
    assert refused(lambda: load_order.read("m", parameters, 10)).code is code


# the spool ---------------------------------------------------------------------------------------------------------------------------------


def test_files_lie_in_a_private_folder_until_the_last_holder_lets_go(tmp_path: Path) -> None:
    (tmp_path / FOLDER / "9" / "m").mkdir(parents=True)  # of a killed server
    spool = Spool(tmp_path, LIMIT)
    assert files_of(tmp_path) == []
    kept = spool.put("m", {"1/model.onnx": b"x", "labels.txt": b"y", "warmup/x.raw": b"z"})
    assert files_of(kept.folder) == ["1", "1/model.onnx", "labels.txt", "warmup", "warmup/x.raw"]
    assert (tmp_path / FOLDER).stat().st_mode & 0o777 == 0o700
    kept.keep()
    kept.release()
    assert (kept.folder / "1" / "model.onnx").read_bytes() == b"x"
    kept.release()
    assert files_of(tmp_path) == [FOLDER]
    spool.put("m", {"1/model.onnx": b"x"})
    spool.close()
    spool.close()
    assert files_of(tmp_path) == []


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LIMIT)
    for files in ({"1": b"x", "1/model.onnx": b"y"}, {"/model.onnx": b"x"}, {"1/../../model.onnx": b"x"}):
        error = refused(lambda files=files: spool.put("m", files))
        assert error.code is Code.INTERNAL and str(tmp_path) not in error.message
    assert files_of(tmp_path) == [FOLDER]


# through the server ------------------------------------------------------------------------------------------------------------------------


def onnx(tmp_path: Path, factor: float) -> bytes:
    return times(tmp_path / "sent" / f"{factor}.onnx", factor).read_bytes()


def answer(engine: Engine, version: str = "") -> list[float]:
    return floats(engine.model_infer(request("m", [[1, 2]], version=version)))


def sent(zygote: Zygote) -> list[str]:
    return files_of(zygote.run_dir / FOLDER) if (zygote.run_dir / FOLDER).exists() else []


def test_a_model_is_served_from_the_files_of_a_request_alone(engine: Engine, repository: Path, zygote: Zygote, tmp_path: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    (repository / "m" / "model.toml").write_text('description = "ours"\n')
    engine.repository_model_load("m", {})
    before = files_of(repository)
    config = json.dumps({"max_batch_size": 4, "instance_group": [{"count": 2}], "version_policy": {"all": {}}})
    engine.repository_model_load("m", {"config": config, "file:7/model.onnx": onnx(tmp_path, 7), "file:8/model.onnx": onnx(tmp_path, 8)})
    assert answer(engine) == [8, 16] and answer(engine, "7") == [7, 14]
    assert refused(lambda: answer(engine, "1")).code in (Code.NOT_READY, Code.VERSION_NOT_FOUND)
    told = engine.model_config("m", "")
    assert told["instance_group"][0]["count"] == 2 and json.loads(told["parameters"]["outboard"]["string_value"])["description"] == ""
    assert files_of(repository) == before, "nothing is written into the repository"
    assert "1/m/7/model.onnx" in sent(zygote)
    states = {index.version: index.state for index in engine.repository_index(False)}
    assert states == {"1": "UNAVAILABLE", "7": "READY", "8": "READY"} or states["1"] == "UNLOADING"
    engine.repository_model_load("m", {})
    assert answer(engine) == [2, 4], "a load without files is of the repository again"
    eventually(lambda: sent(zygote) == [], "the files go with their versions")


def test_an_executor_that_dies_comes_back_from_the_files(engine: Engine, zygote: Zygote, tmp_path: Path) -> None:
    engine.repository_model_load("m", {"config": CONFIG, "file:1/model.onnx": onnx(tmp_path, 5)})
    (executor,) = engine._served["m"].versions[1].executors
    os.kill(executor.pid, 9)
    assert answer(engine) == [5, 10]
    engine.repository_model_unload("m", {})
    assert sent(zygote) == [] and refused(lambda: answer(engine)).code is Code.MODEL_NOT_FOUND


def test_a_load_of_files_that_fails_changes_nothing_and_leaves_nothing(
    engine: Engine, repository: Path, zygote: Zygote, tmp_path: Path
) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    engine.repository_model_load("m", {})
    wrong = json.dumps({"input": [{"name": "z", "data_type": "TYPE_FP32", "dims": [2]}]})
    for parameters, code in (
        ({"config": CONFIG, "file:2/model.onnx": b"not a model"}, Code.INVALID_MODEL),
        ({"config": wrong, "file:2/model.onnx": onnx(tmp_path, 3)}, Code.INVALID_MODEL),
        ({"config": CONFIG, "file:2/other.onnx": onnx(tmp_path, 3)}, Code.INVALID_MODEL),
        ({"config": '{"max_batch_size": -1}', "file:2/model.onnx": onnx(tmp_path, 3)}, Code.INVALID_INPUT),
        ({"config": '{"colour": 1}', "file:2/model.onnx": onnx(tmp_path, 3)}, Code.INVALID_INPUT),
        ({"config": CONFIG, "file:2/model.onnx": b"x" * (LIMIT + 1)}, Code.TOO_LARGE),
        ({"config": CONFIG, "file:2/model.onnx": onnx(tmp_path, 3), "version": "9"}, Code.VERSION_NOT_FOUND),
    ):
        assert refused(lambda parameters=parameters: engine.repository_model_load("m", parameters)).code is code
        assert answer(engine) == [2, 4] and sent(zygote) == []
    assert refused(lambda: engine.repository_model_load("../m", {"config": CONFIG, "file:1/x": b""})).code is Code.MODEL_NOT_FOUND


def test_a_configuration_in_a_request_stands_above_what_lies_in_the_folder(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    (repository / "m" / "model.toml").write_text('public = false\ndescription = "ours"\ninstances = 2\n')
    (repository / "m" / "config.pbtxt").write_text("this is : not [ a configuration")
    assert refused(lambda: engine.repository_model_load("m", {})).code is Code.INVALID_MODEL
    engine.repository_model_load("m", {"config": json.dumps({"instance_group": [{"count": 1, "kind": "KIND_CPU"}]})})
    told = engine.model_config("m", "")
    own = json.loads(told["parameters"]["outboard"]["string_value"])
    assert told["instance_group"][0]["count"] == 1 and own["description"] == "ours" and own["public"] is False
    assert answer(engine) == [2, 4]


def test_files_do_not_open_a_private_model(engine: Engine, repository: Path, tmp_path: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    (repository / "m" / "model.toml").write_text("public = false\n")
    engine.repository_model_load("m", {"config": CONFIG, "file:1/model.onnx": onnx(tmp_path, 3)})
    assert json.loads(engine.model_config("m", "")["parameters"]["outboard"]["string_value"])["public"] is False
    engine.repository_model_load("n", {"config": CONFIG, "file:1/model.onnx": onnx(tmp_path, 3)})
    assert json.loads(engine.model_config("n", "")["parameters"]["outboard"]["string_value"])["public"] is True


def test_unload_knows_its_parameter(engine: Engine, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 2)
    engine.repository_model_load("m", {})
    assert refused(lambda: engine.repository_model_unload("m", {"colour": 1})).code is Code.INVALID_INPUT
    engine.repository_model_unload("m", {"unload_dependents": True})
    assert refused(lambda: answer(engine)).code is Code.NOT_READY


def test_loads_of_every_kind_at_once_leave_nothing(engine: Engine, repository: Path, zygote: Zygote, tmp_path: Path) -> None:
    for number in (1, 2):
        times(repository / "m" / str(number) / "model.onnx", 2)
    sent_model, failures = onnx(tmp_path, 2), []
    kinds: list[Any] = [
        lambda: engine.repository_model_load("m", {}),
        lambda: engine.repository_model_load("m", {"version": "1"}),
        lambda: engine.repository_model_load("m", {"config": CONFIG, "file:1/model.onnx": sent_model, "file:2/model.onnx": sent_model}),
        lambda: engine.repository_model_load("m", {"config": CONFIG, "file:1/model.onnx": b"not a model"}),
        lambda: engine.repository_model_unload("m", {}),
        lambda: engine.set_labels("m", {"stable": 1}, 0),
        lambda: engine.set_labels("m", {}, 0),
        lambda: answer(engine),
    ]
    expected = {Code.INVALID_MODEL, Code.NOT_READY, Code.CONFLICT, Code.MODEL_NOT_FOUND}

    def work(seed: int) -> None:
        for step in range(24):
            try:
                kinds[(seed * 5 + step * 3) % len(kinds)]()
            except ServingError as error:
                if error.code not in expected:
                    failures.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    engine.repository_model_load("m", {})
    assert answer(engine) == [2, 4]
    eventually(lambda: sent(zygote) == [], "no file of a request is left")
    engine.repository_model_unload("m", {})
    eventually(lambda: engine.in_flight() == 0 and not engine._models.leaving(), "nothing drains")
