"""The open protocol's inference, from a body's bytes to an answer's: what every way to reach it shares. Knows no web framework."""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.models_rpc import Models
from gateway.operations import compression, inference, v2_messages
from gateway.operations.inference import Call
from gateway.operations.v2_messages import HEADER_LENGTH, InferBody
from idl.messages import InferRequest, InferResponse


@dataclass(frozen=True, slots=True)
class Asked:
    """`request` is what the model host gets, `body` what the caller wants of the answer."""

    request: InferRequest
    body: InferBody


@dataclass(frozen=True, slots=True)
class Heads:
    """The request's headers that matter: `length` is Inference-Header-Content-Length, None without it; `accept_encoding` "" without."""

    length: str | None
    accept_encoding: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with status 200: its body and its headers."""

    body: bytes
    headers: tuple[tuple[str, str], ...]


def infer(models: Models, call: Call, model: str, version: str, read_body: Callable[[], bytes], heads: Heads) -> Answer:
    """One inference, once `call` may use the model. `read_body` gives the whole body. Raises ServingError."""
    inference.require_callable(models, call, model, version)
    asked = read(models, call, model, version, read_body(), heads.length)
    return answer(models.infer(asked.request, call.connection), asked.body, heads.accept_encoding)


def read(models: Models, call: Call, model: str, version: str, body: bytes, header_length: str | None) -> Asked:
    """`require_callable` comes first. Raises invalid_input, unsupported, too_large."""
    json_size = v2_messages.header_length(header_length, len(body))
    is_raw = json_size == 0 and header_length is not None
    asked = v2_messages.decode_raw(body, models.metadata(model, version)) if is_raw else v2_messages.decode(body, json_size)
    return Asked(inference.request(call, model, version, asked), asked)


def answer(response: InferResponse, asked: InferBody, accept_encoding: str) -> Answer:
    """`accept_encoding`: the header, "" without it. Raises invalid_input for an output that only binary data can carry."""
    parts, json_size = v2_messages.encode(response, asked)
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
