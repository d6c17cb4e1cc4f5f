"""numpy in and out: arrays -> tensors of a request, tensors of a reply -> arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from idl import tensors
from idl.codes import Code, ServingError
from idl.messages import InferResponse, Tensor
from idl.tensors import Array


@dataclass(frozen=True, slots=True)
class InferResult:
    """`outputs`: name -> array, read-only, its memory kept by it alone. BYTES are object arrays of `bytes`, BF16 are `uint16` bit patterns.

    `datatypes`: output name -> the protocol's name of its type. `parameters` holds `queue_us` and `compute_us` where the host measures them.
    """

    model_name: str
    model_version: str
    id: str
    outputs: Mapping[str, Array]
    datatypes: Mapping[str, str]
    parameters: Mapping[str, Any]


def to_tensors(inputs: Mapping[str, ArrayLike], datatypes: Mapping[str, str]) -> tuple[Tensor, ...]:
    """`datatypes` names the type where numpy's does not say it: "BF16" for uint16 bit patterns. Raises invalid_input."""
    return tuple(_to_tensor(name, np.asarray(value), datatypes.get(name)) for name, value in inputs.items())


def _to_tensor(name: str, array: Array, datatype: str | None) -> Tensor:
    if datatype is None:
        datatype = tensors.datatype_of(array)
    elif datatype not in tensors.DTYPES:
        raise tensors.invalid(f"tensor {name!r} has datatype {datatype!r}, which is none of the protocol's")
    elif datatype == "BF16" and array.dtype != np.uint16:
        raise tensors.invalid(f"tensor {name!r}: BF16 needs uint16 bit patterns, not {array.dtype}")
    return Tensor(name, datatype, array.shape, tensors.encode(array, datatype))


def to_result(response: InferResponse) -> InferResult:
    """Raises internal where the reply's contents are not what its own description says."""
    try:
        outputs = {tensor.name: tensors.decode(tensor.name, tensor.datatype, tensor.shape, tensor.data) for tensor in response.outputs}
    except ServingError as error:
        raise ServingError(Code.INTERNAL, f"the model host's answer cannot be read: {error.message}", request_id=response.id) from None
    datatypes = {tensor.name: tensor.datatype for tensor in response.outputs}
    return InferResult(response.model_name, response.model_version, response.id, outputs, datatypes, response.parameters)
