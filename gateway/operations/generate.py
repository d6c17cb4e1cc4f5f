"""Texts in, texts out: the generate extension. One JSON object becomes a request's tensors, and each answer one JSON object.

Source of the rules: Triton's "Generate Extension". A field that is the name of an input is that tensor; leading axes that a value lacks are 1,
so that `{"text_input": "Hello"}` fits an input of shape [1] or [-1, 1]. Any other field with a text, a number or a truth value is a parameter.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

from gateway.models_rpc import Answers, Models
from gateway.operations import inference, tensor_json
from gateway.operations.deployment_errors import V2, Noting
from gateway.operations.deployments import Target
from gateway.operations.inference import Call
from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse, ModelMetadata, Tensor, TensorSpec
from idl.tensors import invalid

_log = logging.getLogger(__name__)
EVENT_STREAM = "text/event-stream; charset=utf-8"
LAST_CHUNK = b"0\r\n\r\n"
_TOGETHER = 32
"""Events that are sent in one piece."""
_TIMES = frozenset({"queue_us", "compute_us"})
_spell = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def one(models: Models, call: Call, model: str, version: str, body: bytes) -> bytes:
    """The answer as JSON. Raises ServingError; unsupported where the model gives several."""
    target = _callable(models, call, model, version)
    with _noting(call, target):
        return _written(models.infer(from_body(models.metadata(model, version), call, model, version, body), call.connection))


class Events:
    """Every answer as a server-sent event, each when the reader has taken the one before. To be closed; then no more is computed."""

    def __init__(self, models: Models, call: Call, model: str, version: str, body: bytes) -> None:
        """Returns when the first answer is there. Raises ServingError: what goes wrong later is an event of its own."""
        self._call, self._target = call, _callable(models, call, model, version)
        with _noting(call, self._target):
            asked = from_body(models.metadata(model, version), call, model, version, body)
            self._answers: Answers = models.stream(asked, call.connection)
            try:
                self._first = self._answers.next()
            except BaseException:
                self._answers.close()
                raise

    def __iter__(self) -> Iterator[bytes]:
        """Events, several at a time where their answers are there."""
        answer = self._first
        try:
            while answer is not None:
                events, failure = [event(answer)], None
                try:
                    while len(events) < _TOGETHER and (answer := self._answers.next(0.0)) is not None:
                        events.append(event(answer))
                except TimeoutError:
                    pass  # there are no more yet
                except Exception as error:  # noqa: BLE001 - those before it are still to be told
                    failure = as_told(error)
                yield b"".join(events)
                if failure is not None:
                    raise failure
                if answer is not None:
                    answer = self._answers.next()
        except Exception as error:  # noqa: BLE001 - the reader must see that it is not the end
            if (told := as_told(error)).code is not Code.CANCELLED:  # else nobody reads it
                if self._target is not None and self._call.deployed is not None:
                    self._call.deployed.errors.note(self._target.id, self._call.request_id, V2, told)
                yield failure_event(told)
        finally:
            self.close()

    def close(self) -> None:
        """Idempotent."""
        self._answers.close()


def _callable(models: Models, call: Call, model: str, version: str) -> Target | None:
    """The deployment that is called; None for a model of the operators'. Raises what `require_callable` does, and unsupported for one with a script."""
    target = inference.require_callable(models, call, model, version)
    if target is not None and target.script_name:
        raise ServingError(Code.UNSUPPORTED, f"deployment {model!r} has a script, which stands around predictions: generate goes past it")
    return target


def _noting(call: Call, target: Target | None) -> Noting | nullcontext[None]:
    """What fails within it is among the last errors of the deployment."""
    if target is None or call.deployed is None:
        return nullcontext()
    return call.deployed.errors.noting(target.id, call.request_id, V2)


def from_body(metadata: ModelMetadata, call: Call, model: str, version: str, body: bytes) -> InferRequest:
    """For whoever knows already that the caller may call the model. Raises invalid_input, too_large."""
    given = tensor_json.parse(body)
    if not isinstance(given, dict):
        raise _no_object()
    return asked(metadata, call, model, version, given)


def _no_object() -> ServingError:
    return invalid("the body is not a JSON object")


def asked(metadata: ModelMetadata, call: Call, model: str, version: str, given: dict[str, Any]) -> InferRequest:
    """The request that a JSON object means; `given` is used up."""
    parameters = _parameters(given.pop("parameters", {}))
    tensors = _tensors(metadata, given)
    request_id = given.pop("id", call.request_id)
    if not isinstance(request_id, str):
        raise invalid("id is not a text")
    tensor_json.encode_text("id", request_id)
    parameters |= _parameters(given)
    return InferRequest(
        model, tensors, version, request_id or call.request_id, parameters=parameters, deadline=call.deadline, traceparent=call.traceparent
    )


def _tensors(metadata: ModelMetadata, given: dict[str, Any]) -> tuple[Tensor, ...]:
    """Takes the inputs out of `given`."""
    missing = [spec.name for spec in metadata.inputs if spec.name not in given]
    if missing:
        names = ", ".join(repr(spec.name) for spec in metadata.inputs[:20])
        raise invalid(f"input {missing[0]!r} is missing; model {metadata.name!r} takes {names}")
    return tuple(_tensor(spec, given.pop(spec.name)) for spec in metadata.inputs)


def _tensor(spec: TensorSpec, value: Any) -> Tensor:
    flat, shape = tensor_json.flatten(spec.name, value)
    shape = (1,) * (len(spec.shape) - len(shape)) + shape
    fits = len(shape) == len(spec.shape) and all(want in (-1, size) for want, size in zip(spec.shape, shape, strict=True))
    if not fits:
        raise invalid(f"input {spec.name!r} has shape {list(shape)}, the model takes {list(spec.shape)} (-1: any size)")
    return tensor_json.to_tensor(spec.name, spec.datatype, flat, shape)


def _parameters(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise invalid("parameters is not an object")
    for name, value in given.items():
        if not isinstance(value, (str, int, float, bool)):
            raise invalid(f"{name[:80]!r} is neither an input of the model nor a text, a number, or true or false")
        tensor_json.encode_text("the name of a parameter", name)
        if isinstance(value, str):
            tensor_json.encode_text(f"the parameter {name[:80]!r}", value)
    return dict(given)


def as_told(error: Exception) -> ServingError:
    """What a reader is told of it; what nobody expected is in the log."""
    if isinstance(error, ServingError):
        return error
    _log.error("stream_failed", exc_info=error)
    return ServingError(Code.INTERNAL, "the stream broke")


def chunk(data: bytes) -> bytes:
    """A piece of a body without a length: who is cut off before LAST_CHUNK sees that it was (RFC 9112, section 7.1). `data` is not empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(answer: InferResponse) -> bytes:
    return b"data: " + _written(answer) + b"\n\n"


def failure_event(error: ServingError) -> bytes:
    """The last one of a stream that does not come to its end."""
    return b"data: " + _spell({"error": error.message, "code": error.code.value}).encode() + b"\n\n"


def _written(answer: InferResponse) -> bytes:
    said: dict[str, Any] = {"model_name": answer.model_name, "model_version": answer.model_version}
    if answer.id:
        said["id"] = answer.id
    if parameters := {name: value for name, value in answer.parameters.items() if name not in _TIMES}:
        said["parameters"] = parameters
    for tensor in answer.outputs:
        said[tensor.name] = _plain(tensor)
    return _spell(said).encode()


def _plain(tensor: Tensor) -> Any:
    """One element alone, more as nested lists."""
    value = tensor_json.to_nested(tensor)
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value
