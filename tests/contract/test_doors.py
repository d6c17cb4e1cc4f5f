"""Every door of the RPC side with every kind of caller: who is let in, who is not, and what they are told. Real servers, with mutual TLS and tokens.

docs/security.md names these tests, line by line.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gateway import application
from gateway.settings import Settings as GatewaySettings
from idl.codes import Code, ServingError
from inference_client import Client, Tls
from tests.certificates import Authority, Pair
from tests.eventually import eventually
from tests.needs import need
from tests.onnx_models import times
from tests.processes import Process, start_server

INPUTS = {"x": np.float32([[1, 2]])}
TOKENS = """
[[token]]
token = "reads"
rights = ["read"]
[[token]]
token = "infers"
rights = ["infer"]
[[token]]
token = "controls"
rights = ["control"]
[[token]]
token = "dogs"
rights = ["infer", "read", "control"]
models = ["dogs"]
"""


@dataclass
class World:
    """Two servers, by what answers their gRPC port; the files of both, and whose certificates there are."""

    hosts: dict[str, Process]
    folder: Path
    ca: Authority
    strangers: Authority
    certificates: dict[str, Pair]

    def tls(self, name: str, ca: Authority | None = None) -> Tls:
        pair = self.certificates.get(name)
        return Tls((ca or self.ca).file, *((pair.certificate, pair.key) if pair else ()))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    need("nginx")
    folder = tmp_path_factory.mktemp("doors")
    ca, strangers = Authority(folder), Authority(folder, "strangers")
    certificates = {
        "good": ca.sign("good"),
        "expired": ca.sign("expired", expired=True),
        "unknown": strangers.sign("unknown"),
    }
    install(ca.sign("host"), folder)
    (folder / "client-ca.pem").write_bytes(ca.file.read_bytes())
    (folder / "tokens.toml").write_text(TOKENS)
    for name in ("cats", "dogs"):
        times(folder / "models" / name / "1" / "model.onnx", 2)
    hosts = {}
    for front in ("nginx", "grpcio"):
        (run := folder / front).mkdir()
        sockets = ("--grpc-socket", str(run / "g"), "--thrift-socket", str(run / "t"))
        settings = {"TOKEN": "all,before", "TOKEN_FILE": folder / "tokens.toml", "TLS_CLIENT_CA": folder / "client-ca.pem"}
        settings |= {"TLS_CERTIFICATE": folder / "served.pem", "TLS_KEY": folder / "served.key"}
        environ = {f"OUTBOARD_SERVER_{name}": str(value) for name, value in settings.items()}
        hosts[front] = start_server(folder / "models", run, "--grpc-front", front, *sockets, **environ)
    yield World(hosts, folder, ca, strangers, certificates)
    for host in hosts.values():
        assert host.stop() == 0, host.log.read_text()
        assert '"level": "error"' not in host.log.read_text(), host.log.read_text()


def install(pair: Pair, folder: Path) -> None:
    """As what renews certificates does: one file after the other."""
    for made, name in ((pair.certificate, "served.pem"), (pair.key, "served.key")):
        part = folder / f"{name}.part"
        part.write_bytes(made.read_bytes())
        part.replace(folder / name)


def infer(client: Client, model: str) -> list[float]:
    return [float(value) for value in client.infer(model, INPUTS).outputs["y"].ravel()]


def stream(client: Client, model: str) -> list[float]:
    (answer,) = client.stream(model, INPUTS)
    return [float(value) for value in answer.outputs["y"].ravel()]


Ask = Callable[[Client, str], list[float]]
DOORS: dict[str, tuple[str, str, Ask]] = {
    "gRPC, nginx": ("nginx", "grpcs://{grpc}", infer),
    "gRPC, grpcio": ("grpcio", "grpcs://{grpc}", infer),
    "ModelStreamInfer, nginx": ("nginx", "grpcs://{grpc}", stream),
    "ModelStreamInfer, grpcio": ("grpcio", "grpcs://{grpc}", stream),
    "Thrift": ("grpcio", "thrifts://{thrift}", infer),
    "Thrift, streams": ("grpcio", "thrifts://{thrift}", stream),
    "gRPC, unix socket, nginx": ("nginx", "grpc+unix://{run}/g", infer),
    "gRPC, unix socket, grpcio": ("grpcio", "grpc+unix://{run}/g", infer),
    "Thrift, unix socket": ("grpcio", "thrift+unix://{run}/t", infer),
    "Thrift, streams, unix socket": ("nginx", "thrift+unix://{run}/t", stream),
}
"""Door -> (which server, its address, how it is asked)."""
OPEN = [door for door in DOORS if "unix" not in door]


def client(world: World, door: str, token: str = "all", certificate: str = "good", ca: Authority | None = None) -> Client:
    front, address, _ = DOORS[door]
    host = world.hosts[front]
    where = address.format(**host.addresses, run=world.folder / front)
    tls = world.tls(certificate, ca) if "unix" not in address else None
    return Client(where, token=token, tls=tls, timeout_s=20, local_lane=False)


def outcome(ask: Callable[[], object]) -> Code | None:
    try:
        ask()
    except ServingError as error:
        return error.code
    return None


@pytest.mark.parametrize("door", DOORS)
def test_tokens_at_every_door(world: World, door: str) -> None:
    ask = DOORS[door][2]
    unauthenticated, forbidden = Code.UNAUTHENTICATED, Code.FORBIDDEN
    wanted = {
        "": (unauthenticated, unauthenticated, unauthenticated),
        "wrong": (unauthenticated, unauthenticated, unauthenticated),
        "al": (unauthenticated, unauthenticated, unauthenticated),
        "all": (None, None, None),
        "before": (None, None, None),
        "reads": (forbidden, None, forbidden),
        "infers": (None, forbidden, forbidden),
        "controls": (forbidden, forbidden, None),
        "dogs": (forbidden, forbidden, forbidden),
    }
    for token, expected in wanted.items():
        with client(world, door, token) as made:
            asked = (lambda: ask(made, "cats"), lambda: made.model_metadata("cats"), lambda: made.load_model("cats"))
            assert tuple(map(outcome, asked)) == expected, token
            assert made.server_live() and made.model_ready("cats"), "public"
    with client(world, door, "all") as made:
        assert ask(made, "cats") == [2, 4], "and the answer is right"
    with client(world, door, "dogs") as made:
        assert ask(made, "dogs") == [2, 4] and made.model_config("dogs")["name"] == "dogs"
        for about_all in (made.repository_index, made.model_statistics, lambda: ask(made, "not there")):
            assert outcome(about_all) is forbidden


@pytest.mark.parametrize("door", OPEN)
@pytest.mark.parametrize("certificate", ["none", "expired", "unknown"])
def test_client_certificates_at_every_tcp_door(world: World, door: str, certificate: str) -> None:
    with client(world, door, certificate=certificate) as made, pytest.raises(ServingError) as caught:
        DOORS[door][2](made, "cats")
    if "grpcio" in door:  # its core ends the connection after the handshake and gives no reason
        assert caught.value.code is Code.UNAVAILABLE and "certificate" in caught.value.message
    else:
        assert caught.value.code is Code.UNAUTHENTICATED and "certificate" in caught.value.message
    if "Thrift" in door:
        says = {"none": "asks for a client certificate", "expired": "has expired", "unknown": "does not trust the authority"}
        assert says[certificate] in caught.value.message


@pytest.mark.parametrize("door", OPEN)
def test_a_public_verb_needs_a_certificate_as_well(world: World, door: str) -> None:
    with client(world, door, certificate="none") as made:
        assert outcome(made.server_live) in (Code.UNAUTHENTICATED, Code.UNAVAILABLE)


@pytest.mark.parametrize("door", OPEN)
def test_a_host_that_is_not_trusted_gets_nothing(world: World, door: str) -> None:
    with client(world, door, ca=world.strangers) as made, pytest.raises(ServingError, match="authority that is not trusted") as caught:
        DOORS[door][2](made, "cats")
    assert caught.value.code is Code.UNAVAILABLE


@pytest.mark.parametrize("scheme", ["grpc", "thrift"])
@pytest.mark.parametrize("front", ["nginx", "grpcio"])
def test_without_tls_nobody_is_answered(world: World, front: str, scheme: str) -> None:
    with Client(f"{scheme}://{world.hosts[front][scheme]}", token="all", timeout_s=5) as made:
        assert outcome(lambda: infer(made, "cats")) is Code.UNAVAILABLE
        assert outcome(made.server_live) is Code.UNAVAILABLE


@pytest.mark.parametrize("door", ["gRPC, nginx", "gRPC, grpcio", "Thrift"])
def test_a_large_tensor_and_many_callers_pass(world: World, door: str) -> None:
    big = np.arange(2_000_000, dtype=np.float32).reshape(-1, 2)
    with client(world, door) as made:
        for _ in range(3):
            np.testing.assert_array_equal(made.infer("cats", {"x": big}).outputs["y"], big * 2)
            assert infer(made, "cats") == [2, 4]


@pytest.mark.parametrize("scheme", ["thrift", "grpc"])
def test_the_gateway_reaches_a_host_with_mutual_tls(world: World, scheme: str) -> None:
    pair = world.certificates["good"]
    settings = GatewaySettings(
        model_hosts=(f"{scheme}s://{world.hosts['nginx'][scheme]}",),
        model_host_token="infers",
        model_host_ca=str(world.ca.file),
        model_host_certificate=str(pair.certificate),
        model_host_key=str(pair.key),
    )
    with application._connect(settings, None, settings.model_hosts) as made:
        assert infer(made, "cats") == [2, 4]


def test_tokens_are_renewed_without_a_restart(world: World) -> None:
    doors = [door for door in DOORS if "Stream" not in door]
    (world.folder / "tokens.part").write_text(TOKENS.replace('"infers"', '"newer"'))
    (world.folder / "tokens.part").replace(world.folder / "tokens.toml")
    try:
        for door in doors:
            with client(world, door, "newer") as new, client(world, door, "infers") as old:
                ask = DOORS[door][2]
                eventually(lambda new=new, ask=ask: outcome(lambda: ask(new, "cats")) is None, "the new token counts")
                eventually(lambda old=old, ask=ask: outcome(lambda: ask(old, "cats")) is Code.UNAUTHENTICATED, "the old one does not")
    finally:
        (world.folder / "tokens.toml").write_text(TOKENS)


@pytest.mark.parametrize("door", ["gRPC, nginx", "gRPC, grpcio", "Thrift"])
def test_certificates_are_renewed_without_a_restart(world: World, door: str) -> None:
    """The new one is of another authority, so that who trusts only the old one can use no new connection."""

    def back() -> bool:
        with client(world, door) as made:
            return outcome(lambda: infer(made, "cats")) is None

    eventually(back, "what another host's test wrote there is taken back")
    with client(world, door) as open_before, client(world, door) as idle:
        assert infer(open_before, "cats") == [2, 4] and infer(idle, "cats") == [2, 4]
        before = world.folder / "served.pem", world.folder / "served.key"
        kept = [path.read_bytes() for path in before]
        install(world.strangers.sign(f"renewed {door[:6].strip(', ')}{len(door)}"), world.folder)
        try:
            begun = time.monotonic()

            def renewed() -> bool:
                with client(world, door, ca=world.strangers) as made:
                    return outcome(lambda: infer(made, "cats")) is None

            eventually(renewed, "the new certificate is served")
            assert time.monotonic() - begun < 10
            assert infer(open_before, "cats") == [2, 4], "what was open lives on"
            with client(world, door) as late:
                assert outcome(lambda: infer(late, "cats")) is Code.UNAVAILABLE
        finally:
            for path, data in zip(before, kept, strict=True):
                path.write_bytes(data)
        eventually(back, "and the old one again")
        assert infer(idle, "cats") == [2, 4]


@pytest.mark.parametrize("door", ["gRPC, nginx", "gRPC, grpcio", "Thrift"])
def test_another_authority_of_callers_is_taken_without_a_restart(world: World, door: str) -> None:
    file = world.folder / "client-ca.pem"
    kept = file.read_bytes()

    def let_in(certificate: str) -> bool:
        with client(world, door, certificate=certificate) as made:
            return outcome(lambda: infer(made, "cats")) is None

    eventually(lambda: not let_in("unknown"), "what another host's test wrote there is taken back")
    try:
        file.write_bytes(kept + world.strangers.file.read_bytes())
        eventually(lambda: let_in("unknown") and let_in("good"), "both are let in")
    finally:
        file.write_bytes(kept)
    eventually(lambda: let_in("good") and not let_in("unknown"), "one of them is")


def test_a_broken_renewal_changes_nothing(world: World) -> None:
    """Half of a renewal, for as long as it lasts: certificate and key are not a pair."""
    kept = (world.folder / "served.key").read_bytes()
    (world.folder / "served.key").write_bytes(world.certificates["unknown"].key.read_bytes())
    try:
        eventually(
            lambda: all("the key is not that of the certificate" in host.log.read_text() for host in world.hosts.values()),
            "the log says so",
        )
        for door in OPEN:
            with client(world, door) as made:
                assert DOORS[door][2](made, "cats") == [2, 4]
    finally:
        (world.folder / "served.key").write_bytes(kept)
