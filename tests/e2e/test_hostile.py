"""1,000 hostile bodies through everything: nginx, uWSGI, the gateway, the model host. No 500, no dead process, still ready."""

import json
import urllib.request
from urllib.parse import urlsplit

from tests.gateway import hostile
from tests.processes import Process, alive, descendants

SEED, COUNT = 20261122, 1000


def test_hostile_bodies_through_everything(stack: Process) -> None:
    address = urlsplit(stack["http"])
    assert address.hostname and address.port
    before = descendants(stack.process.pid)
    statuses = hostile.run(address.hostname, address.port, hostile.stream(SEED, COUNT, hostile.Targets(texts="text")))
    assert statuses.get("400", 0) > COUNT / 3 and "200" in statuses, statuses
    assert alive(before) == before, "a process died"
    with urllib.request.urlopen(f"{stack['http']}/readyz", timeout=30) as answer:
        assert json.load(answer)["status"] == "ready"
