"""Triton's trace settings while everything runs: changed by the official clients, counted by a collector that gets the spans.

One host has nginx before gRPC, Thrift and the gateway; another gRPC without nginx, and Thrift. What was traced is known for certain once
a host has stopped, so everything is asked first, under names that say which requests they are.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from inference_client import Client
from tests.collector import Collector, collector
from tests.needs import needs
from tests.onnx_models import times
from tests.processes import Process, environment, start_server, start_up

PROGRAM = Path(__file__).parent / "clients" / "triton_traces.py"
PASSWORD = "correct horse battery"
HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CLEARED = dict.fromkeys(("trace_level", "trace_rate", "trace_count"))
MANY = 6


class Official:
    """The program with the official clients, and Thrift, which those do not speak."""

    def __init__(self, process: "subprocess.Popen[str]", thrift: Client) -> None:
        self._process, self._thrift = process, thrift

    def __call__(self, do: str, **arguments: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        stdin.flush()
        line = stdout.readline()
        assert line, "it ended: see its standard error"
        return json.loads(line)

    def update(self, way: str, settings: dict[str, Any], model: str = "") -> dict[str, Any]:
        said = self("settings", way=way, verb="update", settings=settings, model_name=model or None)
        assert "message" not in said, said
        return dict(said)

    def get(self, way: str, model: str = "") -> list[Any]:
        """Level, rate, count."""
        said = self("settings", way=way, verb="get", model_name=model or None)
        texts = [said[f"trace_{name}"] for name in ("level", "rate", "count")]
        return [text[0] if isinstance(text, list) else text for text in texts]

    def infer(self, way: str, phase: str, model: str = "m", count: int = MANY, traceparent: str = "", at_once: bool = False) -> None:
        """The spans of these will say `way phase`."""
        name = f"{way} {phase}"
        if way != "thrift":
            self("infer", way=way, model=model, count=count, request_id=name, traceparent=traceparent, at_once=at_once)
            return
        for _ in range(count):
            self._thrift.infer(model, {"x": np.float32([[1, 2]])}, request_id=name, traceparent=traceparent)


@contextmanager
def official(host: Process, **addresses: str) -> Iterator[Official]:
    command = [sys.executable, str(PROGRAM), *(f"{name}={address}" for name, address in addresses.items())]
    with (
        Client(f"thrift://{host['thrift']}") as thrift,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()) as process,
    ):
        yield Official(process, thrift)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def models(folder: Path) -> Path:
    for name in ("m", "n"):
        times(folder / name / "1" / "model.onnx", 2)
        (folder / name / "model.toml").write_text("public = true\n")
    return folder


def scenario(client: Official, ways: list[str], administrators: list[str]) -> None:
    """Everything that is asked; each change by one of `administrators`, in turn."""
    turn = 0

    def change(settings: dict[str, Any], model: str = "") -> None:
        nonlocal turn
        client.update(administrators[turn % len(administrators)], settings, model)
        turn += 1

    def ask(phase: str, **more: Any) -> None:
        for way in ways:
            client.infer(way, phase, **more)

    for way in administrators:
        assert "trace" in client("extensions", way=way) and client.get(way) == ["TIMESTAMPS", "1", "-1"]
    ask("start")
    change({"trace_level": ["OFF"]})
    ask("off")
    ask("off with a trace", traceparent=HEADER)
    change({"trace_level": ["TIMESTAMPS"], "trace_rate": "3"})
    ask("rate")
    ask("rate with a trace", traceparent=HEADER)
    change({"trace_rate": "1", "trace_count": "4"}, "m")
    assert client.get(administrators[0], "m") == ["TIMESTAMPS", "1", "4"]
    ask("count", at_once=True)
    for way in administrators:
        assert client.get(way, "m") == ["TIMESTAMPS", "1", "0"] and client.get(way) == ["TIMESTAMPS", "3", "-1"]
    change({"trace_rate": None})
    ask("another model meanwhile", model="n")
    change({"trace_level": "OFF", "trace_count": None}, "m")
    ask("model off")
    ask("another model still", model="n")
    change(CLEARED, "m")
    change(CLEARED)
    assert client.get(administrators[-1], "m") == ["TIMESTAMPS", "1", "-1"]
    ask("cleared")
    change({"trace_count": "5"})
    ask("count of all", model="n")
    assert client.get(administrators[0]) == ["TIMESTAMPS", "1", "0"]
    refused = client("settings", way=administrators[0], verb="update", settings={"trace_rate": "-1", "trace_level": ["OFF"]})
    assert "trace_rate" in refused["message"] and client.get(administrators[0])[0] == "TIMESTAMPS", "all of it or nothing"


def counted(got: Collector) -> Counter[str]:
    """Inferences by way and phase."""
    return Counter(span.said["outboard.request_id"] for span in list(got.spans) if span.name == "inference")


def check(found: Counter[str], ways: list[str], spread: dict[str, tuple[int, int]]) -> None:
    """`spread`: least and most of a rate of one in three, where more than one process has a share."""
    for way in ways:
        for phase in ("start", "rate with a trace", "another model meanwhile", "another model still", "cleared"):
            assert found.pop(f"{way} {phase}", 0) == MANY, (way, phase)
        for phase in ("off", "off with a trace", "model off"):
            assert f"{way} {phase}" not in found, (way, phase)
        least, most = spread[way]
        assert least <= found.pop(f"{way} rate", 0) <= most, way
    assert sum(found.pop(f"{way} count", 0) for way in ways) == 4, found
    assert sum(found.pop(f"{way} count of all", 0) for way in ways) == 5, found
    assert not found, found


@needs("nginx")
def test_behind_nginx_and_in_the_gateway(tmp_path: Path) -> None:
    with collector() as got, ExitStack() as stack:
        env = {f"OUTBOARD_{part}_TRACE_ENDPOINT": got.address for part in ("SERVER", "GATEWAY")}
        env |= {"OUTBOARD_ADMIN_PASSWORD": PASSWORD, "OUTBOARD_GATEWAY_PROCESSES": "1", "OUTBOARD_GATEWAY_HOT_PROCESSES": "1"}
        env |= {"OUTBOARD_SERVER_GRPC_FRONT_PROCESSES": "2"}
        up = start_up(tmp_path / "data", "--no-demo", "--models", str(models(tmp_path / "models")), **env)
        stack.callback(up.stop)
        body = json.dumps({"username": "admin", "password": PASSWORD}).encode()
        with urlopen(Request(f"{up['http']}/v1/tokens", body, {"Content-Type": "application/json"}), timeout=30) as answer:
            token = json.load(answer)["access_token"]
        ways = ["grpc", "thrift", "http"]
        with official(up, grpc=up["grpc"], http=up["http"].removeprefix("http://"), token=token) as client:
            scenario(client, ways, ["grpc", "http"])
        assert up.stop() == 0, up.log.read_text()
        found = counted(got)
        check(found, ways, {"grpc": (2, 4), "thrift": (2, 2), "http": (2, 3)})
        assert {span.service for span in got.spans if span.said.get("outboard.request_id", "").startswith("http")} == {"outboard-gateway"}
        whole = [span for span in got.spans if span.name.startswith("POST /v2/models/<model>/infer")]
        inner = [span for span in got.spans if span.name == "inference" and span.service == "outboard-gateway"]
        assert sorted(span.id for span in whole) == sorted(span.parent for span in inner), "the gateway's own span comes and goes with it"


def test_without_nginx(tmp_path: Path) -> None:
    with collector() as got, ExitStack() as stack:
        server = start_server(models(tmp_path / "models"), tmp_path, "--grpc-front", "grpcio", OUTBOARD_SERVER_TRACE_ENDPOINT=got.address)
        stack.callback(server.stop)
        with official(server, grpc=server["grpc"], token="") as client:
            scenario(client, ["grpc", "thrift"], ["grpc"])
        assert server.stop() == 0, server.log.read_text()
        found = counted(got)
        both = found["grpc rate"] + found["thrift rate"]
        assert both == 2 * MANY // 3, "one process: its requests are counted together"
        check(found, ["grpc", "thrift"], {"grpc": (2, 2), "thrift": (2, 2)})


def test_an_earlier_servers_settings_are_not_those_of_the_next(tmp_path: Path) -> None:
    """Killed, and started again in the same run folder without an endpoint."""
    with collector() as got:
        env = {"OUTBOARD_SERVER_RUN_DIR": str(tmp_path / "run")}
        for endpoint, told in ((got.address, ["OFF", "1", "-1"]), ("", ["OFF", "1000", "-1"])):
            traced = env | ({"OUTBOARD_SERVER_TRACE_ENDPOINT": endpoint} if endpoint else {})
            server = start_server(models(tmp_path / "models"), tmp_path, **traced)
            try:
                with Client(server["grpc"]) as client:
                    first = client.trace_settings("", {"trace_level": ["OFF"]} if endpoint else {})
                    assert [first[f"trace_{name}"][0] for name in ("level", "rate", "count")] == told
                    assert ("trace" in client.server_metadata().extensions) is bool(endpoint)
                assert (tmp_path / "run" / "traces").exists() is bool(endpoint)
            finally:
                server.process.kill()
                server.stop()
