"""The way to the model hosts: what travels with a request, what is remembered, several hosts, and a host that is gone."""

import time
from typing import Any

import pytest

from gateway.models_rpc import CACHE_S, Models
from gateway.operations import inference
from gateway.operations.inference import Call
from gateway.operations.v2_messages import InferBody
from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse, Tensor
from inference_client import Client
from tests.processes import Process


def test_host_gone() -> None:
    models = Models(["thrift://127.0.0.1:1"], Client)
    with pytest.raises(ServingError) as caught:
        models.metadata("triple")
    assert caught.value.code is Code.UNAVAILABLE
    ((address, ready, reason),) = models.ready(0.5)
    assert (address, ready) == ("thrift://127.0.0.1:1", False) and reason
    models.close()
    models.close()
    with pytest.raises(ServingError, match="stopping"):
        models.server_live()


class Recording(Client):
    """A client that keeps what it is asked."""

    def __init__(self, addresses: Any) -> None:
        super().__init__(addresses)
        self.asked: list[InferRequest] = []

    def infer_raw(self, request: InferRequest, *, timeout_s: float | None = None, watch: int = -1) -> InferResponse:
        self.asked.append(request)
        return super().infer_raw(request, timeout_s=timeout_s, watch=watch)


def test_what_travels_with_a_request(host: Process) -> None:
    client = Recording(f"thrift://{host['thrift']}")
    models = Models(["one"], lambda _addresses: client)
    x = Tensor("x", "FP32", (1, 2), bytes(8))
    deadline = time.monotonic() + 20
    call = Call(None, "request-1", deadline, "00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    try:
        unnamed = models.infer(inference.request(call, "triple", "1", InferBody((x,), parameters={"p": "1"})))
        named = models.infer(inference.request(call, "triple", "", InferBody((x,), id="mine", outputs={"y": True}, timeout_us=5_000_000)))
    finally:
        models.close()
    first, second = client.asked
    assert (first.id, first.traceparent, first.deadline, first.model_version) == ("request-1", call.traceparent, deadline, "1")
    assert (first.outputs, first.parameters) == ((), {"p": "1"})
    assert (second.id, second.outputs) == ("mine", ("y",)) and second.deadline is not None and second.deadline < deadline - 10
    assert (unnamed.id, named.id) == ("request-1", "mine")


def test_a_change_is_made_on_every_host_and_one_that_fails_is_told(host: Process) -> None:
    models = Models(["thrift://127.0.0.1:1", f"thrift://{host['thrift']}"], Client)
    try:
        for change, ready in ((models.load, True), (models.unload, False)):
            with pytest.raises(ServingError) as caught:
                change("unloaded", {})
            assert caught.value.code is Code.UNAVAILABLE
            with Client(f"thrift://{host['thrift']}") as client:
                assert client.model_ready("unloaded") is ready
    finally:
        models.close()


class Host:
    """A client that counts, over the real one."""

    def __init__(self, address: str) -> None:
        self.client = Client(address)
        self.calls = 0

    def model_metadata(self, name: str, version: str) -> Any:
        self.calls += 1
        return self.client.model_metadata(name, version)

    def model_config(self, name: str, version: str) -> Any:
        self.calls += 1
        return self.client.model_config(name, version)

    def load_model(self, name: str, parameters: Any) -> None:
        self.client.load_model(name, parameters)

    def close(self) -> None:
        self.client.close()


def test_descriptions_are_remembered_for_a_moment(host: Process) -> None:
    now = [100.0]
    counting = Host(f"thrift://{host['thrift']}")
    models = Models(["one"], lambda _addresses: counting, lambda: now[0])  # type: ignore[arg-type, return-value]
    try:
        for _ in range(3):
            assert models.metadata("triple").name == "triple" and models.declaration("triple").public
        assert counting.calls == 2
        now[0] += CACHE_S
        models.metadata("triple")
        assert counting.calls == 3
        models.load("triple", {})
        models.metadata("triple")
        assert counting.calls == 4
        for _ in range(2):
            with pytest.raises(ServingError):
                models.metadata("nobody")
        assert counting.calls == 6, "a failure is not remembered"
    finally:
        models.close()
