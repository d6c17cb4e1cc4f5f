"""gRPC fronts over a real engine, for their tests."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from inference_server.engine import Engine
from inference_server.executors.process import Zygote
from inference_server.front.choice import GrpcFront
from inference_server.front.configuration import Configuration
from inference_server.transports.grpc_server import GrpcServer, MakeShortcut
from tests.engines import LIMIT
from tests.eventually import eventually
from tests.inference_server.conftest import threads
from tests.needs import need

KINDS = ("nginx", "grpcio")


@contextmanager
def serving(engine: Engine, zygote: Zygote, kind: str, **said: Any) -> Iterator[GrpcFront]:
    if kind == "nginx":
        need("nginx")
    wanted = {"token": "", "max_message_bytes": LIMIT, "default_timeout_s": 20.0, "addresses": ("127.0.0.1:0",), "drain_timeout_s": 10.0}
    wanted |= {"processes": 1, **said}

    def plain(addresses: Sequence[str], shortcut: MakeShortcut | None) -> GrpcServer:
        return GrpcServer(
            engine,
            engine,
            addresses=addresses,
            max_message_bytes=wanted["max_message_bytes"],
            threads=4,
            token=wanted["token"],
            default_timeout_s=wanted["default_timeout_s"],
            shortcut=shortcut,
        )

    names = ("token", "max_message_bytes", "default_timeout_s")
    configuration = Configuration(run_dir=str(zygote.run_dir), log_level="debug", **{name: wanted[name] for name in names})
    rest = {name: wanted[name] for name in ("addresses", "processes", "drain_timeout_s")}
    rest["folder"] = said.get("folder") or Path(tempfile.mkdtemp(dir=zygote.run_dir))
    front = GrpcFront(kind, plain, configuration, **rest)
    front.start()
    try:
        yield front
    finally:
        front.stop(5)


@contextmanager
def calling(front: GrpcFront) -> Iterator[tuple[Any, grpc.Channel]]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{front.ports[0]}", options) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel), channel


def ask(model: str, values: object, **fields: Any) -> Any:
    """A request for a model whose input is `x`; whole numbers go as INT64, others as FP32."""
    array = np.asarray(values)
    array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()], **fields)
    message.inputs.add(name="x", datatype="INT64" if array.dtype.kind == "i" else "FP32", shape=array.shape)
    return message


def floats(answer: Any) -> list[float]:
    return np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()


def statistics(stub: Any, model: str) -> Any:
    (found,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name=model)).model_stats
    return found


@pytest.fixture(name="released", scope="module", autouse=True)
def released_fixture() -> Iterator[None]:
    """A whole module leaves no thread and no process behind."""
    with grpc.insecure_channel("127.0.0.1:1"):  # gRPC's core has threads of its own for as long as anything of it is in use
        names, children = threads(), set(_children())
        yield
        eventually(lambda: threads() <= names, "threads are left over")
        eventually(lambda: set(_children()) <= children, "processes are left over")


def _children() -> Iterator[str]:
    for task in Path("/proc/self/task").iterdir():
        yield from (task / "children").read_text().split()
