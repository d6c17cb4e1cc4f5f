"""`outboard.Control`: its messages are decoded, answered and encoded here, for every transport that carries them."""

from collections.abc import Iterator
from typing import Any

from idl.generated import control_pb2 as control
from inference_server.transports import control_codec as codec
from inference_server.transports.grpc_calls import Call
from inference_server.types import Operations


class ControlVerbs:
    """The methods of the service, in the order of the IDL."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def put_file(self, parts: Iterator[Any], call: Call) -> Any:
        header = codec.file_header(next(parts, control.PutFileRequest()))
        return codec.put_file(self._operations.put_file(header, map(codec.file_chunk, parts)))

    def capacity(self, request: Any, call: Call) -> Any:
        return codec.capacity(self._operations.capacity())

    def drain(self, request: Any, call: Call) -> Any:
        return codec.drain(*self._operations.drain(request.resume, request.timeout_ms / 1000))

    def set_instances(self, request: Any, call: Call) -> Any:
        self._operations.set_instances(request.model_name, request.version, request.count)
        return control.SetInstancesResponse()

    def set_labels(self, request: Any, call: Call) -> Any:
        self._operations.set_labels(request.model_name, dict(request.labels), request.canary_percent)
        return control.SetLabelsResponse()

    def remove_model(self, request: Any, call: Call) -> Any:
        return control.RemoveModelResponse(removed=self._operations.remove_model(request.model_name, request.version))

    def validate(self, parts: Iterator[Any], call: Call) -> Any:
        return codec.validation(self._operations.validate(map(codec.trial_part, parts), call.deadline, call.active))

    def validate_script(self, request: Any, call: Call) -> Any:
        found = self._operations.validate_script(request.source)
        return control.ValidateScriptResponse(functions=found.functions, load_ms=found.load_ms)
