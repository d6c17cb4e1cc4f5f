"""The box of models in Python inside a container: whether there is one, told truthfully, and what the page says a container needs for it."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference_client import Client
from outboard.__main__ import main
from tests.containers.conftest import Container, Machine
from tests.containers.test_containers import examples

WHY = "from inference_server.executors import sandbox; print(sandbox.unusable())"
LOOKS = """
import os
def infer(inputs):
    return {"y": inputs["x"] * os.path.exists("/run/secrets/OUTBOARD_SERVER_TOKEN")}
"""
TENSORS = '[inputs.x]\ndatatype = "FP32"\nshape = [1]\n[outputs.y]\ndatatype = "FP32"\nshape = [1]\n'
NO_BOX = "no sandbox: its code can do what the server can"


def state(host: Container) -> str:
    """Why there is no box, "" where there is one."""
    return host.run("python3", "-c", WHY)


def sees_the_servers_token(one: Machine, host: Container, folder: Path) -> bool:
    """Pushes a model that says what it sees, and asks it."""
    (folder / "model.py").write_text(LOOKS)
    (folder / "model.toml").write_text(TENSORS)
    address, token = f"127.0.0.1:{host.port}", one.secret("model-host-token")
    pushed = ["models", "push", str(folder / "model.py"), "--name", "looks", "--model-toml", str(folder / "model.toml")]
    assert main([*pushed, "--host", address, "--token", token]) == 0, host.logs()[-4000:]
    with Client(address, token=token) as client:
        return bool(client.infer("looks", {"x": np.float32([1])}).outputs["y"][0])


@pytest.mark.parametrize("opened", [False, True], ids=["as compose.yaml says", "opened for boxes"])
def test_a_container_says_whether_it_has_a_box(machine: Callable[[str], Machine], tmp_path: Path, opened: bool) -> None:
    """Opened as docs/containers.md says; `unmask=ALL` is podman's word for Docker's `systempaths=unconfined`."""
    one = machine("opened" if opened else "closed")
    one.follow(examples("On one machine")[0].text)
    if opened:
        said = one.services["model-host"]
        options = [*said["security_opt"], "seccomp=unconfined", "unmask=ALL"]
        one = replace(one, services={**one.services, "model-host": {**said, "security_opt": options}})
    host = one.start("model-host").wait()
    try:
        why = state(host)
        print(f"{one.name}: {why or 'boxed'}")
        assert sees_the_servers_token(one, host, tmp_path) == bool(why), "what the code sees is what the server says"
        assert (NO_BOX in host.logs()) == bool(why)
        if opened and os.environ.get("OUTBOARD_NO_USER_NAMESPACES") != "1":  # for hosts that allow nobody one
            assert not why
    finally:
        host.stop()
