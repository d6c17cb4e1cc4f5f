"""A model with one request for it. What a load generator's process needs, and no more: it starts for every round."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

DATATYPES = {"float32": "FP32", "int64": "INT64"}
"""numpy's name of a type -> the protocol's."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A model, one request for it and what onnxruntime answers; `image` is a JPEG file's bytes where the model takes pictures.

    Of a model with several outputs `output` is the one that is compared; all of them travel. `tolerance` is how far an answer may be off:
    a quantised model chooses its steps for a whole batch, so that neighbours move its answers.
    """

    model: str
    file: Path
    inputs: dict[str, NDArray[Any]]
    output: str
    expected: NDArray[Any]
    image: bytes = b""
    tolerance: float = 1e-5

    @property
    def rows(self) -> int:
        """Of the first input's first axis: the items that one request carries where the model takes batches."""
        return int(next(iter(self.inputs.values())).shape[0])


def open_session(file: Path, threads: int) -> Any:
    """`threads` of one inference, 0 for one per core; idle ones do not spin, as in the model host."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def workload(
    model: str, file: Path, inputs: dict[str, NDArray[Any]], output: str = "", image: bytes = b"", tolerance: float = 1e-5
) -> Workload:
    """`output`: which one is compared; the first one where it is not said."""
    session = open_session(file, 1)
    output = output or session.get_outputs()[0].name
    return Workload(model, file, inputs, output, session.run([output], inputs)[0], image, tolerance)
