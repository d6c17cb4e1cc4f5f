"""What callers see of gRPC's two fronts, nginx and grpcio's core: the same, over real models."""

import asyncio
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2 as pb

from inference_server.engine import Engine
from inference_server.executors.process import Watcher, Zygote
from inference_server.front.choice import GrpcFront
from tests.engines import LIMIT, engine_over
from tests.eventually import eventually
from tests.inference_server.grpc_front_peer import (  # noqa: F401
    KINDS,
    ask,
    calling,
    floats,
    released_fixture,
    serving,
    statistics,
)
from tests.inference_server.grpc_peer import outboard, refused
from tests.needs import need
from tests.onnx_models import identity, looping, times

BUSY = 20_000
"""Rounds of `looping`: some tenths of a second."""
LONG = 4 * BUSY
"""What goes on while others come and go, also on a busy machine."""


@pytest.fixture(name="nothing_left_over", autouse=True)
def checked_at_the_end_of_the_module() -> None:
    """The fronts keep their lanes from test to test."""


@dataclass
class World:
    engine: Engine
    fronts: dict[str, GrpcFront]


@pytest.fixture(scope="module")
def world(zygote: Zygote, watcher: Watcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    need("nginx")
    root = tmp_path_factory.mktemp("models")
    times(root / "double" / "1" / "model.onnx", 2)
    identity(root / "same" / "1" / "model.onnx")
    looping(root / "busy" / "1" / "model.onnx")
    (root / "busy" / "model.toml").write_text("batching = false\nmax_queue_size = 2\n")
    with engine_over(zygote, watcher, root) as engine:
        engine.load_all()
        with serving(engine, zygote, "nginx") as first, serving(engine, zygote, "grpcio") as second:
            yield World(engine, {"nginx": first, "grpcio": second})


@pytest.fixture(params=KINDS)
def front(world: World, request: pytest.FixtureRequest) -> GrpcFront:
    return world.fronts[request.param]


@pytest.fixture
def stub(front: GrpcFront) -> Iterator[Any]:
    with calling(front) as (made, _):
        yield made


# answers ------------------------------------------------------------------------------------------------------------------------------


def test_an_answer_with_its_id_and_times(stub: Any) -> None:
    for name in ("q-7", "", "another"):
        answer = stub.ModelInfer(ask("double", [[1.0, 2.0]], id=name))
        assert floats(answer) == [2, 4] and (answer.model_name, answer.model_version, answer.id) == ("double", "1", name)
        assert list(answer.outputs[0].shape) == [1, 2]
        assert set(answer.parameters) == {"queue_us", "compute_us"}


@pytest.mark.parametrize("size", [0, 1, 4000, 16_000, 200_000, 1_900_000])
def test_messages_of_any_size(stub: Any, size: int) -> None:
    values = np.random.default_rng(size).random(size, np.float32)
    assert stub.ModelInfer(ask("same", values)).raw_output_contents[0] == values.tobytes()


def test_many_callers_get_their_own_answers(front: GrpcFront) -> None:
    def call(number: int) -> bool:
        values = np.full(number * (3000 if number % 5 == 0 else 1), number, np.float32)
        answer = stubs[number % 3].ModelInfer(ask("same", values, id=str(number)))
        return bool(answer.id == str(number) and answer.raw_output_contents[0] == values.tobytes())

    with calling(front) as (first, _), calling(front) as (second, _), calling(front) as (third, _), ThreadPoolExecutor(16) as pool:
        stubs = (first, second, third)
        assert all(pool.map(call, range(1, 300)))


def test_typed_contents_and_compressed_messages(stub: Any) -> None:
    typed = pb.ModelInferRequest(model_name="double")
    typed.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([3, 4])
    assert floats(stub.ModelInfer(typed)) == [6, 8]
    for how in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        values = np.zeros(50_000, np.float32)
        assert stub.ModelInfer(ask("same", values), compression=how).raw_output_contents[0] == values.tobytes()


def test_only_the_first_of_several_messages_is_read(front: GrpcFront) -> None:
    with calling(front) as (_, channel):
        method = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString)
        messages = [ask("double", [[value, value]]).SerializeToString() for value in (1.0, 5.0)]
        assert floats(method(iter(messages))) == [2, 2]


def test_the_official_clients_as_they_are(front: GrpcFront) -> None:
    address = f"127.0.0.1:{front.ports[0]}"
    array = np.float32([[1, 2]])
    given = triton.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(array)
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live() and client.is_model_ready("double")
        assert client.infer("double", [given], request_id="9").as_numpy("y").tolist() == [[2, 4]]
        assert client.infer("double", [given], compression_algorithm="gzip").as_numpy("y").tolist() == [[2, 4]]
        done, answers = threading.Event(), []
        client.async_infer("double", [given], callback=lambda result, error: (answers.append((result, error)), done.set()))
        assert done.wait(10) and answers[0][1] is None and answers[0][0].as_numpy("y").tolist() == [[2, 4]]

    async def alone() -> Any:
        async with triton_aio.InferenceServerClient(address) as client:
            return (await client.infer("double", [given])).as_numpy("y").tolist()

    assert asyncio.run(alone()) == [[2, 4]]


def test_streams_health_and_reflection_pass(front: GrpcFront) -> None:
    with calling(front) as (_, channel):
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(service="double")).status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest(service="double"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"inference.GRPCInferenceService", "outboard.Control", "grpc.health.v1.Health"} <= set(database.get_services())
        assert database.FindFileContainingSymbol("inference.ModelInferRequest").name == "inference.proto"


# refusals -----------------------------------------------------------------------------------------------------------------------------


def test_refusals_have_status_message_and_metadata(stub: Any) -> None:
    wrong = ask("double", [[1.0, 2.0]])
    wrong.inputs[0].shape[0] = 2
    cases = {
        "needs 16 bytes, got 8": (wrong, grpc.StatusCode.INVALID_ARGUMENT, "invalid_input"),
        "model 'nobody % ü'": (ask("nobody % ü", [1.0]), grpc.StatusCode.NOT_FOUND, "model_not_found"),
        "'9'": (ask("double", [[1.0, 2.0]], model_version="9"), grpc.StatusCode.NOT_FOUND, "version_not_found"),
        "'y2'": (ask("double", [[1.0, 2.0]], outputs=[{"name": "y2"}]), grpc.StatusCode.INVALID_ARGUMENT, "invalid_input"),
    }
    for says, (message, status, code) in cases.items():
        error = refused(lambda message=message: stub.ModelInfer(message))
        assert says in error.details() and error.code() is status and outboard(error) == {"outboard-code": code}


def test_what_is_no_request_is_refused_and_the_connection_goes_on(front: GrpcFront) -> None:
    with calling(front) as (stub, channel):
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        nothing = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        for call in (lambda: method(b"\xff\xff"), lambda: nothing(iter(()))):
            error = refused(call)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and outboard(error) == {"outboard-code": "invalid_input"}
        assert (
            outboard(refused(lambda: channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"")))["outboard-code"] == "unsupported"
        )
        assert floats(stub.ModelInfer(ask("double", [[1.0, 2.0]]))) == [2, 4]


def test_a_message_over_the_limit_is_refused(front: GrpcFront) -> None:
    with calling(front) as (stub, _):
        for size in (LIMIT + 1, 3 * LIMIT):
            error = refused(lambda size=size: stub.ModelInfer(ask("same", np.zeros(size // 4, np.float32))))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        just = ask("same", np.zeros(LIMIT // 4 - 100, np.float32))
        assert LIMIT - 500 < just.ByteSize() < LIMIT
        assert len(stub.ModelInfer(just).raw_output_contents[0]) == len(just.raw_input_contents[0])


# queues, deadlines, callers that go away -----------------------------------------------------------------------------------------------


def inside(world: World, count: int) -> None:
    """Waits until so many requests are inside the models."""
    eventually(lambda: world.engine.in_flight() == count, f"{count} requests inside")


def test_a_full_queue_is_overloaded_with_a_time_to_wait(front: GrpcFront, stub: Any) -> None:
    stub.ModelInfer(ask("busy", [BUSY]))  # from now on it is known to take long
    calls = [stub.ModelInfer.future(ask("busy", [BUSY]), timeout=60) for _ in range(8)]
    errors = [error for call in calls if (error := call.exception()) is not None]
    assert len(errors) == 5, "one runs, two wait"
    for error in errors:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and outboard(error)["outboard-code"] == "overloaded"
        assert int(outboard(error)["retry-after-ms"]) > 0


def test_a_deadline_that_passes_in_the_queue_is_never_executed(world: World, stub: Any) -> None:
    before = statistics(stub, "busy").execution_count
    running = stub.ModelInfer.future(ask("busy", [LONG]), timeout=60)
    inside(world, 1)
    error = refused(lambda: stub.ModelInfer(ask("busy", [1]), timeout=0.05))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert running.result() and stub.ModelInfer(ask("busy", [1]))
    assert statistics(stub, "busy").execution_count == before + 2


def test_a_cancelled_request_in_the_queue_is_never_executed(world: World, stub: Any) -> None:
    before = statistics(stub, "busy")
    running = stub.ModelInfer.future(ask("busy", [LONG]), timeout=60)
    inside(world, 1)
    waiting = stub.ModelInfer.future(ask("busy", [1]), timeout=60)
    inside(world, 2)
    waiting.cancel()
    inside(world, 1)
    assert running.result() and stub.ModelInfer(ask("busy", [1]))
    after = statistics(stub, "busy")
    assert after.execution_count == before.execution_count + 2
    assert after.inference_stats.fail.count == before.inference_stats.fail.count + 1


def test_a_connection_that_breaks_takes_its_requests_along(world: World, front: GrpcFront, stub: Any) -> None:
    before = statistics(stub, "busy").execution_count
    running = stub.ModelInfer.future(ask("busy", [LONG]), timeout=60)
    inside(world, 1)
    with calling(front) as (other, _):
        waiting = other.ModelInfer.future(ask("busy", [1]), timeout=60)
        inside(world, 2)
    inside(world, 1)
    assert waiting.done() and running.result() and stub.ModelInfer(ask("busy", [1]))
    assert statistics(stub, "busy").execution_count == before + 2


def test_a_hundred_callers_go_away_at_once(world: World, front: GrpcFront) -> None:
    with calling(front) as (stub, _):
        calls = [stub.ModelInfer.future(ask("same", np.zeros(20_000)), timeout=60) for _ in range(100)]
        for call in calls[::2]:
            call.cancel()
        for call in calls[1::2]:
            assert call.result().id == ""
    inside(world, 0)


# other settings -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_token_the_default_timeout_and_callers_that_send_nothing(world: World, zygote: Zygote, kind: str) -> None:
    request = ask("double", [[1.0, 2.0]])
    with serving(world.engine, zygote, kind, token="secret", default_timeout_s=0.4) as front, calling(front) as (stub, channel):
        for given in ([], [("authorization", "Bearer wrong")], [("authorization", "Basic secret")]):
            error = refused(lambda given=given: stub.ModelInfer(request, metadata=given))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED and outboard(error) == {"outboard-code": "unauthenticated"}
        token = [("authorization", "Bearer secret")]
        assert floats(stub.ModelInfer(request, metadata=token)) == [2, 4]
        assert stub.ServerLive(pb.ServerLiveRequest()).live, "needs none"
        error = refused(lambda: stub.ModelInfer(ask("busy", [10 * BUSY]), metadata=token))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and outboard(error) == {"outboard-code": "deadline_exceeded"}
        close = threading.Event()

        def nothing() -> Iterator[bytes]:
            close.wait(30)
            yield from ()

        stalled = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer").future(nothing(), metadata=token)
        assert stalled.exception(20) is not None, "it does not wait for ever"
        close.set()
        assert floats(stub.ModelInfer(request, metadata=token)) == [2, 4]


# the server's life --------------------------------------------------------------------------------------------------------------------


def test_a_draining_server_says_so_and_takes_requests_again(world: World, stub: Any) -> None:
    request = ask("double", [[1.0, 2.0]])
    world.engine.drain(False, 0)
    try:
        error = refused(lambda: stub.ModelInfer(request))
        assert error.code() is grpc.StatusCode.UNAVAILABLE and outboard(error)["outboard-code"] == "not_ready"
    finally:
        world.engine.drain(True, 0)
    assert floats(stub.ModelInfer(request)) == [2, 4]


def test_reloads_and_unloads_are_seen_at_once(world: World, stub: Any) -> None:
    request = ask("double", [[1.0, 2.0]])
    stop, answers = threading.Event(), []

    def go_on() -> None:
        while not stop.is_set():
            answers.append(floats(stub.ModelInfer(request, timeout=20)))

    with ThreadPoolExecutor(3) as pool:
        callers = [pool.submit(go_on) for _ in range(3)]
        for _ in range(3):
            stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="double"), timeout=30)
        stop.set()
        for caller in callers:
            caller.result(30)
    assert answers and all(answer == [2, 4] for answer in answers)
    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="double"), timeout=30)
    assert outboard(refused(lambda: stub.ModelInfer(request)))["outboard-code"] == "not_ready"
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="double"), timeout=30)
    assert floats(stub.ModelInfer(request)) == [2, 4]


def test_a_model_that_dies_takes_only_what_was_inside(world: World, stub: Any) -> None:
    stub.ModelInfer(ask("busy", [BUSY]))
    running = stub.ModelInfer.future(ask("busy", [10 * BUSY]), timeout=60)
    inside(world, 1)
    waiting = stub.ModelInfer.future(ask("busy", [1]), timeout=60)
    inside(world, 2)
    (executor,) = next(served for served in world.engine._models.versions() if served.name == "busy").executors
    os.kill(executor.pid, signal.SIGKILL)
    error = running.exception(20)
    assert error.code() is grpc.StatusCode.INTERNAL and outboard(error) == {"outboard-code": "model_failed"}
    assert waiting.result(20), "it was only queued: another process runs it"


def test_one_line_a_request_in_the_log(
    world: World, zygote: Zygote, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, "outboard.server"):
        for kind in KINDS:
            with serving(world.engine, zygote, kind) as front, calling(front) as (stub, _):
                stub.ModelInfer(ask("double", [[1.0, 2.0]], id=f"{kind}-1"), metadata=[("traceparent", "00-a-b-01")])
                refused(lambda kind=kind, stub=stub: stub.ModelInfer(ask("double", [[1.0]]), metadata=[("x-request-id", f"{kind}-2")]))
    written = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    written += [record.fields for record in caplog.records if record.getMessage() == "request"]
    for kind in KINDS:
        good, bad = ([line for line in written if line.get("request_id") == f"{kind}-{number}"] for number in (1, 2))
        assert [(line["model"], line["version"], line["code"], line["traceparent"]) for line in good] == [
            ("double", "1", "ok", "00-a-b-01")
        ]
        assert [(line["model"], line["code"]) for line in bad] == [("double", "invalid_input")]
