"""1,000 hostile bodies against the gateway as it runs: no 500, no growth, and afterwards everything is as before."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path

from gateway.settings import Settings
from tests.gateway import hostile
from tests.gateway.conftest import Gateway
from tests.processes import Process, descendants, free_port, resident

SEED = 20261121
COUNT = 1000
GROWTH = 24 << 20
"""Bytes that all the gateway's processes together may grow by in the second half: what an allocator keeps, and no more."""
TARGETS = hostile.Targets(texts="same-BYTES")


def answer(gateway: Gateway, path: str, body: object) -> object:
    request = urllib.request.Request(gateway.url(path), json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as got:
        return json.load(got)


def test_hostile_bodies(host: Process, tmp_path: Path, gateways: Callable[[Settings], Gateway]) -> None:
    settings = Settings(data_dir=tmp_path, model_hosts=(f"thrift://{host['thrift']}",), http_port=free_port(), processes=1)
    gateway = gateways(settings)
    requests = list(hostile.stream(SEED, COUNT, TARGETS))
    assert requests == list(hostile.stream(SEED, COUNT, TARGETS)), "the same seed, the same requests"
    pid, host_processes = gateway.program.process.pid, descendants(host.process.pid)
    statuses = hostile.run("127.0.0.1", gateway.port, iter(requests[: COUNT // 2]))
    before = resident({pid} | descendants(pid))
    for status, count in hostile.run("127.0.0.1", gateway.port, iter(requests[COUNT // 2 :])).items():
        statuses[status] = statuses.get(status, 0) + count
    grown = resident({pid} | descendants(pid)) - before
    print(f"statuses {statuses}, grown by {grown >> 10} KiB")
    assert grown < GROWTH
    assert statuses.get("400", 0) > COUNT / 2 and {"413", "415", "200"} <= statuses.keys(), statuses
    assert '"internal_error"' not in gateway.program.log
    assert descendants(host.process.pid) == host_processes, "a model's process died"
    assert json.loads(gateway.text("/readyz"))["status"] == "ready"
    assert json.loads(gateway.text("/v2/health/ready")) == {"ready": True}
    assert answer(gateway, hostile.v1("triple"), {"inputs": {"x": [[1, 2]]}})["outputs"] == {"y": [[3.0, 6.0]]}  # type: ignore[index]
    assert answer(gateway, hostile.v2("triple"), hostile.good_v2())["outputs"][0]["data"] == [4.5, -6.0]  # type: ignore[index]
