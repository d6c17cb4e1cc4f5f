"""Alive, ready, and why not."""

import sqlite3
from collections.abc import Sequence

import pytest
from flask.testing import FlaskClient

from gateway.context import Services
from gateway.operations.health import readiness, shown_address
from gateway.settings import Settings
from gateway.storage import Storage

Host = tuple[str, bool, str]
UP: Host = ("thrift://b:9090", True, "")
DOWN: Host = ("thrift+unix:///srv/run/thrift.sock", False, "nobody listens")


def test_alive(client: FlaskClient) -> None:
    answer = client.get("/livez")
    assert answer.status_code == 200 and answer.get_json() == {"status": "alive"}
    assert client.head("/livez").status_code == 200


def test_not_ready_without_a_model_host(client: FlaskClient) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 503 and answer.headers["Cache-Control"] == "no-store"
    body = answer.get_json()
    assert body["status"] == "not_ready"
    database, host = body["checks"]
    assert database == {"kind": "database", "name": "database", "ready": True, "reason": ""}
    assert (host["kind"], host["name"], host["ready"]) == ("model_host", "thrift://127.0.0.1:1", False)
    assert host["reason"] and "/" not in host["reason"]


@pytest.mark.parametrize(("hosts", "ready"), [([UP], True), ([DOWN], False), ([UP, DOWN], True), ([DOWN, DOWN], False), ([], False)])
def test_one_ready_host_is_enough(services: Services, hosts: Sequence[Host], ready: bool) -> None:
    state = readiness(services.storage, lambda timeout_s: hosts, 1.0)
    assert state.ready is ready
    assert [check.ready for check in state.checks] == [True, *(host[1] for host in hosts)]


def test_not_ready_while_the_database_takes_no_writes(settings: Settings) -> None:
    storage = Storage(settings.state_dir, busy_timeout_s=0.05)
    assert readiness(storage, lambda timeout_s: [UP], 1.0).ready
    other = sqlite3.connect(settings.state_dir / "outboard.db", isolation_level=None)
    other.execute("begin immediate")
    state = readiness(storage, lambda timeout_s: [UP], 1.0)
    other.close()
    assert not state.ready and state.checks[0].reason == "the database is busy"
    assert readiness(storage, lambda timeout_s: [UP], 1.0).ready
    storage.close()


def test_an_address_is_shown_without_its_folder() -> None:
    assert shown_address("thrift+unix:///srv/data/run/thrift.sock") == "thrift+unix://thrift.sock"
    assert shown_address("thrift://10.0.0.1:9090") == "thrift://10.0.0.1:9090"
