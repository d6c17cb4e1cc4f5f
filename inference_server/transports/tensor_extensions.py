"""ModelInfer requests whose tensors lie in shared memory, or whose outputs are wanted as classes: what their tensors' parameters say.

Sources: Triton's shared memory and classification extensions, "Inference Request". Everything else about a request is `grpc_codec`'s.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from idl.classification import classify, count_of
from idl.codes import Code, ServingError
from idl.generated import inference_pb2 as pb
from idl.messages import InferRequest, InferResponse, Tensor
from idl.shared_regions import CLASSIFICATION, OFFSET, REGION, SIZE, Place, Region, place
from inference_server.errors import invalid_input
from inference_server.shared_memory import SharedMemory
from inference_server.transports import grpc_codec as codec
from inference_server.types import Inference

Finish = Callable[[InferResponse, str], Any]
"""(answer, the request's id as it came) -> `ModelInferResponse`."""
_DECLARATION = "outboard"
"""The model configuration's parameter that holds what the owner declares."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """By the output's name: where it is to be put, and how many classes of it."""

    places: Mapping[str, tuple[Region, Place]]
    classes: Mapping[str, int]


class TensorExtensions:
    """Thread-safe. `max_bytes` bounds what one request reads from shared memory, as it bounds a message."""

    def __init__(self, inference: Inference, memory: SharedMemory, max_bytes: int) -> None:
        self._inference = inference
        self._memory = memory
        self._max_bytes = max_bytes

    def read(self, message: Any, request_id: str, deadline: float | None, traceparent: str) -> tuple[InferRequest, Finish]:
        """`ModelInferRequest` -> (value, what makes its answer). Regions stay open for both, also where they are unregistered meanwhile.

        Raises ServingError: invalid_input, not_found, too_large, unsupported.
        """
        if not codec.is_extended(message):
            return codec.infer_request(message, request_id, deadline, traceparent), codec.infer_response
        codec.check_counts(message)
        wanted = self._wanted(message.outputs)
        placed = {index: found for index, tensor in enumerate(message.inputs) if (found := self._place(tensor)) is not None}
        if sum(at.size for _, at in placed.values()) > self._max_bytes:
            raise ServingError(Code.TOO_LARGE, f"the inputs in shared memory have over {self._max_bytes} bytes")
        asked = codec.infer_request(_without(message, placed), request_id, deadline, traceparent)
        asked = replace(asked, inputs=self._inputs(message.inputs, placed, asked.inputs))
        return asked, partial(self._finish, wanted)

    def _place(self, tensor: Any) -> tuple[Region, Place] | None:
        found = place(tensor.name, codec.parameters(tensor.parameters)) if tensor.parameters else None
        if found is None:
            return None
        region = self._memory.region(found.region)
        region.check(tensor.name, found)
        return region, found

    def _wanted(self, outputs: Sequence[Any]) -> _Wanted:
        counts = {
            output.name: count_of(output.name, codec.parameters(output.parameters)[CLASSIFICATION])
            for output in outputs
            if CLASSIFICATION in output.parameters
        }
        places = {output.name: found for output in outputs if (found := self._place(output)) is not None}
        return _Wanted(places, {name: count for name, count in counts.items() if count})

    def _inputs(self, given: Sequence[Any], placed: Mapping[int, tuple[Region, Place]], others: Sequence[Tensor]) -> tuple[Tensor, ...]:
        rest = iter(others)
        return tuple(_from_memory(tensor, *placed[index]) if index in placed else next(rest) for index, tensor in enumerate(given))

    def _finish(self, wanted: _Wanted, answer: InferResponse, request_id: str) -> Any:
        outputs = list(answer.outputs)
        if wanted.classes:
            labels = self._labels(answer.model_name, answer.model_version)
            for index, tensor in enumerate(outputs):
                if count := wanted.classes.get(tensor.name):
                    outputs[index] = classify(tensor, count, labels.get(tensor.name, ()))
        for tensor in outputs:
            if found := wanted.places.get(tensor.name):
                found[0].write(tensor.name, found[1], tensor.data)
        shown = [replace(tensor, data=b"") if tensor.name in wanted.places else tensor for tensor in outputs]
        message = codec.infer_response(replace(answer, outputs=tuple(shown)), request_id)
        for made, tensor in zip(message.outputs, outputs, strict=True):
            if found := wanted.places.get(tensor.name):
                _describe(made, found[1], len(tensor.data))
        return message

    def _labels(self, model: str, version: str) -> Mapping[str, Sequence[str]]:
        """Of the version that answered, which may be gone by now: then there are none."""
        try:
            config = self._inference.model_config(model, version)
        except ServingError:
            return {}
        said = config.get("parameters", {}).get(_DECLARATION, {}).get("string_value")
        labels: Mapping[str, Sequence[str]] = json.loads(said).get("labels", {}) if said else {}
        return labels


def _without(message: Any, placed: Mapping[int, Any]) -> Any:
    """The same request without the inputs that lie in shared memory: contents go with the others alone."""
    rest = pb.ModelInferRequest(model_name=message.model_name, model_version=message.model_version, id=message.id)
    for name, value in message.parameters.items():
        rest.parameters[name].CopyFrom(value)
    rest.inputs.extend(tensor for index, tensor in enumerate(message.inputs) if index not in placed)
    rest.outputs.extend(pb.ModelInferRequest.InferRequestedOutputTensor(name=output.name) for output in message.outputs)
    rest.raw_input_contents.extend(message.raw_input_contents)
    return rest


def _from_memory(tensor: Any, region: Region, at: Place) -> Tensor:
    if tensor.HasField("contents") and tensor.contents.ListFields():
        raise invalid_input(f"tensor {tensor.name!r} has contents, and lies in shared memory: only one of them may be used")
    return Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), region.read(tensor.name, at))


def _describe(output: Any, at: Place, size: int) -> None:
    output.parameters[REGION].string_param = at.region
    output.parameters[SIZE].int64_param = size
    if at.offset:
        output.parameters[OFFSET].int64_param = at.offset
