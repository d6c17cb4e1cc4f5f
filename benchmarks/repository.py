"""The models that are measured and what is sent to them."""

import io
import shutil
from pathlib import Path

import numpy as np
import skimage
from numpy.typing import NDArray
from onnx import TensorProto, helper, save
from PIL import Image

from benchmarks.workload import Workload, workload
from outboard import demo

TINY = "tiny"
DEMO = demo.NAME


def make_repository(folder: Path) -> tuple[Workload, Workload]:
    """A repository with the tiny model and the demo model."""
    return make_tiny(folder), make_demo(folder)


def make_tiny(folder: Path) -> Workload:
    """Y = X * X on 3 x 2 floats: what is measured with it is everything around a model."""
    file = folder / TINY / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 2]) for name in "XY"]
    graph = helper.make_graph([helper.make_node("Mul", ["X", "X"], ["Y"])], "square", floats[:1], floats[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    (file.parents[1] / "model.toml").write_text("public = true\n")
    return workload(TINY, file, {"X": np.arange(1, 7, dtype=np.float32).reshape(3, 2)})


def make_demo(folder: Path) -> Workload:
    """The demo model and scikit-image's picture of a cup of coffee, as the tensor and as a photograph's JPEG."""
    file = demo.prepare(folder) / "1" / "model.onnx"
    photo = Image.open(Path(skimage.__file__).parent / "data" / "coffee.png").convert("RGB")
    jpeg = io.BytesIO()
    photo.save(jpeg, "JPEG", quality=90)
    return workload(DEMO, file, {"image": picture_tensor(Image.open(jpeg))}, image=jpeg.getvalue())


def add_version(folder: Path, model: str, version: int) -> None:
    """The same file again as another version: a change of model whose answers stay comparable."""
    source, target = folder / model / "1" / "model.onnx", folder / model / str(version) / "model.onnx"
    part = target.with_name("model.onnx.part")
    target.parent.mkdir()
    shutil.copyfile(source, part)
    part.replace(target)


def picture_tensor(photo: Image.Image) -> NDArray[np.float32]:
    """As the demo's `model.toml` declares: short side 256, centre 224 x 224, (RGB - 127) / 128, [1, 3, 224, 224]."""
    scale = 256 / min(photo.size)
    photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
    left, top = (photo.width - 224) // 2, (photo.height - 224) // 2
    pixels = np.asarray(photo.crop((left, top, left + 224, top + 224)), np.float32)
    return np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1)[None])
