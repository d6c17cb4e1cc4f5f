"""The images as compose.yaml starts them: a model pushed and asked through both, hardened, healthy, state that outlives and moves, drains."""

import http.client
import json
import shutil
import threading
import time
from collections.abc import Callable

import pytest

from inference_client import Client, ServingError
from outboard.__main__ import main
from tests.containers.conftest import Container, Machine, podman
from tests.eventually import eventually
from tests.onnx_models import slow
from tests.test_docs import ROOT, Block, matches, page

USER = {"username": "ann", "password": "correct horse battery"}


def examples(heading: str) -> list[Block]:
    """The blocks of the page under `heading`."""
    found = page("docs/containers.md")
    begins = next(line for _, text, line in found.headings if text == heading)
    ends = min((line for _, _, line in found.headings if line > begins), default=1 << 30)
    return [block for block in found.blocks if begins < block.line < ends]


def ask(gateway: Container, method: str, path: str, body: object = None, token: str = "") -> tuple[int, object]:
    """A request through the gateway's published port: status and JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None
    finally:
        connection.close()


def infer(gateway: Container, model: str, values: list[float]) -> tuple[int, object]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values)], "data": values}
    status, said = ask(gateway, "POST", f"/v2/models/{model}/infer", {"inputs": [tensor]})
    return status, said["outputs"][0]["data"] if status == 200 else said  # type: ignore[index]


@pytest.fixture(scope="module")
def pair(machine: Callable[[str], Machine], tmp_path_factory: pytest.TempPathFactory) -> "Pair":
    """A machine with both, healthy, as the page's section "On one machine" leaves it, and with a slow model besides."""
    one = machine("one")
    secrets, _, pushing, shown = examples("On one machine")
    one.follow(secrets.text)
    host, gateway = one.start("model-host").wait(), one.start("gateway").wait()
    names = {
        "/tmp/": f"{one.folder}/",  # before a path with it is put in
        "secrets/": f"{one.folder}/secrets/",
        "127.0.0.1:8001": f"127.0.0.1:{host.port}",
        "localhost:8080": f"127.0.0.1:{gateway.port}",
    }
    printed = one.follow(pushing.text, names, ROOT)
    assert matches(shown.text, printed, spaces=False), printed
    file = slow(tmp_path_factory.mktemp("models") / "slow.onnx", 4000)
    token = one.secret("model-host-token")
    assert main(["models", "push", str(file), "--name", "slow", "--host", f"127.0.0.1:{host.port}", "--token", token]) == 0
    return one, host, gateway


Pair = tuple[Machine, Container, Container]


def test_a_prediction_goes_through_both(pair: Pair) -> None:
    _, host, gateway = pair
    assert infer(gateway, "double", [1.5, 21]) == (200, [3.0, 42.0])
    assert ask(gateway, "GET", "/readyz")[0] == 200
    with Client(f"127.0.0.1:{host.port}") as nobody, pytest.raises(ServingError, match="token"):
        nobody.model_metadata("double")


def test_grpc_between_the_two_as_well(pair: Pair) -> None:
    one, _, gateway = pair
    assert gateway.stop() == 0
    by_grpc = one.start("gateway", OUTBOARD_GATEWAY_MODEL_HOSTS="grpc://model-host:8001").wait()
    assert infer(by_grpc, "double", [2, 4]) == (200, [4.0, 8.0])
    assert by_grpc.stop() == 0
    gateway.port = one.start("gateway").wait().port


@pytest.mark.parametrize("which", [1, 2], ids=["model host", "gateway"])
def test_nothing_more_than_it_needs(pair: Pair, which: int) -> None:
    container = pair[which]
    assert isinstance(container, Container)
    status = container.run("cat", "/proc/self/status")
    said = {line.partition(":")[0]: line.partition(":")[2].split() for line in status.splitlines()}
    assert said["Uid"][0] == "10001" and said["NoNewPrivs"] == ["1"]
    assert int(said["CapEff"][0], 16) == int(said["CapBnd"][0], 16) == 0
    processes = podman("top", container.name, "huser", "capeff", "comm").splitlines()[1:]
    assert len(processes) > 3 and all(line.split()[:2] == ["10001", "none"] for line in processes), processes
    for place in ("/", "/opt/outboard", "/usr/bin", "/run", "/var/tmp", "/var/lib/outboard"):
        assert podman("exec", "--user", "0", container.name, "sh", "-c", f"touch {place}/x 2>&1 || echo refused").endswith("refused"), place
    programs = ("cc", "gcc", "g++", "c++", "ld", "as", "make", "pip", "pip3", "curl", "wget", "git")
    found = container.run("sh", "-c", "for name in %s; do command -v $name; done; true" % " ".join(programs))  # noqa: UP031
    assert found == ""
    with_files = container.run(
        "sh", "-c", "find / -xdev \\( -name pip -o -name setuptools -o -name '*.whl' -o -path '*/.cache/*' \\) 2>/dev/null; true"
    )
    assert with_files == ""
    assert container.run("sh", "-c", "ls /var/lib/apt/lists /var/cache/apt/archives 2>/dev/null | grep -c deb; true") == "0"
    token = pair[0].secret("model-host-token")
    assert token not in podman("image", "inspect", container.inspect("{{.Image}}")) + podman(
        "history", "--no-trunc", container.inspect("{{.Image}}")
    )
    assert token not in podman("inspect", container.name), "a token in an environment variable can be read by who may inspect"


def test_the_limits_are_there(pair: Pair) -> None:
    one, host, gateway = pair
    for container, memory in ((host, 4 << 30), (gateway, 1 << 30)):
        assert container.inspect("{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.ReadonlyRootfs}}") == f"{memory} 1024 true"
    with Client(f"127.0.0.1:{host.port}", token=one.secret("model-host-token")) as client:
        assert client.capacity().memory_bytes <= 4 << 30, "the model host knows what its container may take"


def test_an_unhealthy_one_is_seen(pair: Pair) -> None:
    """The health checks can fail: a container whose program does not answer any more is not healthy."""
    _, host, gateway = pair
    for container in (host, gateway):
        podman("pause", container.name)
        try:
            assert not container.healthy()
        finally:
            podman("unpause", container.name)
        container.wait()


def test_users_outlive_a_restart_and_move_to_another_machine(pair: Pair, machine: Callable[[str], Machine]) -> None:
    one, _, gateway = pair
    assert ask(gateway, "POST", "/v1/users", USER)[0] == 201
    status, tokens = ask(gateway, "POST", "/v1/tokens", USER)
    assert status in (200, 201) and isinstance(tokens, dict)
    assert gateway.stop() == 0
    gateway.port = one.start("gateway").wait().port
    assert ask(gateway, "GET", "/v1/me", token=tokens["access_token"])[0] == 200, "the key that signs tokens is state, too"

    packing, unpacking = (block.text for block in examples("Backing up and moving"))
    for container in one.running:
        container.stop()
    two = machine("two")
    one.follow("\n".join(line for line in packing.splitlines() if "compose" not in line))
    for name in ("state.tar", "models.tar"):
        shutil.move(one.folder / name, two.folder / name)
    shutil.copytree(one.folder / "secrets", two.folder / "secrets")
    two.follow("\n".join(line for line in unpacking.splitlines() if "compose" not in line))
    two.start("model-host").wait()
    there = two.start("gateway").wait()
    assert ask(there, "GET", "/v1/me", token=tokens["access_token"])[0] == 200
    assert ask(there, "POST", "/v1/users", USER)[0] == 409
    assert ask(there, "POST", "/v1/tokens", {"username": "admin", "password": two.secret("admin-password")})[0] in (200, 201)
    eventually(lambda: infer(there, "double", [1, 2]) == (200, [2.0, 4.0]), "the models have not come along", within_s=30)
    for container in two.running:
        assert container.stop() == 0
    one.start("model-host").wait()
    one.start("gateway").wait()


def test_sigterm_lets_what_is_inside_finish(pair: Pair) -> None:
    one, *_ = pair
    host, gateway = one.running[-2:]
    eventually(lambda: infer(gateway, "slow", [1.0])[0] == 200, "the slow model is not there", within_s=30)
    for container in (gateway, host):
        began = time.monotonic()
        infer(gateway, "slow", [1.0])
        takes = time.monotonic() - began
        answers: list[tuple[int, object]] = []
        caller = threading.Thread(target=lambda kept=answers: kept.append(infer(gateway, "slow", [7.0])))
        caller.start()
        with Client(f"127.0.0.1:{host.port}", token=one.secret("model-host-token")) as client:
            eventually(lambda client=client: _inside(client) > 0, "the request has not arrived", within_s=30)  # type: ignore[misc]
        began = time.monotonic()
        status = container.stop()
        stopped = time.monotonic() - began
        caller.join(60)
        assert status == 0 and stopped < 45, container.logs()[-4000:]
        assert answers == [(200, [7.0])]
        print(f"{container.name}: SIGTERM to the end {stopped:.1f} s with a request of {takes:.1f} s inside")
        if container is gateway:
            gateway.port = one.start("gateway").wait().port


def _inside(client: Client) -> int:
    return sum(each.in_flight for each in client.capacity().models)


def test_sizes(services: object) -> None:
    for image, most in (("outboard-server:cpu", 600), ("outboard-gateway:latest", 400)):
        size = int(podman("image", "inspect", "--format", "{{.Size}}", f"localhost/{image}")) / 1e6
        print(f"{image}: {size:.0f} MB")
        assert size < most
