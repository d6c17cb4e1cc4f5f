"""`outboard models convert`: estimators of scikit-learn become models that are served and answer the same, or nothing is written."""

import json
import pickle
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from idl import tensors
from idl.messages import InferRequest, Tensor
from inference_server.executors.process import Watcher, Zygote
from outboard import models, models_convert
from outboard.__main__ import main
from tests.engines import LIMIT, engine_over


def saved(path: Path, model: Any) -> Path:
    joblib.dump(model, path)
    return path


def convert(path: Path, *more: str) -> int:
    return main(["models", "convert", str(path), "--out", str(path.parent / "models"), *more])


NAMES = ("logistic", "scaled", "forest", "boosting", "support", "linear", "clusters", "scaler")


@pytest.fixture(scope="module")
def made() -> Any:
    """tests.estimators"""
    return import_module("tests.estimators")


def test_none_is_forgotten(made: Any) -> None:
    assert tuple(made.ESTIMATORS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_answers_as_the_estimator(made: Any, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(saved(tmp_path / f"{name}.joblib", made.ESTIMATORS[name])) == 0, capsys.readouterr().err
    assert "answers as the estimator does on 256 made samples" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [name]
    assert (tmp_path / "models" / name / "1" / "model.onnx").stat().st_size


def test_it_is_served_with_its_labels(made: Any, tmp_path: Path) -> None:
    model = made.ESTIMATORS["logistic"]
    assert convert(saved(tmp_path / "iris.pkl", model)) == 0
    folder = tmp_path / "models" / "iris"
    said = tomllib.loads((folder / "model.toml").read_text())
    assert said["description"].startswith("LogisticRegression of scikit-learn ") and said["description"].endswith(", 4 features, 3 classes")
    assert json.loads((folder / "labels.json").read_text()) == ["setosa", "versicolor", "virginica"]
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    zygote, watcher = Zygote(run_dir, LIMIT), Watcher()
    try:
        with engine_over(zygote, watcher, tmp_path / "models") as engine:
            engine.repository_model_load("iris", {})
            rows = made.IRIS.data[::7].astype(np.float32)
            answer = engine.model_infer(InferRequest("iris", (Tensor("x", "FP32", rows.shape, rows.tobytes()),)))
            outputs = {tensor.name: tensors.decode(tensor.name, tensor.datatype, tensor.shape, tensor.data) for tensor in answer.outputs}
    finally:
        watcher.close()
        zygote.close()
    assert [each.decode() for each in outputs["label"]] == model.predict(rows).tolist()
    assert np.abs(outputs["probabilities"] - model.predict_proba(rows)).max() < 1e-4


def test_texts_need_samples_and_no_lowercase(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = saved(
        tmp_path / "texts.joblib",
        made.of_texts(lowercase=False),
    )
    assert convert(right) == 1
    assert "does not say how many features it takes: give --samples" in capsys.readouterr().err
    samples = tmp_path / "samples.json"
    samples.write_text(json.dumps(made.TEXTS))
    assert convert(right, "--samples", str(samples)) == 0, capsys.readouterr().err
    assert "on 6 given samples" in capsys.readouterr().out


def test_texts_are_not_lowered_by_a_locale_that_may_be_missing(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """skl2onnx makes `lowercase` an operator with the locale en_US: where that is missing the model does not run, and is refused."""
    path = saved(
        tmp_path / "texts.joblib",
        made.of_texts(lowercase=True),
    )
    samples = tmp_path / "samples.json"
    samples.write_text(json.dumps(made.TEXTS))
    status, said = convert(path, "--samples", str(samples)), capsys.readouterr()
    is_written = (tmp_path / "models" / "texts" / "1" / "model.onnx").exists()
    assert (status, is_written) in ((0, True), (1, False))
    assert status == 0 or "turn lowercase off" in said.err, said.err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[[1, 2]]", "the samples have 2 features, and the LogisticRegression takes 4"),
        ("[]", "there is no row"),
        ("[[[1]]]", "the samples have 3 axes"),
        ("{", "has no samples that can be read"),
        ("[[1, 2, 3, 4], [1]]", "has no samples that can be read"),
        ("[[null, 1, 2, 3]]", "object cannot be carried"),
    ],
)
def test_samples_that_do_not_fit_are_refused(
    made: Any, tmp_path: Path, content: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "samples.json"
    file.write_text(content)
    assert convert(saved(tmp_path / "iris.joblib", made.ESTIMATORS["logistic"]), "--samples", str(file)) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_other_answers_are_refused_with_the_difference(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that goes wrong: another estimator's file stands for it."""
    path = saved(tmp_path / "iris.joblib", made.ESTIMATORS["logistic"])
    real, other = models_convert._converted, made.another()
    monkeypatch.setattr(models_convert, "_converted", lambda model, samples: real(other, samples))
    rows = made.IRIS.data.astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    wrong = int((other.predict(rows) != made.ESTIMATORS["logistic"].predict(rows)).sum())
    assert wrong
    with pytest.raises(models_convert.Refused, match=rf"'label' is another than predict gives for {wrong} of 150 samples; sample \d+: "):
        models_convert.convert(path, tmp_path / "models", samples=tmp_path / "rows.npy")
    same = np.flatnonzero(other.predict(rows) == made.ESTIMATORS["logistic"].predict(rows))
    np.save(tmp_path / "rows.npy", rows[same])
    off = np.abs(other.predict_proba(rows[same]) - made.ESTIMATORS["logistic"].predict_proba(rows[same])).max()
    with pytest.raises(
        models_convert.Refused, match=rf"'probabilities' is up to {off:.2g} off what predict_proba gives, in {len(same)} of"
    ):
        models_convert.convert(path, tmp_path / "models", samples=tmp_path / "rows.npy")
    assert not (tmp_path / "models").exists()


def test_files_that_hold_no_estimator_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {
        "text.pkl": (b"hello", "is not a file of joblib or pickle"),
        "empty.pkl": (b"", "is not a file of joblib or pickle"),
        "dict.pkl": (pickle.dumps({"a": 1}), "holds a dict, which neither predicts nor transforms"),
        "unknown.pkl": (b"cnothing_of_this_name\nthing\n.", "needs what is not installed here"),
        "bad name.pkl": (b"", "is no name of a model"),
    }
    for name, (content, reason) in wanted.items():
        (tmp_path / name).write_bytes(content)
        assert convert(tmp_path / name) == 1
        assert reason in capsys.readouterr().err, name
    assert convert(tmp_path / "absent.pkl") == 1
    assert "absent.pkl is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "name"), [("a.pmml", "model.pmml"), ("a.pt2", "model.pt2"), ("net.py", "model.py"), ("a.bin", "model.onnx")]
)
def test_push_gives_a_file_the_usual_name_of_its_kind(file: str, name: str) -> None:
    assert list(models._files(Path(file), None, 3, is_new=True)) == [(Path(file), 3, name)]


def test_a_model_that_is_there_is_not_overwritten(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "iris.joblib", made.ESTIMATORS["linear"])
    assert convert(path) == 0
    before = (tmp_path / "models" / "iris" / "1" / "model.onnx").read_bytes()
    assert convert(path) == 1
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "models" / "iris" / "1" / "model.onnx").read_bytes() == before
    assert convert(path, "--name", "iris-2") == 0


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skl2onnx", None)
    with pytest.raises(models_convert.Refused, match=r"skl2onnx is not installed \(pip install -e '\.\[convert\]' in the checkout\)"):
        models_convert.convert(tmp_path / "m.pkl", tmp_path)
