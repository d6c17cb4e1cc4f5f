"""Every way to ask for an inference, behind one Protocol: the same value goes in, the answer's value or a `ServingError` comes out.

Each wire is spoken by somebody else's code where there is such a thing: the official client's messages, thriftpy2's encoder, plain JSON.
"""

import http.client
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import quote

import grpc
import numpy as np
from thriftpy2.protocol import TCyBinaryProtocolFactory
from thriftpy2.rpc import make_client
from thriftpy2.transport import TCyFramedTransportFactory
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from gateway.errors import STATUS as HTTP_STATUS
from idl import tensors
from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse, Tensor
from idl.thrift_schema import Inference, schema
from inference_client import Client
from inference_server.engine import Engine
from inference_server.transports.grpc_calls import STATUS as GRPC_STATUS
from inference_server.transports.grpc_codec import TYPED_FIELDS

LENGTH = "Inference-Header-Content-Length"


class Face(Protocol):
    """Thread-safe. Asserts what its own wire promises besides: status codes, metadata, the id that is repeated."""

    def infer(self, request: InferRequest) -> InferResponse: ...

    def close(self) -> None: ...


class EngineFace:
    """The engine itself, in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def infer(self, request: InferRequest) -> InferResponse:
        return self._engine.model_infer(request)

    def close(self) -> None:
        return None


class ClientFace:
    """Our own client."""

    def __init__(self, address: str) -> None:
        self._client = Client(address)

    def infer(self, request: InferRequest) -> InferResponse:
        return self._client.infer_raw(request)

    def close(self) -> None:
        self._client.close()


class GrpcFace:
    """grpcio with the official client's messages. `typed`: contents in the typed fields."""

    def __init__(self, address: str, *, typed: bool = False) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)])
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._typed = typed

    def infer(self, request: InferRequest) -> InferResponse:
        message = pb.ModelInferRequest(model_name=request.model_name, model_version=request.model_version, id=request.id)
        for tensor in request.inputs:
            given = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            if self._typed:
                getattr(given.contents, TYPED_FIELDS.get(tensor.datatype, "fp32_contents")).extend(elements(tensor))
            else:
                message.raw_input_contents.append(tensor.data)
        for name in request.outputs:
            message.outputs.add(name=name)
        try:
            answer = self._stub.ModelInfer(message, timeout=60)
        except grpc.RpcError as error:
            raise self._error(error) from None
        raw = zip(answer.outputs, answer.raw_output_contents, strict=True)
        outputs = tuple(Tensor(output.name, output.datatype, tuple(output.shape), data) for output, data in raw)
        return InferResponse(answer.model_name, answer.model_version, answer.id, outputs)

    @staticmethod
    def _error(error: Any) -> ServingError:
        codes = [value for key, value in error.trailing_metadata() if key == "outboard-code"]
        if not codes:  # gRPC's core refuses a message over the limit by itself, without our metadata
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
            return ServingError(Code.TOO_LARGE, error.details())
        assert error.code() is GRPC_STATUS[Code(codes[0])]
        return ServingError(Code(codes[0]), error.details())

    def close(self) -> None:
        self._channel.close()


class ThriftFace:
    """thriftpy2's client, one connection per thread, used on after every refusal."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._local = threading.local()
        self._clients: list[Any] = []

    def _client(self) -> Any:
        if not hasattr(self._local, "client"):
            factories = {"proto_factory": TCyBinaryProtocolFactory(), "trans_factory": TCyFramedTransportFactory()}
            self._local.client = make_client(Inference, *self._address, timeout=60_000, **factories)
            self._clients.append(self._local.client)
        return self._local.client

    def infer(self, request: InferRequest) -> InferResponse:
        inputs = [schema.Tensor(name=t.name, datatype=t.datatype, shape=list(t.shape), data=bytes(t.data)) for t in request.inputs]
        fields = {name: getattr(request, name) for name in ("model_name", "model_version", "id")}
        try:
            answer = self._client().ModelInfer(schema.InferRequest(inputs=inputs, outputs=list(request.outputs), **fields))
        except schema.ServingError as error:
            assert error.request_id in (request.id, "") and (error.request_id or error.code == "too_large"), error
            raise ServingError(Code(error.code), error.message) from None
        outputs = tuple(Tensor(output.name, output.datatype, tuple(output.shape), output.data) for output in answer.outputs)
        return InferResponse(answer.model_name, answer.model_version, answer.id, outputs)

    def close(self) -> None:
        for client in self._clients:
            client.close()


class HttpFace:
    """`/v2` by plain HTTP, one connection a request; `binary`: tensors as binary data, else as JSON."""

    def __init__(self, address: str, *, binary: bool) -> None:
        self._address = address
        self._binary = binary

    def infer(self, request: InferRequest) -> InferResponse:
        head: dict[str, Any] = {"id": request.id, "inputs": [self._input(tensor) for tensor in request.inputs]}
        if request.outputs:
            head["outputs"] = [{"name": name} for name in request.outputs]
        if self._binary:
            head["parameters"] = {"binary_data_output": True}
        text = json.dumps(head).encode()
        body = text + b"".join(bytes(tensor.data) for tensor in request.inputs) if self._binary else text
        version = f"/versions/{quote(request.model_version, safe='')}" if request.model_version else ""
        path = f"/v2/models/{quote(request.model_name, safe='')}{version}/infer"
        status, headers, data = self._post(path, body, {LENGTH: str(len(text))} if self._binary else {})
        if status != 200:
            code = Code(headers["Outboard-Code"])
            assert status == HTTP_STATUS[code] and list(json.loads(data)) == ["error"]
            raise ServingError(code, json.loads(data)["error"])
        return self._response(headers, data)

    def _input(self, tensor: Tensor) -> dict[str, Any]:
        described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if self._binary:
            return {**described, "parameters": {"binary_data_size": len(tensor.data)}}
        return {**described, "data": [item.decode() if isinstance(item, bytes) else item for item in elements(tensor)]}

    def _post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused before it was read whole: the answer is there all the same
                connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def _response(self, headers: Any, data: bytes) -> InferResponse:
        size = int(headers.get(LENGTH, len(data)))
        head, rest = json.loads(data[:size]), data[size:]
        outputs = []
        for output in head["outputs"]:
            if "data" in output:
                contents = raw(output["datatype"], output["data"])
            else:
                length = output["parameters"]["binary_data_size"]
                contents, rest = rest[:length], rest[length:]
            outputs.append(Tensor(output["name"], output["datatype"], tuple(output["shape"]), contents))
        assert not rest
        return InferResponse(head["model_name"], head["model_version"], head.get("id", ""), tuple(outputs))

    def close(self) -> None:
        return None


def elements(tensor: Tensor) -> list[Any]:
    """Raw contents -> elements, whatever the shape says."""
    if tensor.datatype != "BYTES":
        dtype = tensors.DTYPES.get(tensor.datatype, np.dtype("<f4"))
        return np.frombuffer(tensor.data, dtype).tolist()
    found, position, data = [], 0, bytes(tensor.data)
    while position < len(data):
        stop = position + 4 + int.from_bytes(data[position : position + 4], "little")
        found.append(data[position + 4 : stop])
        position = stop
    return found


def raw(datatype: str, values: list[Any]) -> bytes:
    """Elements -> raw contents."""
    array = np.empty(len(values), tensors.DTYPES[datatype])
    array[:] = values
    return tensors.encode(array, datatype)


FACES: dict[str, Callable[[Any], Face]] = {
    "engine": lambda served: EngineFace(served.engine),
    "gRPC": lambda served: GrpcFace(served.grpc),
    "gRPC, typed": lambda served: GrpcFace(served.grpc, typed=True),
    "gRPC, grpcio front": lambda served: GrpcFace(served.grpcio),
    "gRPC, typed, grpcio front": lambda served: GrpcFace(served.grpcio, typed=True),
    "Thrift": lambda served: ThriftFace(*served.thrift),
    "HTTP, binary": lambda served: HttpFace(served.http["hot"], binary=True),
    "HTTP, binary, Flask alone": lambda served: HttpFace(served.http["Flask"], binary=True),
    "HTTP, binary, event loop": lambda served: HttpFace(served.http["front"], binary=True),
    "HTTP, JSON": lambda served: HttpFace(served.http["hot"], binary=False),
    "HTTP, JSON, Flask alone": lambda served: HttpFace(served.http["Flask"], binary=False),
    "HTTP, JSON, event loop": lambda served: HttpFace(served.http["front"], binary=False),
    "client over gRPC": lambda served: ClientFace(f"grpc://{served.grpc}"),
    "client over Thrift": lambda served: ClientFace("thrift://{}:{}".format(*served.thrift)),
    "client over the local lane": lambda served: ClientFace(f"thrift+unix://{served.host['socket']}"),
}
"""Name -> what makes the face, from the addresses of what is served."""
ELEMENTS = ("gRPC, typed", "HTTP, JSON")
"""How the names of faces begin that send elements and not raw contents: no lying length can be said over them, and no FP16 or BF16."""
