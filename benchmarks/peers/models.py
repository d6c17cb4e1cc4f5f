"""The models that every contestant serves, and one request for each."""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, save

from benchmarks.peers import environments
from benchmarks.repository import make_demo, make_tiny
from benchmarks.workload import DATATYPES, Workload, open_session, workload

TINY, DIGITS, MINILM, EFFICIENTNET, BIG = "tiny", "digits", "minilm", "efficientnet-lite0", "big"
BIG_BYTES = 16 * 2**20
_WORDS = 16
"""Token ids of one sentence for MiniLM."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """As the ONNX file declares it; -1 stands for a size that is left open."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """`max_batch`: the most rows that may be run together, 0 where the first axis is fixed."""

    name: str
    file: Path
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int


@dataclass(frozen=True, slots=True)
class Models:
    """`folder` is a repository of `served`; `loads` maps a name to the request that is sent."""

    folder: Path
    served: tuple[ServedModel, ...]
    loads: dict[str, Workload]


def make(folder: Path, peers: Path, say: Callable[[str], None]) -> Models:
    """The repository in the new folder `folder`. `peers`: where the environments lie."""
    python = environments.ensure(peers, "models", say) / "bin" / "python"
    say("making the models")
    subprocess.run([python, Path(__file__).parent / "inside" / "make_models.py", folder], check=True)
    loads = [make_tiny(folder), make_demo(folder), _digits(folder), _minilm(folder), _big(folder)]
    most = {DIGITS: 256, MINILM: 16, EFFICIENTNET: 16}
    served = tuple(_describe(load, most.get(load.model, 0)) for load in loads)
    return Models(folder, served, {load.model: load for load in loads})


def batch(load: Workload, rows: int) -> Workload:
    """The request with its rows over and over, `rows` in all."""
    times = -(-rows // load.rows)
    inputs = {name: np.concatenate([array] * times)[:rows] for name, array in load.inputs.items()}
    return workload(load.model, load.file, inputs, load.output, tolerance=load.tolerance)


def _digits(folder: Path) -> Workload:
    row = np.random.default_rng(1).integers(0, 17, (1, 64)).astype(np.float32) / 16
    return workload(DIGITS, folder / DIGITS / "1" / "model.onnx", {"X": row}, "probabilities")


def _minilm(folder: Path) -> Workload:
    ids = np.random.default_rng(1).integers(1000, 20000, (1, _WORDS))
    ids[0, 0], ids[0, -1] = 101, 102  # BERT's marks of a sentence's begin and end
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return workload(MINILM, folder / MINILM / "1" / "model.onnx", inputs, tolerance=1e-3)


def _big(folder: Path) -> Workload:
    """Y = -X on 16 MB: what large tensors cost on their way."""
    file = folder / BIG / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [BIG_BYTES // 4]) for name in "XY"]
    graph = helper.make_graph([helper.make_node("Neg", ["X"], ["Y"])], "negate", floats[:1], floats[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return workload(BIG, file, {"X": np.arange(BIG_BYTES // 4, dtype=np.float32)})


def _describe(load: Workload, max_batch: int) -> ServedModel:
    session = open_session(load.file, 1)
    return ServedModel(load.model, load.file, _tensors(session.get_inputs()), _tensors(session.get_outputs()), max_batch)


def _tensors(declared: Sequence[Any]) -> tuple[Tensor, ...]:
    types = {"tensor(float)": DATATYPES["float32"], "tensor(int64)": DATATYPES["int64"]}
    return tuple(Tensor(item.name, types[item.type], tuple(n if isinstance(n, int) else -1 for n in item.shape)) for item in declared)
