"""The first page of somebody who is signed in: first steps until all are done, and what deployments did."""

import re
from pathlib import Path

import pytest
from flask import Flask

from gateway.context import Services
from gateway.storage.deployment_statistics import Counts, Seen
from gateway.types import Principal, Role
from tests.gateway import deployed_rows
from tests.onnx_models import times
from tests.pages.test_people import HOSTILE, Person


@pytest.fixture
def ann(app: Flask, services: Services) -> Person:
    return Person(app, services, "ann")


def steps(page: str) -> dict[str, str]:
    """Step -> where its button leads, "" without one; "done" for what is done."""
    found = {}
    for name, part in re.findall(r'data-step="(\w+)">(.*?)</li>', page, re.DOTALL):
        where = re.search(r'<a id="step-[^>]*href="([^"]+)"', part)
        found[name] = where[1] if where else "done" if 'aria-label="done"' in part else ""
    return found


def test_the_first_steps_are_ticked_one_by_one(ann: Person, services: Services, tmp_path: Path) -> None:
    storage, me = services.storage, Principal(ann.id, "ann", Role.USER)
    assert steps(ann.get("/ui").text) == {"upload": "/ui/models/new", "deploy": "", "call": ""}
    model_id, versions = deployed_rows.model(storage, me, "m", times(tmp_path / "m.onnx", 2))
    assert steps(ann.get("/ui").text) == {"upload": "done", "deploy": "/ui/deployments/new", "call": ""}
    made = deployed_rows.deployment(storage, me, "d", model_id, versions[0])
    assert steps(ann.get("/ui/home/now").text) == {"upload": "done", "deploy": "done", "call": "/ui/deployments/ann.d/try"}
    storage.deployments.called({made.id: services.now()})
    page = ann.get("/ui").text
    assert not steps(page) and 'href="/ui/deployments/ann.d"' in page and 'href="/ui/deployments?state=starting"' in page


def test_what_a_deployment_did(ann: Person, services: Services, tmp_path: Path) -> None:
    storage, me = services.storage, Principal(ann.id, "ann", Role.USER)
    model_id, versions = deployed_rows.model(storage, me, "m", times(tmp_path / "m.onnx", 2))
    made = deployed_rows.deployment(storage, me, "d", model_id, versions[0], reason=HOSTILE, state="failed")
    assert "no call" in ann.get("/ui").text
    counted = Counts(requests=1234, errors={"unavailable": 34})
    storage.deployment_statistics.take([Seen("h", "ann.d", "1", 1.0, made.id, counted)], services.now(), lambda known, now: now)
    page = ann.get("/ui").text
    assert "1,234 requests" in page and "34 failed" in page and page.count("<rect") == 1
    assert HOSTILE not in page and "&lt;script&gt;" in page


def test_what_others_have_is_not_here(ann: Person, services: Services, tmp_path: Path) -> None:
    bob = deployed_rows.user(services.storage, "bob")
    model_id, versions = deployed_rows.model(services.storage, bob, "m", times(tmp_path / "m.onnx", 2))
    deployed_rows.deployment(services.storage, bob, "secret-of-bob", model_id, versions[0])
    assert "secret-of-bob" not in ann.get("/ui").text
