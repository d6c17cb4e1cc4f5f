"""Versions by policy and by label: what is loaded, what answers, going back without a load, and what a restart finds."""

import os
import random
import threading
from collections import Counter
from pathlib import Path

import pytest

from idl.codes import Code, ServingError
from idl.lane_routes import LocalLane, split
from inference_server import version_labels
from inference_server.engine import Engine
from inference_server.executors.process import Zygote
from inference_server.repository import Repository
from inference_server.repository_model import RepositoryModel
from inference_server.setting_checks import InvalidModelSettings
from inference_server.version_labels import LABELS_FILE, Labels, checked
from tests.engines import LIMIT
from tests.eventually import eventually
from tests.inference_server.conftest import floats, request
from tests.onnx_models import slow, times


def versions(repository: Path, *numbers: int, toml: str = 'version_policy = "all"\n', name: str = "m") -> Path:
    folder = repository / name
    for number in numbers:
        times(folder / str(number) / "model.onnx", number)
    (folder / "model.toml").write_text(toml)
    return folder


def answer(engine: Engine, version: str = "") -> float:
    return floats(engine.model_infer(request("m", [[1, 1]], version=version)))[0]


def refused(call: object) -> ServingError:
    with pytest.raises(ServingError) as caught:
        call()  # type: ignore[operator]
    return caught.value


def read(repository: Path) -> RepositoryModel:
    found = Repository([repository]).read("m")
    assert found is not None
    return found


# values ------------------------------------------------------------------------------------------------------------------------------------


def test_the_split_of_requests_without_a_version() -> None:
    assert Labels().split(5) == ((5, 1),)
    assert Labels({"stable": 3}).split(5) == ((3, 1),)
    assert Labels({"stable": 3, "canary": 4}, 0).split(5) == ((3, 1),)
    assert Labels({"stable": 3, "canary": 4}, 30).split(5) == ((3, 70), (4, 30))
    assert Labels({"stable": 3, "canary": 4}, 100).split(5) == ((4, 1),)
    assert Labels({"stable": 3, "canary": 3}, 30).split(5) == ((3, 1),)
    assert Labels({"stable": 3, "canary": 4, "old": 1}, 30).only({3, 1}) == Labels({"stable": 3, "old": 1}, 0)


@pytest.mark.parametrize(
    ("labels", "percent", "said"),
    [
        (3, 0, "version_labels"),
        ({"7": 1}, 0, "a label: a letter"),
        ({"": 1}, 0, "a label: a letter"),
        ({"a/b": 1}, 0, "a label: a letter"),
        ({"x" * 65: 1}, 0, "a label: a letter"),
        ({"a": 0}, 0, "version_labels.a = 0"),
        ({"a": "1"}, 0, "version_labels.a = '1'"),
        ({"a": True}, 0, "version_labels.a = True"),
        ({f"l{number}": 1 for number in range(33)}, 0, "at most 32"),
        ({"stable": 1, "canary": 2}, 101, "canary_percent = 101"),
        ({"stable": 1, "canary": 2}, -1, "canary_percent = -1"),
        ({"stable": 1}, 10, "needs the labels 'stable' and 'canary'"),
        ({"canary": 1}, 10, "needs the labels 'stable' and 'canary'"),
    ],
)
def test_labels_that_cannot_be(labels: object, percent: object, said: str) -> None:
    with pytest.raises(InvalidModelSettings, match=said):
        checked(labels, percent)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"labels": 3, "canary_percent": 0}', '{"labels": {}}', "\0", "[" * 10_000])
def test_a_file_that_is_not_ours_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / LABELS_FILE).write_text(text)
    assert version_labels.read(tmp_path) is None


def test_what_is_written_is_read_and_nothing_half_is_ever_there(tmp_path: Path) -> None:
    assert version_labels.read(tmp_path) is None
    first, second = Labels({"stable": 1}), Labels({"stable": 1, "canary": 2}, 10)
    done = threading.Event()

    def write() -> None:
        for _ in range(40):
            assert version_labels.write(tmp_path, first) and version_labels.write(tmp_path, second)
        done.set()

    writer = threading.Thread(target=write)
    version_labels.write(tmp_path, first)
    writer.start()
    while not done.is_set():
        assert version_labels.read(tmp_path) in (first, second)
    writer.join()
    assert os.listdir(tmp_path) == [LABELS_FILE]
    assert version_labels.write(tmp_path, None) and version_labels.write(tmp_path, None) and os.listdir(tmp_path) == []
    assert not version_labels.write(tmp_path / "absent", first)


# what is loaded ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "pinned", "wanted", "default"),
    [
        ("", 0, (4,), ((4, 1),)),
        ("", 2, (2,), ((2, 1),)),
        ("version_policy = { latest = 2 }", 0, (3, 4), ((4, 1),)),
        ("version_policy = { latest = 2 }", 3, (3, 4), ((3, 1),)),
        ("version_policy = { latest = 2 }", 1, (1, 3, 4), ((1, 1),)),
        ("version_policy = { specific = [1, 3, 9] }", 0, (1, 3), ((3, 1),)),
        ('version_policy = "all"', 2, (1, 2, 3, 4), ((2, 1),)),
        ("version_labels = { stable = 2, canary = 3 }\ncanary_percent = 10", 0, (2, 3, 4), ((2, 90), (3, 10))),
        ("version_labels = { stable = 2, canary = 3 }\ncanary_percent = 10", 1, (1, 2, 3), ((1, 1),)),
        ("version_labels = { old = 1 }", 0, (1, 4), ((4, 1),)),
    ],
)
def test_policies_labels_and_a_named_version_together(
    tmp_path: Path, toml: str, pinned: int, wanted: tuple[int, ...], default: tuple[tuple[int, int], ...]
) -> None:
    folder = versions(tmp_path, 1, 2, 3, 4, toml=toml)
    if pinned:
        (folder / "serving-version").write_text(f"{pinned}\n")
    model = read(tmp_path)
    assert (model.wanted(), model.default(model.wanted())) == (wanted, default)


def test_a_label_of_the_owner_that_names_nothing_is_an_error(tmp_path: Path) -> None:
    versions(tmp_path, 1, 2, toml="version_labels = { stable = 7 }")
    assert read(tmp_path).problem == "version_labels.stable = 7, and there are only versions 1, 2"


# through the server ------------------------------------------------------------------------------------------------------------------------


def test_requests_by_label_and_the_canarys_share(engine: Engine, repository: Path) -> None:
    versions(repository, 1, 2, 3, toml='version_policy = "all"\nversion_labels = { stable = 1, canary = 2 }\ncanary_percent = 25\n')
    engine.repository_model_load("m", {})
    assert (answer(engine, "stable"), answer(engine, "canary"), answer(engine, "3")) == (1, 2, 3)
    assert refused(lambda: answer(engine, "nobody")).code is Code.VERSION_NOT_FOUND
    random.seed(7)
    counts = Counter(answer(engine) for _ in range(400))
    assert set(counts) == {1, 2} and 60 <= counts[2] <= 140, "a quarter of 400, within four standard deviations"
    metadata = engine.model_metadata("m", "")
    assert metadata.properties["version_labels"] == "canary=2 (25 %), stable=1"
    assert metadata.properties["default_version"] == "1 (75 %), 2 (25 %)" and metadata.versions == ("1", "2", "3")
    assert engine.model_ready("m", "canary") and not engine.model_ready("m", "nobody")
    assert engine.model_config("m", "canary")["name"] == "m"
    (of_canary,) = engine.model_statistics("m", "canary")
    assert of_canary.version == "2"


def test_the_split_is_exact_over_the_whole_range() -> None:
    for percent in (1, 50, 99):
        weights = [(str(version), weight) for version, weight in Labels({"stable": 1, "canary": 2}, percent).split(1)]
        drawn = Counter(split(weights, lambda point=point: (point + 0.5) / 100) for point in range(100))
        assert drawn == {"1": 100 - percent, "2": percent}


def test_labels_change_without_a_load_and_outlive_a_restart(engine: Engine, repository: Path) -> None:
    folder = versions(repository, 1, 2, 3)
    engine.repository_model_load("m", {})
    executors = [version.executors for version in engine._served["m"].versions.values()]
    engine.set_labels("m", {"stable": 2, "canary": 3}, 0)
    assert (answer(engine), answer(engine, "canary")) == (2, 3)
    engine.set_labels("m", {"stable": 1}, 0)
    assert answer(engine) == 1 and refused(lambda: answer(engine, "canary")).code is Code.VERSION_NOT_FOUND
    assert [version.executors for version in engine._served["m"].versions.values()] == executors, "nothing was loaded"
    for parameters in ({}, {}):
        engine.repository_model_load("m", parameters)
        assert answer(engine) == 1, "a reload keeps them"
    engine.load_all()  # as a restart would
    assert answer(engine) == 1
    assert read(repository).labels == Labels({"stable": 1})
    engine.set_labels("m", {}, 0)
    assert answer(engine) == 3 and not (folder / LABELS_FILE).exists(), "what the settings say holds again"


def test_callers_on_the_lane_follow_labels_at_once(engine: Engine, repository: Path, zygote: Zygote) -> None:
    versions(repository, 1, 2)
    engine.load_all()
    local = LocalLane(zygote.run_dir, LIMIT)

    def through(version: str = "") -> float | None:
        found = local.infer(request("m", [[1, 1]], version=version))
        return None if found is None else floats(found)[0]

    assert (through(), through("canary")) == (2, None), "what the lane does not know the server is asked about"
    for stable, canary in ((1, 2), (2, 1)) * 5:
        engine.set_labels("m", {"stable": stable, "canary": canary}, 0)
        assert (through(), through("stable"), through("canary")) == (stable, stable, canary)
    engine.set_labels("m", {"stable": 1, "canary": 2}, 50)
    assert {through() for _ in range(64)} == {1, 2}
    engine.set_labels("m", {}, 0)
    assert (through(), through("stable")) == (2, None)
    local.close()


def test_labels_that_cannot_be_set_change_nothing(engine: Engine, repository: Path) -> None:
    folder = versions(repository, 1, 2)
    engine.repository_model_load("m", {})
    engine.set_labels("m", {"stable": 1}, 0)
    for labels, percent, code in (
        ({"stable": 9}, 0, Code.CONFLICT),
        ({"stable": 1, "canary": 9}, 10, Code.CONFLICT),
        ({"stable": 1}, 10, Code.INVALID_INPUT),
        ({"7": 1}, 0, Code.INVALID_INPUT),
    ):
        error = refused(lambda labels=labels, percent=percent: engine.set_labels("m", labels, percent))
        assert error.code is code and "'m'" in error.message
    assert answer(engine) == 1 and version_labels.read(folder) == Labels({"stable": 1})
    assert refused(lambda: engine.set_labels("nobody", {}, 0)).code is Code.MODEL_NOT_FOUND


def test_a_named_version_that_is_loaded_serves_at_once_and_the_others_stay(engine: Engine, repository: Path) -> None:
    versions(repository, 1, 2, 3, toml="version_policy = { latest = 2 }\n")
    engine.repository_model_load("m", {})
    before = {number: version.executors for number, version in engine._served["m"].versions.items()}
    engine.repository_model_load("m", {"version": "2"})
    assert answer(engine) == 2 and answer(engine, "3") == 3
    assert {number: version.executors for number, version in engine._served["m"].versions.items()} == before, "nothing was loaded"
    engine.repository_model_load("m", {"version": "1"})
    assert (answer(engine), answer(engine, "2"), answer(engine, "3")) == (1, 2, 3)
    engine.load_all()
    assert answer(engine) == 1, "also after a restart"
    engine.repository_model_load("m", {})
    assert answer(engine) == 3 and refused(lambda: answer(engine, "1")).code is Code.NOT_READY


def test_a_named_version_whose_file_has_changed_is_loaded_again(engine: Engine, repository: Path) -> None:
    folder = versions(repository, 1, 2)
    engine.repository_model_load("m", {})
    times(folder / "new.onnx", 40).replace(folder / "1" / "model.onnx")
    engine.repository_model_load("m", {"version": "1"})
    assert (answer(engine), answer(engine, "2")) == (40, 2)


def test_the_label_stable_ends_the_rule_of_a_named_version(engine: Engine, repository: Path) -> None:
    folder = versions(repository, 1, 2, 3)
    engine.repository_model_load("m", {"version": "1"})
    engine.set_labels("m", {"canary": 3}, 0)
    assert answer(engine) == 1 and (folder / "serving-version").exists()
    engine.set_labels("m", {"stable": 2}, 0)
    assert answer(engine) == 2 and not (folder / "serving-version").exists()
    engine.repository_model_load("m", {"version": "3"})
    assert answer(engine) == 3, "and a later named version stands above the label again"


def test_labels_can_be_set_while_the_model_loads(engine: Engine, repository: Path) -> None:
    """Going back must not wait for the load that one wants to go back from."""
    folder = versions(repository, 1, 2)
    engine.repository_model_load("m", {})
    slow(folder / "3" / "model.onnx", 600)
    loading = threading.Thread(target=lambda: engine.repository_model_load("m", {}), name="loading")
    loading.start()
    eventually(lambda: any(index.state == "LOADING" for index in engine.repository_index(False)), "it is loading")
    engine.set_labels("m", {"stable": 1}, 0)
    assert answer(engine) == 1
    loading.join()
    assert answer(engine) == 1, "the load that ends later does not undo it"


def test_a_folder_that_cannot_be_written_is_said_and_serves(engine: Engine, repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = versions(repository, 1, 2)
    engine.repository_model_load("m", {})
    (folder / LABELS_FILE).mkdir()  # root may write anywhere, but not replace a folder by a file
    engine.set_labels("m", {"stable": 1}, 0)
    assert answer(engine) == 1 and "cannot be remembered" in caplog.text
    engine.repository_model_load("m", {})
    assert answer(engine) == 1, "while the server lives, a reload keeps them"


def test_a_start_serves_what_can_be_loaded(engine: Engine, repository: Path) -> None:
    folder = versions(repository, 1, 2, 3, 4, toml="version_policy = { latest = 2 }\n")
    for number in (3, 4):
        (folder / str(number) / "model.onnx").write_bytes(b"not a model")
    engine.load_all()
    assert answer(engine) == 2 and answer(engine, "1") == 1
    reasons = {index.version: index.reason for index in engine.repository_index(False) if index.state == "UNAVAILABLE"}
    assert set(reasons) == {"3", "4"} and all("protobuf" in reason.lower() for reason in reasons.values())
