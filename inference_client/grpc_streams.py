"""Several answers to one request over gRPC: one ModelStreamInfer call for each request."""

from collections.abc import Callable
from typing import Any

import grpc

from idl.codes import Code, ServingError
from idl.generated import inference_pb2 as pb
from idl.messages import InferResponse
from inference_client.channel import Lost
from inference_client.grpc_codec import CODECS

PATH = "/inference.GRPCInferenceService/ModelStreamInfer"


class GrpcAnswers:
    """Satisfies `streams.RawAnswers`. `failed` makes a ServingError of gRPC's; `ended` is called once."""

    def __init__(self, call: Any, failed: Callable[[Any], ServingError], ended: Callable[[], None]) -> None:
        self._call = call
        self._failed = failed
        self._ended = ended
        self._over = False

    def next(self, until: float | None = None) -> InferResponse | None:
        if self._over:
            return None
        if until is not None:  # grpcio does not say whether there is one
            raise TimeoutError
        try:
            reply = pb.ModelStreamInferResponse.FromString(next(self._call))
            if reply.error_message:
                raise _declared(reply)
            answer: InferResponse = CODECS["ModelInfer"].decode(reply.infer_response)
        except StopIteration:
            self.close()
            return None
        except grpc.RpcError as error:
            self.close()
            raise self._failed(error) from None
        except ServingError:
            self.close()
            raise
        except (ValueError, TypeError) as error:
            self.close()
            raise Lost(Code.INTERNAL, f"the model host's answer cannot be read: {error}") from None
        return answer

    def close(self) -> None:
        if not self._over:
            self._over = True
            self._call.cancel()
            self._ended()


def _declared(reply: Any) -> ServingError:
    said = reply.infer_response
    try:
        code = Code(said.parameters["outboard_code"].string_param)
    except ValueError:  # a server that is not Outboard
        code = Code.INTERNAL
    wait = said.parameters["retry_after_ms"].int64_param if "retry_after_ms" in said.parameters else 0
    return ServingError(code, reply.error_message, retry_after_ms=wait, request_id=said.id)
