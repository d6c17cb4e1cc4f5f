"""Bodies of the Open Inference Protocol's HTTP form, with the binary tensor data extension.

A body is a JSON object; with binary tensors their raw contents follow it, in the order of the tensors that announce them, and the
header Inference-Header-Content-Length says where the JSON ends. Source: the protocol's inference section and Triton's "binary tensor
data" extension.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from gateway.operations import tensor_json
from gateway.operations.tensor_extensions import Extended, Reading, described
from idl import tensors
from idl.codes import ServingError
from idl.messages import ModelMetadata, Tensor
from idl.tensors import invalid

HEADER_LENGTH = "Inference-Header-Content-Length"
BINARY_TYPE = "application/octet-stream"
JSON_TYPE = "application/json"
_spell = json.JSONEncoder(separators=(",", ":")).encode  # made once: json.dumps makes one for each call
_NOT_IN_JSON = ("FP16", "BF16")
_WHOLE_NUMBERS = frozenset({int})
_NONE: Mapping[str, Any] = MappingProxyType({})


class InferBody(NamedTuple):
    """A request's body. `outputs`: name -> whether it is wanted as binary data, empty for every output; `binary`: the default.

    `parameters` are those that the model host should see. `timeout_us` is 0 without one. `extended`: tensors that are more than their contents;
    an input in shared memory has none here.
    """

    inputs: tuple[Tensor, ...]
    id: str = ""
    outputs: Mapping[str, bool] = _NONE
    binary: bool = False
    parameters: Mapping[str, Any] = _NONE
    timeout_us: int = 0
    extended: Extended | None = None


def header_length(value: str | None, size: int) -> int:
    """Where the JSON of a body of `size` bytes ends. Raises invalid_input."""
    if value is None:
        return size
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise invalid(f"{HEADER_LENGTH} is {value[:40]!r}, not a number of bytes")
    if int(value) > size:
        raise invalid(f"{HEADER_LENGTH} is {int(value)}, the body has {size} bytes")
    return int(value)


def decode(body: bytes, json_size: int) -> InferBody:
    """A body whose first `json_size` bytes are JSON. Raises invalid_input, unsupported, too_large."""
    view = memoryview(body)
    given = tensor_json.parse(body if json_size == len(body) else view[:json_size])
    if not isinstance(given, dict):
        raise invalid("the body is not a JSON object")
    said = Reading()
    inputs = _inputs(given.get("inputs"), view[json_size:], said)
    request_id = _text("id", given["id"]) if "id" in given else ""
    if "parameters" not in given:
        return InferBody(inputs, request_id, _outputs(given.get("outputs"), said, binary=False), extended=said.extended())
    parameters = _parameters("the request", given)
    return InferBody(
        inputs=inputs,
        id=request_id,
        outputs=_outputs(given.get("outputs"), said, binary=_flag(parameters, "binary_data_output")),
        extended=said.extended(),
        binary=_flag(parameters, "binary_data_output"),
        parameters={name: value for name, value in parameters.items() if name != "binary_data_output"},
        timeout_us=_timeout(parameters.get("timeout", 0)),
    )


def decode_raw(body: bytes, metadata: ModelMetadata) -> InferBody:
    """A body that is nothing but the contents of the model's only input (a header length of 0); outputs come as binary data.

    Raises invalid_input unless the model has one input, with at most one open dimension, that the bytes fill.
    """
    if len(metadata.inputs) != 1:
        raise invalid(f"model {metadata.name!r} has {len(metadata.inputs)} inputs; a raw body is for models with one")
    spec = metadata.inputs[0]
    if spec.datatype == "BYTES":
        if any(size not in (1, -1) for size in spec.shape):
            raise invalid(f"input {spec.name!r} has shape {list(spec.shape)}; a raw body is one element")
        element = len(body).to_bytes(4, "little") + body
        return InferBody((Tensor(spec.name, "BYTES", (1,) * len(spec.shape), element),), binary=True)
    return InferBody((Tensor(spec.name, spec.datatype, _filled(spec.name, spec.datatype, spec.shape, len(body)), body),), binary=True)


def _filled(name: str, datatype: str, shape: Sequence[int], size: int) -> tuple[int, ...]:
    if sum(length < 0 for length in shape) > 1:
        raise invalid(f"input {name!r} has shape {list(shape)}; a raw body is for inputs with at most one open dimension")
    item = tensors.DTYPES[datatype].itemsize
    for length in shape:
        item *= max(length, 1)
    filled = tuple(size // item if length < 0 else length for length in shape)
    tensors.check_size(name, datatype, filled, size)
    return filled


def _inputs(given: Any, binary: memoryview, said: Reading) -> tuple[Tensor, ...]:
    if not isinstance(given, list):
        raise invalid("the request has no list of inputs")
    found: dict[str, Tensor] = {}
    position = 0
    for item in given:
        name = _tensor_name("inputs", item)
        if name in found:
            raise invalid(f"input {name!r} is there twice")
        found[name], position = _input(name, item, binary, position, said)
    if position != len(binary):
        raise invalid(f"the body has {len(binary) - position} bytes after its last binary tensor")
    return tuple(found.values())


def _input(name: str, item: Mapping[str, Any], binary: memoryview, position: int, said: Reading) -> tuple[Tensor, int]:
    datatype, shape = item.get("datatype"), _shape(name, item.get("shape"))
    if not isinstance(datatype, str) or datatype not in tensors.DTYPES:
        raise invalid(f"input {name!r} has datatype {str(datatype)[:40]!r}, which is none of the protocol's")
    parameters = _parameters(f"input {name!r}", item) if "parameters" in item else _NONE
    size = parameters.get("binary_data_size")
    if parameters and said.input(name, parameters):
        if "data" in item or size is not None:
            raise invalid(f"input {name!r} has contents, and lies in shared memory: only one of them may be used")
        return Tensor(name, datatype, shape, b""), position
    if size is None:
        return _json_input(name, datatype, shape, item), position
    if "data" in item:
        raise invalid(f"input {name!r} has both data and binary_data_size")
    if type(size) is not int or not 0 <= size <= len(binary) - position:
        raise invalid(f"input {name!r} has binary_data_size {str(size)[:40]}, {len(binary) - position} bytes are left in the body")
    tensors.check_size(name, datatype, shape, size)
    return Tensor(name, datatype, shape, binary[position : position + size]), position + size


def _json_input(name: str, datatype: str, shape: tuple[int, ...], item: Mapping[str, Any]) -> Tensor:
    if "data" not in item:
        raise invalid(f"input {name!r} has neither data nor binary_data_size")
    if datatype in _NOT_IN_JSON:
        raise invalid(f"input {name!r} is {datatype}, which the protocol's JSON cannot carry; send it as binary data")
    flat, given_shape = tensor_json.flatten(name, item["data"])
    count = _element_count(name, shape)
    if given_shape not in (shape, (count,)) and not (count == 1 and given_shape == ()):
        raise invalid(f"input {name!r} has shape {list(shape)} and data of shape {list(given_shape)}")
    return tensor_json.to_tensor(name, datatype, flat, shape)


def _element_count(name: str, shape: tuple[int, ...]) -> int:
    try:
        return _known_count(shape)
    except ServingError:
        return tensors.element_count(name, shape)  # which names the tensor


@lru_cache(maxsize=1024)
def _known_count(shape: tuple[int, ...]) -> int:
    return tensors.element_count("", shape)


def _outputs(given: Any, said: Reading, *, binary: bool) -> Mapping[str, bool]:
    if given is None:
        return _NONE
    if not isinstance(given, list):
        raise invalid("outputs is not a list")
    found: dict[str, bool] = {}
    for item in given:
        name = _tensor_name("outputs", item)
        parameters = _parameters(f"output {name!r}", item)
        if name in found:
            raise invalid(f"output {name!r} is there twice")
        said.output(name, parameters)
        found[name] = _flag(parameters, "binary_data", default=binary)
    return found


def _tensor_name(where: str, item: Any) -> str:
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str):
        raise invalid(f"an element of {where} is not an object with a name")
    tensor_json.encode_text("a tensor's name", name)
    return name


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise invalid(f"{where} is not a text")
    tensor_json.encode_text(where, value)
    return value


def _shape(name: str, given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not _WHOLE_NUMBERS.issuperset(map(type, given)):
        raise invalid(f"input {name!r} has no shape that is a list of whole numbers")
    return tuple(given)


def _parameters(where: str, item: Mapping[str, Any]) -> Mapping[str, Any]:
    given = item.get("parameters", {})
    if not isinstance(given, dict):
        raise invalid(f"the parameters of {where} are not an object")
    for name, value in given.items():
        if not isinstance(value, (str, int, float)):
            raise invalid(f"parameter {name[:40]!r} of {where} is not a text, a number, or true or false")
        if type(value) is int and not -(2**63) <= value < 2**64:
            raise invalid(f"parameter {name[:40]!r} of {where} is a number beyond 64 bits")
        _text(f"a parameter of {where}", name)
        _text(f"a parameter of {where}", value if isinstance(value, str) else "")
    return given


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise invalid(f"parameter {name!r} is not true or false")
    return value


def _timeout(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise invalid("parameter 'timeout' is not a number of microseconds")
    return int(value)


def encode(
    model: str, version: str, outputs: Sequence[Tensor], parameters: Mapping[str, Any], request: InferBody
) -> tuple[list[bytes | memoryview], int | None]:
    """The body's parts and, where binary tensors follow the JSON, the JSON's length.

    Raises invalid_input for an output that only binary data can carry and that was asked for as JSON.
    """
    texts = [_opening(model, version)]
    if request.id:
        texts += (',"id":', _spell(request.id))
    if parameters:
        texts += (',"parameters":', _parameters_text(parameters))
    contents: list[bytes | memoryview] = []
    places = request.extended.places if request.extended is not None else _NONE
    separator = ',"outputs":['
    for tensor in outputs:
        texts += (separator, _description(tensor.name, tensor.datatype, tensor.shape))
        separator = ","
        if at := places.get(tensor.name):
            texts.append(f',"parameters":{_spell(described(at, len(tensor.data)))}}}')
        elif request.outputs.get(tensor.name, request.binary):
            texts.append(f',"parameters":{{"binary_data_size":{len(tensor.data)}}}}}')
            contents.append(tensor.data)
        else:
            texts += (',"data":', _json_data(tensor), "}")
    texts.append("]}" if outputs else ',"outputs":[]}')
    head = "".join(texts).encode()
    return [head, *contents], len(head) if contents else None


@lru_cache(maxsize=1024)
def _opening(model: str, version: str) -> str:
    """An answer's beginning, without the brace that ends it."""
    return _spell({"model_name": model, "model_version": version})[:-1]


@lru_cache(maxsize=1024)
def _description(name: str, datatype: str, shape: tuple[int, ...]) -> str:
    """An output's beginning, likewise."""
    return _spell({"name": name, "datatype": datatype, "shape": shape})[:-1]


def _parameters_text(parameters: Mapping[str, Any]) -> str:
    texts = [f"{_spelled(name)}:{value if type(value) is int else _spell(value)}" for name, value in parameters.items()]
    return f"{{{','.join(texts)}}}"


_spelled = lru_cache(maxsize=1024)(_spell)
"""For the names of parameters."""


def _json_data(tensor: Tensor) -> str:
    if tensor.datatype in _NOT_IN_JSON:
        raise invalid(f"output {tensor.name!r} is {tensor.datatype}, which the protocol's JSON cannot carry; ask for it as binary data")
    if tensor.datatype != "BYTES":
        return tensor_json.to_json(tensor)
    try:
        return _spell([item.decode() for item in tensor_json.to_array(tensor).ravel().tolist()])
    except UnicodeDecodeError:
        raise invalid(f"output {tensor.name!r} has an element that is not UTF-8 text; ask for it as binary data") from None
