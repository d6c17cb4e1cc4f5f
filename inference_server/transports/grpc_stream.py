"""ModelStreamInfer: requests in, answers out, in the order of the requests.

A request that fails is answered with its error, and the stream goes on; a client that sends the metadata `triton_grpc_error: true` gets
the call's own status instead, and the stream ends. A request with the parameter `triton_enable_empty_final_response` is told which answer
is the last one (`triton_final_response`), by one without outputs where that is known only afterwards.
"""

import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import grpc

from idl.codes import Code, ServingError
from idl.generated import inference_pb2 as pb
from idl.messages import InferRequest, InferResponse
from inference_server.transports import grpc_codec as codec
from inference_server.transports import grpc_status
from inference_server.transports.grpc_calls import NO_DEADLINE_S, Receiving, serialized
from inference_server.transports.guard import as_serving_error
from inference_server.transports.tensor_extensions import TensorExtensions
from inference_server.transports.tokens import Token
from inference_server.types import Inference

STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
_TELL_LAST, _LAST = "triton_enable_empty_final_response", "triton_final_response"
_AS_STATUS = "triton_grpc_error"


class StreamInfer:
    """Satisfies `grpc_calls.Stream`. `between`: the waits for the next request of a stream. Sizes are bytes."""

    def __init__(self, inference: Inference, tensors: TensorExtensions, between: Receiving, max_message_bytes: int, token: Token) -> None:
        self._inference = inference
        self._tensors = tensors
        self._between = between
        self._max_message_bytes = max_message_bytes
        self._token = token

    def __call__(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        metadata = dict(context.invocation_metadata())
        left = context.time_remaining()
        deadline = time.monotonic() + left if left < NO_DEADLINE_S else None
        ours, theirs = socket.socketpair()
        with ours:
            if not context.add_callback(theirs.close):  # it is over already
                theirs.close()
            while (data := self._between.next(messages, context)) is not None:
                yield from self._one(data, metadata, deadline, ours.fileno(), context)

    def _one(
        self, data: bytes, metadata: Mapping[str, Any], deadline: float | None, watch: int, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        message = pb.ModelInferRequest()
        try:
            message = codec.parse(pb.ModelInferRequest, data)
            self._token.check(grpc_status.token_of(metadata), "ModelStreamInfer", message.model_name)
            asked, finish = self._tensors.read(message, "", deadline, str(metadata.get("traceparent", "")))
            tell_last = asked.parameters.get(_TELL_LAST) is True
            asked = replace(asked, parameters={key: value for key, value in asked.parameters.items() if key != _TELL_LAST})
            for answer in self._answers(asked, tell_last, watch):
                yield self._serialized(finish(answer, message.id))
        except grpc.RpcError:
            raise
        except Exception as error:  # noqa: BLE001 - one request must not end the stream
            failed = as_serving_error(error, "ModelStreamInfer", message.id)
            if not context.is_active():  # nobody reads it
                return
            if str(metadata.get(_AS_STATUS, "")).lower() == "true" or failed.code is Code.CANCELLED:
                raise failed from None
            yield _failure(failed, message)

    def _answers(self, asked: InferRequest, tell_last: bool, watch: int) -> Iterator[InferResponse]:
        stream = self._inference.model_stream(asked, watch)
        version = asked.model_version
        try:
            while (answer := stream.next()) is not None:
                version = answer.model_version
                yield answer
            if tell_last:
                yield InferResponse(asked.model_name, version, asked.id, (), {_LAST: True})
        finally:
            stream.close()

    def _serialized(self, answer: Any) -> bytes:
        return serialized(pb.ModelStreamInferResponse(infer_response=answer), self._max_message_bytes)


def _failure(error: ServingError, asked: Any) -> bytes:
    said = pb.ModelInferResponse(model_name=asked.model_name, model_version=asked.model_version, id=asked.id)
    said.parameters["outboard_code"].string_param = error.code.value
    if error.retry_after_ms:
        said.parameters["retry_after_ms"].int64_param = error.retry_after_ms
    data: bytes = pb.ModelStreamInferResponse(error_message=error.message or error.code.value, infer_response=said).SerializeToString()
    return data
