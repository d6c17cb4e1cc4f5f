"""Shared memory and tokens: who may register, list and take away regions, and what a token that may only infer can do with their names."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, shared_memory

from tests.onnx_models import times
from tests.processes import Process, start_server

TOKENS = """
[[token]]
token = "one-model"
rights = ["infer", "read"]
models = ["m"]
[[token]]
token = "infers"
rights = ["infer"]
[[token]]
token = "reads"
rights = ["read"]
[[token]]
token = "controls-one"
rights = ["infer", "read", "control"]
models = ["m"]
"""
VERBS = (("get", "_status"), ("register", ""), ("unregister", ""))
NAME = "of-a-caller-5f0c41"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("regions")
    times(folder / "models" / "m" / "1" / "model.onnx", 2)
    (folder / "tokens.toml").write_text(TOKENS)
    environ = {"TOKEN": "operator", "TOKEN_FILE": str(folder / "tokens.toml"), "SHARED_MEMORY": "true"}
    made = start_server(folder / "models", folder, wait=True, **{f"OUTBOARD_SERVER_{name}": value for name, value in environ.items()})
    yield made
    assert made.stop() == 0, made.log.read_text()


@pytest.fixture
def client(served: Process) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served["grpc"]) as made:
        yield made


@pytest.fixture
def region(client: triton.InferenceServerClient, tmp_path: Path) -> Iterator[str]:
    """Registered by the operator for some caller, whose tensor lies in it."""
    key = f"/outboard-test-{tmp_path.name[-20:]}"
    memory = shared_memory.create_shared_memory_region(NAME, key, 8)
    shared_memory.set_shared_memory_region(memory, [np.float32([[3, 4]])])
    client.register_system_shared_memory(NAME, key, 8, headers=of("operator"))
    yield key
    client.unregister_system_shared_memory(NAME, headers=of("operator"))
    shared_memory.destroy_shared_memory_region(memory)


def of(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def infer(client: triton.InferenceServerClient, token: str, name: str) -> list[list[float]]:
    given = triton.InferInput("x", [1, 2], "FP32")
    given.set_shared_memory(name, 8)
    answer: list[list[float]] = client.infer("m", [given], headers=of(token)).as_numpy("y").tolist()
    return answer


@pytest.mark.parametrize("token", ["one-model", "infers", "controls-one"])
def test_a_limited_token_finds_out_no_region(client: triton.InferenceServerClient, region: str, token: str) -> None:
    status, register, unregister = (getattr(client, f"{verb}_system_shared_memory{end}") for verb, end in VERBS)
    for ask, arguments in ((status, ()), (status, (NAME,)), (register, ("mine", region, 8)), (unregister, (NAME,)), (unregister, ())):
        with pytest.raises(InferenceServerException) as caught:
            ask(*arguments, headers=of(token))
        assert caught.value.status() == "StatusCode.PERMISSION_DENIED" and NAME not in caught.value.message()
    with pytest.raises(InferenceServerException, match="has not been registered") as caught:
        infer(client, token, "of-a-caller-guess")
    assert NAME not in caught.value.message()


def test_who_was_told_the_name_may_use_it(client: triton.InferenceServerClient, region: str) -> None:
    """The operator registers, the caller infers: the name is what is handed over."""
    for token in ("operator", "one-model", "infers"):
        assert infer(client, token, NAME) == [[6, 8]]


def test_reading_of_the_whole_server_lists_them(client: triton.InferenceServerClient, region: str) -> None:
    assert set(client.get_system_shared_memory_status(headers=of("reads")).regions) == {NAME}
    with pytest.raises(InferenceServerException, match="right to infer"):
        infer(client, "reads", NAME)
