"""Control verbs over Thrift: many messages, long waits, callers that go, and the same rights as over gRPC."""

import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from idl.codes import Code, ServingError
from idl.generated import control_pb2 as control
from idl.messages import Validation
from idl.thrift_schema import schema
from inference_client import Client
from inference_server.transports import thrift_control
from inference_server.transports.thrift_control import ControlCalls
from inference_server.transports.tokens import Token
from inference_server.types import FileHeader
from tests.eventually import eventually
from tests.inference_server.echo_engine import CAPACITY, VALIDATION, EchoEngine
from tests.inference_server.test_thrift_server import serving

CHUNK = 100_000


class Waiting(EchoEngine):
    """`validate` waits for `release`, or until nobody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.left = threading.Event()

    def validate(self, parts: Iterator[FileHeader | bytes], deadline: float, active: Any) -> Validation:
        found = super().validate(parts, deadline, active)
        self.entered.release()
        while not self.release.wait(0.01):
            if not active():
                self.left.set()
                raise ServingError(Code.CANCELLED, "nobody waits")
        return found


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def calls(engine: EchoEngine, secret: str = "", file: str | Path = "") -> ControlCalls:
    return ControlCalls(engine, Token(secret, file), default_timeout_s=5, max_bytes=1 << 20, waiting=4)


def end(made: ControlCalls) -> None:
    made.close_all()
    eventually(lambda: not any(each.name.startswith("control-") for each in threading.enumerate()), "all are given up")


def asked(verb: str = "Capacity", *messages: Any, last: bool = True, call: str = "", token: str = "", **said: Any) -> Any:
    data = [message.SerializeToString() for message in messages]
    return schema.ControlRequest(verb=verb, call=call, messages=data, last=last, wait_ms=1000, token=token, **said)


def refused(call: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        call()
    return caught.value


def header(name: str) -> Any:
    return control.PutFileRequest(header=control.PutFileRequest.Header(file_name=name))


def test_every_control_verb_over_the_wire(tmp_path: Path) -> None:
    engine = EchoEngine()
    file = tmp_path / "w.bin"
    file.write_bytes(b"x" * 3 * CHUNK)
    with serving(engine, tmp_path, operations=engine) as (_, (host, port), _), Client(f"thrift://{host}:{port}") as client:
        assert client.capacity() == CAPACITY
        assert client.drain(0.5).drained and client.remove_model("a.b") and not client.remove_model("a.b", 3)
        client.set_instances("m", 3, "2")
        client.set_labels("m", {"stable": 2}, 5)
        sent: list[tuple[int, int]] = []
        assert client.put_file(file, "m", 1, "w.bin", lambda *each: sent.append(each)).size == 3 * CHUNK == sent[-1][0]
        assert engine.files["w.bin"] == file.read_bytes()
        found = client.validate([("model.onnx", BytesIO(b"y" * CHUNK)), file])
        assert (found.size_bytes, found.files, found.inputs) == (4 * CHUNK, ("model.onnx", "w.bin"), VALIDATION.inputs)
        assert engine.calls[1:] == [
            ("remove_model", "a.b", 0),
            ("remove_model", "a.b", 3),
            ("set_instances", "m", "2", 3),
            ("set_labels", "m", {"stable": 2}, 5),
        ]
        for wrong in (lambda: client.validate(tmp_path / "none"), lambda: client.put_file(tmp_path / "none", "m", 1, "f")):
            with pytest.raises(FileNotFoundError):
                wrong()


def test_a_source_that_fails_half_way_gives_the_call_up(tmp_path: Path, waiting: Waiting) -> None:
    class Failing(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError("the disk is gone")
            return super().read(10)

    with serving(waiting, tmp_path, operations=waiting) as (server, (host, port), _), Client(f"thrift://{host}:{port}") as client:
        with pytest.raises(OSError, match="the disk is gone"):
            client.validate([("m", Failing(b"z" * 100))])
        assert server._control is not None
        eventually(lambda: not server._control._open, "it is given up")  # type: ignore[union-attr]


def test_a_caller_whose_time_is_up_ends_the_work(tmp_path: Path, waiting: Waiting) -> None:
    with serving(waiting, tmp_path, operations=waiting) as (_, (host, port), _), Client(f"thrift://{host}:{port}") as client:
        assert refused(lambda: client.validate([("m", BytesIO(b"z"))], timeout_s=0.3)).code is Code.DEADLINE_EXCEEDED
        assert waiting.left.wait(5), "the caller has said so"


def test_the_answer_is_waited_for_over_many_calls(waiting: Waiting) -> None:
    made = calls(waiting)
    reply = made.control(asked("Validate", header("a"), control.PutFileRequest(chunk=b"12"), last=False))
    assert reply.call and not reply.done
    name = reply.call
    reply = made.control(schema.ControlRequest(call=name, messages=[control.PutFileRequest(chunk=b"3").SerializeToString()], last=True))
    assert reply.call == name and not reply.done
    assert waiting.entered.acquire(timeout=5)
    waiting.release.set()
    reply = made.control(schema.ControlRequest(call=name, wait_ms=1000))
    assert reply.done and control.ValidateResponse.FromString(reply.message).size_bytes == 3
    assert refused(lambda: made.control(schema.ControlRequest(call=name))).code is Code.NOT_FOUND
    eventually(lambda: "control-Validate" not in {thread.name for thread in threading.enumerate()}, "its thread ends")


def test_a_caller_that_stops_asking_is_forgotten(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thrift_control, "WAITING_IDLE_S", 0.05)
    monkeypatch.setattr(thrift_control, "IDLE_S", 0.05)
    made = calls(waiting)
    made.control(schema.ControlRequest(verb="Validate", messages=[header("a").SerializeToString()], last=True))
    assert waiting.left.wait(5)
    made.control(asked("Validate", header("a"), last=False))
    eventually(lambda: not made._open, "both are gone")
    end(made)


def test_what_is_no_call_is_refused(waiting: Waiting) -> None:
    made = calls(waiting)
    assert refused(lambda: made.control(asked("Nothing"))).code is Code.UNSUPPORTED
    assert refused(lambda: made.control(asked("Capacity"))).code is Code.INVALID_INPUT
    assert refused(lambda: made.control(schema.ControlRequest(verb="Drain", messages=[b"\xff\xff"], last=True))).code is Code.INVALID_INPUT
    reply = made.control(asked("Validate", header("a")))
    assert refused(lambda: made.control(schema.ControlRequest(call=reply.call, messages=[b""]))).code is Code.INVALID_INPUT
    for _ in range(thrift_control._MOST_OPEN - 1):
        made.control(asked("Validate", header("a"), last=False))
    error = refused(lambda: made.control(asked("Capacity", control.CapacityRequest())))
    assert error.code is Code.OVERLOADED and error.retry_after_ms > 0
    end(made)


def test_rights_are_those_of_the_verb(tmp_path: Path, waiting: Waiting) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text('[[token]]\ntoken = "reader"\nrights = ["read"]\n[[token]]\ntoken = "one"\nrights = ["control"]\nmodels = ["a.b"]\n')
    made = calls(waiting, "all", file)
    capacity = control.CapacityRequest()
    assert made.control(asked("Capacity", capacity, token="reader")).done
    assert refused(lambda: made.control(asked("Capacity", capacity))).code is Code.UNAUTHENTICATED
    removal = [control.RemoveModelRequest(model_name=name) for name in ("a.b", "a.c")]
    assert refused(lambda: made.control(asked("RemoveModel", removal[0], token="reader"))).code is Code.FORBIDDEN
    assert made.control(asked("RemoveModel", removal[0], token="one")).done
    assert refused(lambda: made.control(asked("RemoveModel", removal[1], token="one"))).code is Code.FORBIDDEN
    put = control.PutFileRequest(header=control.PutFileRequest.Header(model_name="a.c", file_name="f"))
    assert refused(lambda: made.control(asked("PutFile", put, token="one"))).code is Code.FORBIDDEN
    begun = made.control(asked("Validate", header("f"), last=False, token="all"))
    assert refused(lambda: made.control(schema.ControlRequest(call=begun.call, token="reader"))).code is Code.FORBIDDEN
    assert refused(lambda: made.control(schema.ControlRequest(call=begun.call))).code is Code.UNAUTHENTICATED
    end(made)
