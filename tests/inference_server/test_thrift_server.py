"""The Thrift transport: what it translates and refuses, and that frames, lengths and exceptions cost a caller no connection."""

import json
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.Thrift import TApplicationException, TMessageType, TType
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TFramedTransport
from thriftpy2.protocol import TCyBinaryProtocolFactory
from thriftpy2.rpc import client_context
from thriftpy2.transport import TCyFramedTransportFactory

from idl.codes import Code
from idl.thrift_binary import CALL, EXCEPTION, ONEWAY, REPLY, message
from idl.thrift_schema import METHODS, Inference, schema
from inference_server.transports.thrift_run_time import RunTimeVerbs
from inference_server.transports.thrift_server import ThriftServer, Verbs
from tests.inference_server.echo_engine import CONFIG, STATISTICS, EchoEngine
from tests.inference_server.thrift_peer import Peer, frame, framed, infer
from tests.processes import resident

LIMIT = 1 << 20


@contextmanager
def serving(engine: EchoEngine, path: Path, **settings: Any) -> Iterator[tuple[ThriftServer, tuple[str, int], str]]:
    """The server, its TCP address, and its unix socket's path."""
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path / "thrift.sock"))
    unix.listen(1024)
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=1024), unix]
    address = listeners[0].getsockname()
    wanted: dict[str, Any] = {"max_frame_bytes": LIMIT, "threads": 4, "token": "", "default_timeout_s": 20.0}
    server = ThriftServer(engine, listeners=listeners, **(wanted | settings))
    server.start()
    try:
        yield server, address, str(path / "thrift.sock")
    finally:
        engine.release.set()
        server.stop(5)


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
def address(engine: EchoEngine, tmp_path: Path) -> Iterator[tuple[str, int]]:
    with serving(engine, tmp_path) as (_, made, _):
        yield made


@pytest.fixture
def peer(address: tuple[str, int]) -> Iterator[Peer]:
    with Peer(address) as made:
        yield made


# what is translated -------------------------------------------------------------------------------------------------------------------


def test_every_verb_by_thriftpy2(address: tuple[str, int], engine: EchoEngine) -> None:
    factories = {"proto_factory": TCyBinaryProtocolFactory(), "trans_factory": TCyFramedTransportFactory()}
    with client_context(Inference, *address, socket_timeout=10_000, connect_timeout=10_000, **factories) as client:
        assert client.ServerLive(schema.ServerLiveRequest()).live and client.ServerReady(schema.ServerReadyRequest()).ready
        assert (
            client.ModelReady(schema.ModelReadyRequest(name="echo")).ready
            and not client.ModelReady(schema.ModelReadyRequest(name="x")).ready
        )
        metadata = client.ServerMetadata(schema.ServerMetadataRequest())
        assert (metadata.name, metadata.version, metadata.extensions) == ("echo-server", "1.2", ["statistics", "model_repository"])
        model = client.ModelMetadata(schema.ModelMetadataRequest(name="echo"))
        assert (model.name, model.versions, model.platform) == ("echo", ["1", "2"], "onnxruntime_onnx")
        assert [(t.name, t.datatype, t.shape) for t in model.inputs] == [("x", "FP32", [-1, 3]), ("text", "BYTES", [-1])]
        assert json.loads(client.ModelConfig(schema.ModelConfigRequest(name="echo")).config_json) == CONFIG
        (statistics,) = client.ModelStatistics(schema.ModelStatisticsRequest()).model_stats
        assert (statistics.inference_count, statistics.compute_infer.ns) == (STATISTICS.inference_count, STATISTICS.compute_infer.ns)
        assert [m.name for m in client.RepositoryIndex(schema.RepositoryIndexRequest()).models] == ["echo", "sleepy"]
        assert [m.name for m in client.RepositoryIndex(schema.RepositoryIndexRequest(ready=True)).models] == ["echo"]
        client.RepositoryModelLoad(schema.RepositoryModelLoadRequest(model_name="echo", parameters={"version": "2"}))
        client.RepositoryModelUnload(schema.RepositoryModelUnloadRequest(model_name="echo"))
        answer = client.ModelInfer(infer(data=b"a\0b", parameters={"k": "v"}))
        assert (answer.id, answer.outputs[0].data, answer.parameters) == ("7", b"a\0b", {"queue_us": "5", "k": "v"})
        with pytest.raises(schema.ServingError) as caught:
            client.ModelInfer(infer("nobody"))
        assert caught.value.code == "model_not_found" and client.ServerLive(schema.ServerLiveRequest()).live
    assert engine.calls == [("load", "echo", {"version": "2"}), ("unload", "echo", {})]


def test_apaches_own_package_reads_and_is_read(address: tuple[str, int]) -> None:
    sock = TSocket(*address)
    protocol = TBinaryProtocol(TFramedTransport(sock))
    sock.open()
    try:
        for method, kind in (("ServerReady", TMessageType.REPLY), ("Nothing", TMessageType.EXCEPTION)):
            protocol.writeMessageBegin(method, TMessageType.CALL, 77)
            protocol.writeStructBegin(f"{method}_args")
            protocol.writeFieldBegin("request", TType.STRUCT, 1)
            protocol.writeFieldStop()
            protocol.writeFieldEnd()
            protocol.writeFieldStop()
            protocol.writeMessageEnd()
            protocol.trans.flush()
            assert protocol.readMessageBegin() == (method, kind, 77)
            if kind == TMessageType.EXCEPTION:
                error = TApplicationException()
                error.read(protocol)
                assert error.type == TApplicationException.UNKNOWN_METHOD and "'Nothing'" in error.message
            else:
                assert protocol.readFieldBegin()[1:] == (TType.STRUCT, 0)
                assert protocol.readFieldBegin()[1:] == (TType.BOOL, 1) and protocol.readBool() is True
                assert protocol.readFieldBegin()[1] == protocol.readFieldBegin()[1] == TType.STOP
            protocol.readMessageEnd()
    finally:
        sock.close()


def test_a_request_is_handed_over_whole(peer: Peer, engine: EchoEngine) -> None:
    now = time.monotonic()
    peer.call("ModelInfer", infer(model_version="3", outputs=["a", "b"], timeout_ms=5000, traceparent="00-a-b-01"))
    peer.call("ModelInfer", schema.InferRequest(model_name="echo"))
    first, second = engine.seen
    assert (first.model_version, first.id, first.outputs, first.traceparent) == ("3", "7", ("a", "b"), "00-a-b-01")
    assert first.deadline is not None and 4 < first.deadline - now < 6
    assert (second.model_version, second.id, second.inputs, second.outputs, second.traceparent) == ("", "", (), (), "")
    assert second.deadline is not None and 19 < second.deadline - now < 25, "no timeout_ms: the server's default"
    assert first.inputs[0].shape == (24,) and bytes(first.inputs[0].data) == b"\0" * 24


def test_the_unix_socket_serves_as_well_and_large_tensors_pass(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, max_frame_bytes=32 << 20) as (_, address, path):
        for where in (address, path):
            with Peer(where) as peer:
                for size in (0, 1, 70_000, 9 << 20):
                    data = bytes(range(256)) * (size // 256) + b"e" * (size % 256)
                    assert peer.call("ModelInfer", infer(data=data)).success.outputs[0].data == data


def test_verbs_are_those_of_the_idl_in_its_order() -> None:
    verbs = [name for kind in (Verbs, RunTimeVerbs) for name in vars(kind) if not name.startswith("_")]
    streams = [name for name in verbs if name.startswith("stream_")]
    verbs = [*(name for name in verbs if name not in streams), *streams, "control"]
    assert ["".join(word.capitalize() for word in name.split("_")) for name in verbs] == list(METHODS)


# what is refused ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", list(Code))
def test_every_code_travels_as_the_declared_exception_and_the_connection_stays(peer: Peer, code: Code) -> None:
    error = peer.error("ModelInfer", infer("refuse", parameters={"code": code.value, "retry_after_ms": "250"}))
    assert (error.code, error.message, error.retry_after_ms, error.request_id) == (code.value, "refused as asked", 250, "7")
    assert peer.alive()


def test_an_unexpected_exception_keeps_the_connection_and_tells_nothing(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    error = peer.error("ModelInfer", infer("broken"))
    assert (error.code, error.request_id) == ("internal", "7") and "secret" not in error.message and "/some/path" not in error.message
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.fields["incident"] in error.message and record.exc_info  # type: ignore[attr-defined]
    assert peer.alive()


def test_an_unknown_method_is_the_protocols_own_exception(peer: Peer) -> None:
    peer.send(frame("ServerLive", None, 9).replace(b"ServerLive", b"ServerLove"))
    method, kind, sequence, _ = peer.reply()
    assert (method, kind, sequence) == ("ServerLove", EXCEPTION, 9) and peer.alive()


WHOLE = frame("ModelInfer", infer(data=b"12345678"), 5)[4:]
HEAD = len(frame("ModelInfer", None, 5)) - 4 - 1
"""Bytes of the message's header, before its structure."""


def swapped(old: bytes, new: bytes) -> bytes:
    assert WHOLE.count(old) == 1
    return WHOLE.replace(old, new)


MALFORMED = {
    "ends inside a field": WHOLE[:-5],
    "ends after the header": WHOLE[:HEAD],
    "has bytes behind it": WHOLE + b"\0",
    "has no argument": WHOLE[:HEAD] + b"\0",
    "has text that is not UTF-8": swapped(b"echo", b"ec\xff\xfe"),
    "has a string of 2 GiB": swapped(struct.pack(">I", 4) + b"echo", b"\x7f\xff\xff\xffecho"),
    "has a string of negative length": swapped(struct.pack(">I", 4) + b"echo", b"\xff\xff\xff\xffecho"),
    "has data of 2 GiB": swapped(struct.pack(">I", 8) + b"12345678", b"\x7f\xff\xff\xf012345678"),
    "has a list of 2**31 - 1 tensors": swapped(b"\x0f\0\4\x0c\0\0\0\1", b"\x0f\0\4\x0c\x7f\xff\xff\xff"),
    "has a list of another type": swapped(b"\x0f\0\4\x0c\0\0\0\1", b"\x0f\0\4\x0b\0\0\0\1"),
    "has an unknown wire type": WHOLE[:HEAD] + b"\x0c\0\1\x63\0\x63" + b"\0\0",
    "nests for ever": WHOLE[:HEAD] + b"\x0c\0\1" + b"\x0c\0\x63" * 200,
    "has a million empty tensors": WHOLE[:HEAD] + b"\x0c\0\1\x0f\0\4\x0c" + struct.pack(">I", 1_000_000) + bytes(1_000_002),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_message_in_a_whole_frame_is_invalid_input(peer: Peer, body: bytes) -> None:
    begun = time.monotonic()
    peer.send(framed(body))
    method, kind, sequence, result = peer.reply()
    assert (method, kind, sequence, result.error.code) == ("ModelInfer", REPLY, 5, "invalid_input")
    assert time.monotonic() - begun < 2 and peer.alive()


def test_negative_time_left_is_never_executed(peer: Peer, engine: EchoEngine) -> None:
    assert peer.error("ModelInfer", infer(timeout_ms=-5)).code == "deadline_exceeded" and not engine.seen


def test_more_inputs_than_any_model_has_are_refused(peer: Peer) -> None:
    assert peer.error("ModelInfer", schema.InferRequest(model_name="echo", inputs=[schema.Tensor()] * 5000)).code == "invalid_input"
    assert peer.error("ModelInfer", schema.InferRequest(model_name="echo", outputs=["y"] * 5000)).code == "invalid_input"


def test_the_token_is_asked_for_where_it_must_be(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, token="s\u00e9cret") as (_, address, _), Peer(address) as peer:
        assert peer.alive() and peer.call("ServerReady", schema.ServerReadyRequest()).success.ready
        assert peer.call("ModelReady", schema.ModelReadyRequest(name="echo")).success.ready
        assert peer.call("ServerMetadata", schema.ServerMetadataRequest()).success.name == "echo-server"
        for token in (None, "", "wrong", "s\u00e9cret "):
            assert peer.error("ModelInfer", infer(token=token)).code == "unauthenticated"
            assert (
                peer.error("RepositoryModelLoad", schema.RepositoryModelLoadRequest(model_name="echo", token=token)).code
                == "unauthenticated"
            )
            assert peer.error("RepositoryIndex", schema.RepositoryIndexRequest(token=token)).code == "unauthenticated"
        assert not engine.seen and not engine.calls
        assert peer.call("ModelInfer", infer(token="s\u00e9cret")).success.id == "7"


# frames -------------------------------------------------------------------------------------------------------------------------------

OTHERS = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "a negative length": b"\xff\xff\xff\xfe\x80\x01\0\1" + bytes(20),
    "unframed Thrift": frame("ServerLive", schema.ServerLiveRequest())[4:],
    "a frame of nothing": bytes(4),
    "a frame too small for a message": framed(b"\x80\x01\0\1\0\0\0"),
    "Thrift without the strict header": framed(struct.pack(">I", 10) + b"ServerLive\1" + bytes(6)),
    "another Thrift protocol": framed(b"\x82\x21\x01\x0aServerLive\0" + bytes(8)),
    "a reply": b"".join(message("ServerLive", REPLY, 1, Inference.ServerLive_result())),
    "a one-way call": b"".join(message("ServerLive", ONEWAY, 1, Inference.ServerLive_args())),
    "a name that lies": framed(b"\x80\x01\0\1\x7f\xff\xff\xffServerLive" + bytes(8)),
    "a name without end": framed(b"\x80\x01\0\1" + struct.pack(">I", 5000) + b"n" * 5000 + bytes(5)),
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_what_is_not_a_call_closes_the_connection(address: tuple[str, int], data: bytes) -> None:
    with Peer(address) as peer, Peer(address) as other:
        peer.send(data)
        assert peer.closed() and other.alive()


def test_a_frame_over_the_limit_is_too_large_and_the_connection_stays(peer: Peer, engine: EchoEngine) -> None:
    small = frame("ServerLive", schema.ServerLiveRequest(), 3)
    for size in (LIMIT, LIMIT * 20):
        for behind in (b"", small):
            peer.send(frame("ModelInfer", infer(data=bytes(size)), 2) + behind)
            method, kind, sequence, result = peer.reply()
            assert (method, kind, sequence, result.error.code) == ("ModelInfer", REPLY, 2, "too_large") and str(
                LIMIT
            ) in result.error.message
            if behind:
                assert peer.reply()[2] == 3
    peer.send(frame("ModelInfer", infer(data=bytes(LIMIT)), 4).replace(b"ModelInfer", b"ModelOther"))
    assert peer.reply()[:3] == ("ModelOther", EXCEPTION, 4)
    assert not engine.seen and peer.alive()


def test_a_frame_of_exactly_the_limit_passes(peer: Peer) -> None:
    room = LIMIT - (len(frame("ModelInfer", infer(data=b""))) - 4)
    result = peer.call("ModelInfer", infer(data=bytes(room)))
    assert result.error is not None and result.error.code == "too_large" and "answer" in result.error.message, (
        "the answer says more than the request"
    )
    assert len(peer.call("ModelInfer", infer(data=bytes(room - 200))).success.outputs[0].data) == room - 200
    assert peer.error("ModelInfer", infer(data=bytes(room + 1))).code == "too_large"


def test_a_frame_over_the_limit_in_small_pieces(peer: Peer) -> None:
    whole = frame("ModelInfer", infer(data=bytes(LIMIT)), 2)
    for start, stop in ((0, 3), (3, 5), (5, 9), (9, 30), (30, 600), (600, 601), (601, len(whole))):
        peer.send(whole[start:stop])
    assert peer.reply()[3].error.code == "too_large" and peer.alive()


def test_lying_lengths_cost_no_memory(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, max_frame_bytes=1 << 30) as (_, address, _), Peer(address) as good:
        assert good.alive()
        before = resident([os.getpid()])
        liars = [Peer(address) for _ in range(50)]
        for number, liar in enumerate(liars):
            liar.send(struct.pack(">I", (1 << 30) + number - 25) + frame("ModelInfer", infer())[4:])
        assert good.call("ModelInfer", infer()).success.id == "7"
        assert resident([os.getpid()]) - before < 16 << 20, "50 frames of 1 GiB were announced"
        for liar in liars:
            liar.__exit__()
        assert good.alive()


def test_pipelined_frames_are_answered_in_order(peer: Peer, engine: EchoEngine) -> None:
    calls = [frame("ModelInfer", infer(data=bytes([number % 256]) * (number * 7 % 900)), number) for number in range(400)]
    peer.send(b"".join(calls))
    for number in range(400):
        _, _, sequence, result = peer.reply()
        assert sequence == number and result.success.outputs[0].data == bytes([number % 256]) * (number * 7 % 900)
    assert peer.alive() and len(engine.seen) == 400


def test_frames_in_pieces_of_any_size(peer: Peer) -> None:
    stream = b"".join(frame("ModelInfer", infer(data=bytes(size)), size) for size in (0, 100, 70_000))
    for step in (1, 3, 1000):
        for start in range(0, 400, step):
            peer.send(stream[start : min(start + step, 400)])
        peer.send(stream[400:])
        for size in (0, 100, 70_000):
            _, _, sequence, result = peer.reply()
            assert sequence == size and len(result.success.outputs[0].data) == size


def test_call_types() -> None:
    assert (CALL, REPLY, EXCEPTION, ONEWAY) == (TMessageType.CALL, TMessageType.REPLY, TMessageType.EXCEPTION, TMessageType.ONEWAY)
