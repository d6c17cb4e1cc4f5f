"""`outboard models convert`: an estimator of scikit-learn, pickled, becomes an ONNX model that the server serves.

A pickle is code: it is loaded here, by its owner, and never by a server. What is written has answered as the estimator does, on samples.
"""

import argparse
import json
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference_server.load_order import MODEL_NAME

TOLERANCE = 1e-4
"""How far numbers may be from the estimator's; above 1, as a part of them."""
_MADE_ROWS = 256
_EXTRA = "pip install -e '.[convert]' in the checkout"
_TYPES = {"f": "FloatTensorType", "i": "Int64TensorType", "u": "Int64TensorType", "b": "BooleanTensorType", "U": "StringTensorType"}
"""numpy's kind of a sample -> skl2onnx's type."""

Rows = Mapping[str, np.ndarray[Any, Any]]


class Refused(Exception):
    """Nothing was written; the message says why."""


@dataclass(frozen=True, slots=True)
class Samples:
    """`inputs`: name -> rows x columns, as the ONNX model gets them; `rows`: as the estimator does; `given`: not made here."""

    inputs: Rows
    rows: Any
    given: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets `run`, which gives the exit status."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the estimator, written by joblib or pickle. Loading it runs what is in it")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("my-models"), help="the model repository; default my-models")
    parser.add_argument("--name", metavar="MODEL", default="", help="the model's name; default: FILE's without its suffix")
    parser.add_argument(
        "--samples",
        metavar="FILE",
        type=Path,
        help="rows to compare on: .npy, .json (a list of rows or of texts), .npz or a JSON object (columns)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    try:
        print(convert(arguments.file, arguments.out, arguments.name, arguments.samples), flush=True)
    except Refused as refused:
        print(f"outboard models: {refused}", file=sys.stderr, flush=True)
        return 1
    return 0


def convert(file: Path, out: Path, name: str = "", samples: Path | None = None) -> str:
    """Writes `out/<name>/1/model.onnx` and `out/<name>/model.toml`; gives what to tell about it. Raises Refused."""
    name = name or file.stem
    if not MODEL_NAME.fullmatch(name):
        raise Refused(f"{name!r} is no name of a model (letters, digits, '_', '-' and '.', a letter or digit first): say --name")
    if (out / name).exists():
        raise Refused(f"{out / name} is there already: remove it, or say another --name")
    sklearn_version = _needed()
    model = _loaded(file)
    compared = _samples(model, samples)
    onnx_bytes = _converted(model, compared)
    labels, worst = _compared(model, onnx_bytes, compared)
    _write(out, name, onnx_bytes, _described(model, sklearn_version), labels)
    made = "given" if compared.given else "made"
    return (
        f"{out / name / '1' / 'model.onnx'}: answers as the estimator does on {len(compared.rows)} {made} samples, {worst:.1e} off at most"
    )


def _needed() -> str:
    try:
        import skl2onnx  # noqa: F401 - looked for
        import sklearn
    except ModuleNotFoundError as missing:
        raise Refused(f"{missing.name} is not installed ({_EXTRA})") from missing
    return str(sklearn.__version__)


def _loaded(file: Path) -> Any:
    """Raises Refused for a file that cannot be loaded, or holds something else."""
    import joblib

    try:
        model = joblib.load(file)
    except FileNotFoundError:
        raise Refused(f"{file} is not there") from None
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError) as error:
        raise Refused(f"{file} is not a file of joblib or pickle: {_words(error)}") from error
    except (ImportError, AttributeError) as error:
        raise Refused(f"{file} needs what is not installed here: {_words(error)}") from error
    if not (hasattr(model, "predict") or hasattr(model, "transform")):
        raise Refused(f"{file} holds a {type(model).__name__}, which neither predicts nor transforms")
    return model


# samples ---------------------------------------------------------------------------------------------------------------------------


def _samples(model: Any, file: Path | None) -> Samples:
    if file is not None:
        return _as_samples(model, _read(file), True)
    count = getattr(model, "n_features_in_", None)
    if count is None:
        raise Refused(f"the {type(model).__name__} does not say how many features it takes: give --samples")
    return _as_samples(model, _made(int(count)), False)


def _made(count: int) -> np.ndarray[Any, Any]:
    """[rows, count], float32, the same every time: around 0 at scales from 0.1 to 100, so that thresholds are passed, and all zeros."""
    random = np.random.default_rng(0)
    scales = 10.0 ** random.integers(-1, 3, (_MADE_ROWS, 1))
    rows = random.normal(size=(_MADE_ROWS, count)) * scales
    rows[0] = 0
    return rows.astype(np.float32)


def _read(file: Path) -> Any:
    """An array, or name -> column. Raises Refused."""
    try:
        if file.suffix == ".json":
            given = json.loads(file.read_text())
            return {key: np.array(column) for key, column in given.items()} if isinstance(given, dict) else np.array(given)
        found = np.load(file, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            return found
        with found:
            return {key: found[key] for key in found.files}
    except FileNotFoundError:
        raise Refused(f"{file} is not there") from None
    except (OSError, ValueError, EOFError) as error:
        raise Refused(f"{file} has no samples that can be read (.npy, .npz or .json): {_words(error)}") from error


def _as_samples(model: Any, given: Any, is_given: bool) -> Samples:
    if isinstance(given, dict):
        columns = {str(name): _column(f"column {name!r}", array).reshape(-1, 1) for name, array in given.items()}
        if len({len(column) for column in columns.values()}) != 1:
            raise Refused("the samples' columns are not of one length")
        return Samples(columns, _frame(columns), is_given)
    array = _column("the samples", given)
    if array.ndim == 1:  # texts, or one feature
        return Samples({"x": array.reshape(-1, 1)}, array, is_given)
    if array.ndim != 2:
        raise Refused(f"the samples have {array.ndim} axes; rows x features are wanted")
    wanted = getattr(model, "n_features_in_", array.shape[1])
    if array.shape[1] != wanted:
        raise Refused(f"the samples have {array.shape[1]} features, and the {type(model).__name__} takes {wanted}")
    # the same values in the estimator's own precision: some take no other
    return Samples({"x": array}, array.astype(np.float64) if array.dtype.kind == "f" else array, is_given)


def _column(what: str, given: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = np.asarray(given)
    if array.dtype.kind not in _TYPES:
        raise Refused(f"{what}: {array.dtype} cannot be carried; numbers, truth values or texts are wanted")
    if not len(array):
        raise Refused(f"{what}: there is no row")
    if array.dtype.kind in "U":
        return array
    made: np.ndarray[Any, Any] = array.astype({"f": np.float32, "b": np.bool_}.get(array.dtype.kind, np.int64))
    return made


def _frame(columns: Rows) -> Any:
    try:
        import pandas  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ModuleNotFoundError as missing:
        raise Refused("samples with named columns need pandas (pip install pandas)") from missing
    return pandas.DataFrame({name: column.ravel() for name, column in columns.items()})


# conversion and comparison -----------------------------------------------------------------------------------------------------------


def _converted(model: Any, samples: Samples) -> bytes:
    import skl2onnx
    from skl2onnx.common import data_types
    from sklearn.base import is_classifier

    types = []
    for name, array in samples.inputs.items():
        types.append((name, getattr(data_types, _TYPES[array.dtype.kind])([None, array.shape[1]])))
    options: dict[int, dict[str, bool]] | None = {id(model): {"zipmap": False}} if is_classifier(model) else None
    try:
        try:
            made = skl2onnx.convert_sklearn(model, initial_types=types, options=options)
        except NameError as error:  # classifiers without probabilities have no such option, and give none of those maps
            if "zipmap" not in str(error):
                raise
            made = skl2onnx.convert_sklearn(model, initial_types=types)
        return bytes(made.SerializeToString())
    except Exception as error:
        raise Refused(f"the {type(model).__name__} cannot be made ONNX: {_words(error)}") from error


def _compared(model: Any, onnx_bytes: bytes, samples: Samples) -> tuple[dict[str, list[str]], float]:
    """(output name -> labels, the largest difference). Raises Refused, with the difference, where the answers are not the estimator's."""
    session, answers = _answers(onnx_bytes, samples)
    names = [output.name for output in session.get_outputs()]
    worst = 0.0
    for name, answer, (what, expected) in zip(names, answers, _expected(model, samples), strict=False):
        worst = max(worst, _difference(name, answer, what, np.asarray(expected)))
    classes = getattr(model, "classes_", None)
    if isinstance(classes, np.ndarray) and classes.ndim == 1 and len(names) == 2 and answers[1].shape[1:] == (len(classes),):
        return {names[1]: [str(each) for each in classes.tolist()]}, worst
    return {}, worst


def _answers(onnx_bytes: bytes, samples: Samples) -> tuple[Any, list[Any]]:
    from inference_server.backends.runtime import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4
    feed = {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in samples.inputs.items()}
    try:
        session = onnxruntime.InferenceSession(onnx_bytes, quiet, providers=["CPUExecutionProvider"])
        return session, list(session.run(None, feed))
    except Exception as error:
        hint = " (turn lowercase off, and lower the texts before they are sent)" if "locale" in str(error).lower() else ""
        raise Refused(f"what it was made into does not run: {_words(error)}{hint}") from error


def _expected(model: Any, samples: Samples) -> list[tuple[str, Any]]:
    """What the estimator says, in the order of skl2onnx's outputs: (the method, its answer)."""
    methods: list[Callable[[Any], Any]] = []
    if hasattr(model, "predict"):
        methods.append(model.predict)
        scores = next((getattr(model, each) for each in ("predict_proba", "decision_function") if hasattr(model, each)), None)
        methods += [scores] if scores is not None else []
    else:
        methods.append(model.transform)
    found = []
    for method in methods:
        try:
            answer = method(samples.rows)
        except Exception as error:
            raise Refused(f"the estimator fails on the samples: {_words(error)}") from error
        found.append((method.__name__, answer.toarray() if hasattr(answer, "toarray") else answer))
    return found


def _difference(name: str, answer: Any, what: str, expected: np.ndarray[Any, Any]) -> float:
    """The largest one. Raises Refused where it is too large."""
    if answer.shape != expected.shape and answer.size == expected.size:
        answer = answer.reshape(expected.shape)
    if answer.shape != expected.shape:
        raise Refused(f"output {name!r} has shape {list(answer.shape)}, and {what} gives {list(expected.shape)}")
    if what == "predict" and expected.dtype.kind != "f":
        wrong = np.flatnonzero((answer != expected).reshape(len(expected), -1).any(axis=1))
        if len(wrong):
            first = int(wrong[0])
            raise Refused(
                f"output {name!r} is another than {what} gives for {len(wrong)} of {len(expected)} samples; "
                f"sample {first}: {answer[first]!r}, and {expected[first]!r} is right"
            )
        return 0.0
    off = np.abs(answer.astype(np.float64) - expected) / np.maximum(1.0, np.abs(expected))
    same = (np.isnan(answer.astype(np.float64)) & np.isnan(expected.astype(np.float64))) | (answer == expected)
    off = np.where(same, 0.0, np.where(np.isnan(off), np.inf, off))
    worst = float(off.max(initial=0.0))
    if worst > TOLERANCE:
        rows = int((off.reshape(len(expected), -1).max(axis=1) > TOLERANCE).sum())
        raise Refused(
            f"output {name!r} is up to {worst:.2g} off what {what} gives, in {rows} of {len(expected)} samples; {TOLERANCE:g} is allowed"
        )
    return worst


# writing -----------------------------------------------------------------------------------------------------------------------------


def _described(model: Any, version: str) -> str:
    last = model.steps[-1][1] if hasattr(model, "steps") else model
    parts = [f"{type(last).__name__} of scikit-learn {version}"]
    if (features := getattr(model, "n_features_in_", None)) is not None:
        parts.append(f"{features} feature{'s' if features != 1 else ''}")
    if isinstance(classes := getattr(model, "classes_", None), np.ndarray):
        parts.append(f"{len(classes)} classes")
    return ", ".join(parts)


def _write(out: Path, name: str, onnx_bytes: bytes, description: str, labels: Mapping[str, list[str]]) -> None:
    """Whole or not at all: the folder is made beside and renamed."""
    lines = [f"description = {json.dumps(description)}"]
    if labels:
        lines += ["", "[labels]", *(f'{json.dumps(output)} = "labels.json"' for output in labels)]
    part = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=out))
        (part / "1").mkdir()
        (part / "1" / "model.onnx").write_bytes(onnx_bytes)
        (part / "model.toml").write_text("\n".join(lines) + "\n")
        for values in labels.values():
            (part / "labels.json").write_text(json.dumps(values, ensure_ascii=False))
        part.chmod(0o755)
        part.rename(out / name)
    except OSError as error:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
        raise Refused(f"{out} cannot be written: {error.strerror}") from error


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text or type(error).__name__
