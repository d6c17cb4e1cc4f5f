"""One request of each kind, as the bytes that go over the wire, and the check of its answer."""

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.workload import DATATYPES, Workload
from idl.generated import inference_pb2 as pb
from idl.thrift_binary import CALL, Reader, message
from idl.thrift_schema import schema

GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_BOUNDARY = "outboard-benchmark"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    path: str
    headers: dict[str, str]
    body: bytes


def v2_json(load: Workload) -> HttpRequest:
    tensors = [{**_described(name, array), "data": array.ravel().tolist()} for name, array in load.inputs.items()]
    return HttpRequest(f"/v2/models/{load.model}/infer", {"Content-Type": "application/json"}, json.dumps({"inputs": tensors}).encode())


def v2_binary(load: Workload) -> HttpRequest:
    tensors = [{**_described(name, array), "parameters": {"binary_data_size": array.nbytes}} for name, array in load.inputs.items()]
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return HttpRequest(f"/v2/models/{load.model}/infer", headers, head + b"".join(array.tobytes() for array in load.inputs.values()))


def _described(name: str, array: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": list(array.shape)}


def photograph(load: Workload, path: str = "") -> HttpRequest:
    """A multipart form with one file, as a browser or curl sends it."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    body = head.encode() + load.image + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return HttpRequest(path or f"/v1/models/{load.model}/predictions", {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, body)


def grpc_message(load: Workload) -> bytes:
    """The request as a gRPC frame: no compression, length, message."""
    tensors = [pb.ModelInferRequest.InferInputTensor(**_described(name, array)) for name, array in load.inputs.items()]
    contents = [array.tobytes() for array in load.inputs.values()]
    request = pb.ModelInferRequest(model_name=load.model, inputs=tensors, raw_input_contents=contents)
    body: bytes = request.SerializeToString()
    return b"\0" + len(body).to_bytes(4, "big") + body


def thrift_frame(load: Workload) -> bytes:
    tensors = [schema.Tensor(**_described(name, array), data=array.tobytes()) for name, array in load.inputs.items()]
    request = schema.InferRequest(model_name=load.model, model_version="", id="", inputs=tensors, outputs=[], parameters={})
    return b"".join(message("ModelInfer", CALL, 1, schema.Inference.ModelInfer_args(request=request)))


class RefusedError(RuntimeError):
    """The HTTP answer is not 200."""


def post(base: str, request: HttpRequest) -> tuple[dict[str, str], bytes]:
    """One request on a connection of its own. Raises RefusedError."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=30)
    try:
        connection.request("POST", request.path, request.body, request.headers)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise RefusedError(f"POST {request.path} was answered with {answer.status}: {body[:500]!r}")
    return dict(answer.getheaders()), body


def check_v2(base: str, load: Workload) -> None:
    """Both forms give what onnxruntime gives, the binary one to the last bit."""
    _, body = post(base, v2_json(load))
    data = np.array(json.loads(body)["outputs"][0]["data"], np.float32)
    _require(np.allclose(data, load.expected.ravel(), rtol=1e-6, atol=1e-7), "HTTP /v2 JSON", load)
    headers, body = post(base, v2_binary(load))
    length = next(int(value) for name, value in headers.items() if name.lower() == "inference-header-content-length")
    _require(body[length:] == load.expected.tobytes(), "HTTP /v2 binary", load)


def check_v2_json(base: str, load: Workload, headers: Mapping[str, str] | None = None) -> None:
    request = v2_json(load)
    _, body = post(base, HttpRequest(request.path, request.headers | dict(headers or {}), request.body))
    outputs = {output["name"]: output["data"] for output in json.loads(body)["outputs"]}
    _require(_is_close(np.array(outputs[load.output], load.expected.dtype), load), "HTTP /v2 JSON", load)


def check_photograph(base: str, load: Workload, path: str = "") -> None:
    _, body = post(base, photograph(load, path))
    answer: dict[str, Any] = json.loads(body)
    found = np.array(answer["outputs"][load.output], np.float32)
    _require(found.argmax() == load.expected.argmax() and np.allclose(found, load.expected, atol=1e-4), "HTTP /v1 photograph", load)


def check_grpc(address: str, load: Workload) -> int:
    """Returns the bytes of the answer as they travel: the message and its frame."""
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        message = channel.unary_unary(GRPC_METHOD)(grpc_message(load)[5:], timeout=30)
    answer = pb.ModelInferResponse.FromString(message)
    index = [tensor.name for tensor in answer.outputs].index(load.output)
    if answer.raw_output_contents:
        found = np.frombuffer(answer.raw_output_contents[index], load.expected.dtype)
    else:
        found = np.array(answer.outputs[index].contents.fp32_contents, np.float32)
    _require(found.size == load.expected.size and _is_close(found, load), "gRPC", load)
    return 5 + len(message)


def _is_close(found: NDArray[Any], load: Workload) -> bool:
    """To rounding, of quantised models to a step of theirs: a batch, or another build of onnxruntime's kernels, may add in another order."""
    return bool(np.allclose(found.ravel(), load.expected.ravel(), rtol=1e-3, atol=load.tolerance))


def check_thrift(address: str, load: Workload) -> None:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection, connection.makefile("rb") as stream:
        connection.sendall(thrift_frame(load))
        reply = stream.read(int.from_bytes(stream.read(4), "big"))
    reader = Reader(reply)
    reader.message_begin()
    result = reader.struct(schema.Inference.ModelInfer_result())
    _require(result.success is not None and bytes(result.success.outputs[0].data) == load.expected.tobytes(), "Thrift", load)


def failures(address: str, model: str) -> int:
    """How many requests the server itself says it failed."""
    request = pb.ModelStatisticsRequest(name=model).SerializeToString()
    with grpc.insecure_channel(address) as channel:
        answer = channel.unary_unary("/inference.GRPCInferenceService/ModelStatistics")(request, timeout=30)
    return sum(item.inference_stats.fail.count for item in pb.ModelStatisticsResponse.FromString(answer).model_stats)


def _require(same: bool, path: str, load: Workload) -> None:
    if not same:
        raise RuntimeError(f"{path}: the answer of model {load.model} is not what onnxruntime gives; nothing is measured")
