"""The open protocol's inference, from a body's bytes to an answer's: what every way to reach it shares. Knows no web framework."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gateway.models_rpc import Models
from gateway.operations import compression, deployment_calls, inference, v2_messages
from gateway.operations.deployment_errors import V2
from gateway.operations.deployments import Target
from gateway.operations.inference import Call
from gateway.operations.tensor_extensions import Extended, Regions, classified
from gateway.operations.v2_messages import HEADER_LENGTH, InferBody
from idl.messages import InferRequest, InferResponse, Tensor


class Heads(NamedTuple):
    """The request's headers that matter: `length` is Inference-Header-Content-Length, None without it; `accept_encoding` "" without."""

    length: str | None
    accept_encoding: str


class Answer(NamedTuple):
    """An answer with status 200: its body and its headers."""

    body: bytes
    headers: tuple[tuple[str, str], ...]


def infer(models: Models, call: Call, model: str, version: str, read_body: Callable[[], bytes], heads: Heads) -> Answer:
    """One inference, once `call` may use the model. `read_body` gives the whole body. Raises ServingError."""
    target = inference.require_callable(models, call, model, version)
    if target is None or call.deployed is None:
        return _answered(models, call, model, version, read_body, heads, target)
    with call.deployed.errors.noting(target.id, call.request_id, V2):
        return _answered(models, call, model, version, read_body, heads, target)


def _answered(
    models: Models, call: Call, model: str, version: str, read_body: Callable[[], bytes], heads: Heads, target: Target | None
) -> Answer:
    body = read_body()
    asked = v2_messages.decode_raw(body, models.metadata(model, version)) if is_raw(heads) else decode(body, heads)
    if asked.extended is not None:
        return _infer_extended(models, call, model, version, asked, asked.extended, heads, target)
    said = _infer(models, call, target, inference.request(call, model, version, asked))
    return answer(said.model_name, said.model_version, said.outputs, said.parameters, asked, heads.accept_encoding)


def _infer(models: Models, call: Call, target: Target | None, request: InferRequest) -> InferResponse:
    return models.infer(request, call.connection) if target is None else deployment_calls.infer(models, call, target, request)


def _infer_extended(
    models: Models,
    call: Call,
    model: str,
    version: str,
    asked: InferBody,
    extended: Extended,
    heads: Heads,
    target: Target | None,
) -> Answer:
    if extended.sources or extended.places:
        inference.require_operator(call, "shared memory")
    regions = Regions(models, extended)
    asked = asked._replace(inputs=regions.inputs(asked.inputs, models.max_message_bytes))
    said = _infer(models, call, target, inference.request(call, model, version, asked))
    outputs = said.outputs
    if extended.classes:
        outputs = tuple(classified(outputs, extended.classes, models.declaration(model, said.model_version).labels))
    regions.put(outputs)
    return answer(said.model_name, said.model_version, outputs, said.parameters, asked, heads.accept_encoding)


def is_raw(heads: Heads) -> bool:
    """Whether the body is nothing but the contents of the model's only input: the header says that its JSON has no bytes."""
    return heads.length is not None and heads.length.isdigit() and not heads.length.strip("0")


def decode(body: bytes, heads: Heads) -> InferBody:
    """Any other body. Raises invalid_input, unsupported, too_large."""
    return v2_messages.decode(body, v2_messages.header_length(heads.length, len(body)))


def answer(
    model: str, version: str, outputs: Sequence[Tensor], parameters: Mapping[str, Any], asked: InferBody, accept_encoding: str
) -> Answer:
    """`accept_encoding`: the header, "" without it. Raises invalid_input for an output that only binary data can carry."""
    parts, json_size = v2_messages.encode(model, version, outputs, parameters, asked)
    body = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
    if json_size is None and len(body) < compression.MIN_SIZE:
        return Answer(body, _JSON)
    headers = list(_JSON) if json_size is None else [*_BINARY, (HEADER_LENGTH, str(json_size))]
    coding = compression.choose(accept_encoding) if len(body) >= compression.MIN_SIZE else ""
    if coding:
        body = compression.compress(body, coding)
        headers.append(("Content-Encoding", coding))
    return Answer(body, tuple(headers))


_VARY = ("Vary", "Accept-Encoding")
_JSON = (("Content-Type", v2_messages.JSON_TYPE), _VARY)
_BINARY = (("Content-Type", v2_messages.BINARY_TYPE), _VARY)
