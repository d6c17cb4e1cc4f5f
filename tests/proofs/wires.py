"""Every way to a model as a caller that does not wait: a request is sent, and then waited for, or hung up on."""

import http.client
import json
import select
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from idl.codes import Code, ServingError
from idl.lane_calls import ExecutorGone, LaneConnection, Moved
from idl.lane_routes import Routes
from idl.messages import InferRequest, Tensor
from idl.thrift_schema import schema
from tests.engines import LIMIT
from tests.inference_server.thrift_peer import Peer, frame
from tests.proofs.models import is_own

LONGEST_S = 60.0


class Pending(Protocol):
    """A request on its way. `result`: "ok" for its own answer, else an error's code. Either of the two ends it."""

    def result(self) -> str: ...

    def hang_up(self) -> None: ...


class Wire(Protocol):
    """`timeout_s`: the caller's limit, said in the wire's own way."""

    def send(self, request: InferRequest, timeout_s: float = LONGEST_S) -> Pending: ...

    def close(self) -> None: ...


def _judged(request: InferRequest, outputs: tuple[Tensor, ...]) -> str:
    return "ok" if is_own(request, outputs) else "another's answer"


class GrpcWire:
    """The official client's messages over one channel."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def send(self, request: InferRequest, timeout_s: float = LONGEST_S) -> Pending:
        message = pb.ModelInferRequest(model_name=request.model_name, raw_input_contents=[bytes(t.data) for t in request.inputs])
        for tensor in request.inputs:
            message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        return _GrpcPending(request, self._stub.ModelInfer.future(message, timeout=timeout_s))

    def close(self) -> None:
        self._channel.close()


class _GrpcPending:
    def __init__(self, request: InferRequest, future: Any) -> None:
        self._request, self._future = request, future

    def result(self) -> str:
        try:
            answer = self._future.result()
        except grpc.RpcError as error:
            said = dict(error.trailing_metadata() or ()).get("outboard-code", "")
            return said or {"DEADLINE_EXCEEDED": "deadline_exceeded"}.get(error.code().name, error.code().name)
        raw = zip(answer.outputs, answer.raw_output_contents, strict=True)
        return _judged(self._request, tuple(Tensor(output.name, output.datatype, tuple(output.shape), data) for output, data in raw))

    def hang_up(self) -> None:
        assert self._future.cancel()


class ThriftWire:
    """A connection for each request. `address`: (host, port), or the path of a unix socket."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        self._address = address

    def send(self, request: InferRequest, timeout_s: float = LONGEST_S) -> Pending:
        inputs = [schema.Tensor(name=t.name, datatype=t.datatype, shape=list(t.shape), data=bytes(t.data)) for t in request.inputs]
        asked = schema.InferRequest(model_name=request.model_name, inputs=inputs, timeout_ms=round(1000 * timeout_s))
        peer = Peer(self._address)
        peer.sock.settimeout(LONGEST_S)
        peer.send(frame("ModelInfer", asked))
        return _ThriftPending(request, peer)

    def close(self) -> None:
        return None


class _ThriftPending:
    def __init__(self, request: InferRequest, peer: Peer) -> None:
        self._request, self._peer = request, peer

    def result(self) -> str:
        with self._peer:
            try:
                *_, result = self._peer.reply()
            except (EOFError, OSError):
                return "connection lost"
        if result.success is None:
            return str(result.error.code)
        outputs = result.success.outputs
        return _judged(self._request, tuple(Tensor(t.name, t.datatype, tuple(t.shape), bytes(t.data)) for t in outputs))

    def hang_up(self) -> None:
        self._peer.sock.close()


class HttpWire:
    """`/v2` with JSON, a connection for each request."""

    def __init__(self, address: str) -> None:
        self._address = address.removeprefix("http://")

    def send(self, request: InferRequest, timeout_s: float = LONGEST_S) -> Pending:
        inputs = [
            {"name": t.name, "datatype": t.datatype, "shape": t.shape, "data": np.frombuffer(t.data, np.int64).tolist()}
            for t in request.inputs
        ]
        limit = {"parameters": {"timeout": round(1e6 * timeout_s)}} if timeout_s < LONGEST_S else {}
        connection = http.client.HTTPConnection(self._address, timeout=LONGEST_S)
        body = json.dumps({"inputs": inputs} | limit)
        connection.request("POST", f"/v2/models/{request.model_name}/infer", body, {"Content-Type": "application/json"})
        return _HttpPending(request, connection)

    def close(self) -> None:
        return None


class _HttpPending:
    def __init__(self, request: InferRequest, connection: http.client.HTTPConnection) -> None:
        self._request, self._connection = request, connection

    def result(self) -> str:
        try:
            response = self._connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            return "connection lost"
        finally:
            self._connection.close()
        if response.status != 200:
            return response.headers.get("Outboard-Code") or f"HTTP {response.status}: {text[:200]!r}"
        outputs = {output["name"]: output for output in json.loads(text)["outputs"]}
        tensors = [
            Tensor(name, "INT64", tuple(outputs[name]["shape"]), np.array(outputs[name]["data"], np.int64).tobytes())
            for name in ("y", "picked")
        ]
        return _judged(self._request, tuple(tensors))

    def hang_up(self) -> None:
        self._connection.close()


class LaneWire:
    """The local lane, a connection for each request. `run_dir`: the server's run folder."""

    def __init__(self, run_dir: Path) -> None:
        self._routes = Routes(str(run_dir))

    def connect(self, model: str) -> LaneConnection:
        """A connection to the model's first instance. Raises ServingError where it is not served."""
        route = self._routes.find(model, "")
        if route is None or not route.sockets:
            raise ServingError(Code.NOT_READY, "no route")
        return LaneConnection(route.sockets[0], LIMIT)

    def send(self, request: InferRequest, timeout_s: float = LONGEST_S) -> Pending:
        connection = self.connect(request.model_name)
        connection.send(replace(request, deadline=time.monotonic() + timeout_s))
        return _LanePending(request, connection)

    def close(self) -> None:
        return None


class _LanePending:
    def __init__(self, request: InferRequest, connection: LaneConnection) -> None:
        self._request, self._connection = request, connection

    def result(self) -> str:
        try:
            while True:
                select.select([self._connection], [], [], LONGEST_S)
                if (answer := self._connection.receive()) is not None:  # else it was the executor's greeting
                    return _judged(self._request, answer.outputs)
        except ServingError as error:
            return error.code.value
        except Moved:
            return "moved"
        except ExecutorGone as gone:
            return f"executor gone, ran: {gone.ran}"
        finally:
            self._connection.close()

    def hang_up(self) -> None:
        self._connection.close()


def _thrift(where: str) -> tuple[str, int]:
    host, _, port = where.rpartition(":")
    return host, int(port)


WIRES: dict[str, Callable[[Any, Path], Wire]] = {
    "gRPC": lambda server, run_dir: GrpcWire(server["grpc"]),
    "gRPC socket": lambda server, run_dir: GrpcWire(f"unix:{run_dir / 'grpc.sock'}"),
    "Thrift": lambda server, run_dir: ThriftWire(_thrift(server["thrift"])),
    "Thrift socket": lambda server, run_dir: ThriftWire(str(run_dir / "thrift.sock")),
    "HTTP": lambda server, run_dir: HttpWire(server["http"]),
    "lane": lambda server, run_dir: LaneWire(run_dir),
}
"""Name -> what makes it, from the addresses of an `outboard up` and its run folder."""
