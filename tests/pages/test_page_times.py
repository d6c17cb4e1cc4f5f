"""What a page costs where very much is there: processor time of the request, which is what a server that is alone needs."""

import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask.testing import FlaskClient

from gateway.storage.audit import Doer
from tests.e2e.pages.examples import ADMINISTRATORS, PIECES, examples, rules
from tests.gateway.owners import Place
from tests.onnx_models import times
from tests.pages.many import fill
from tests.pages.test_frame import sign_in

ROUNDS = 7
MOST_MS = 50.0
NOT_HERE = ("/ui/<path:anything>", "/ui/sign-in/openid", "/ui/sign-in/openid/back")
"""The page that says so, and what needs an OpenID provider."""


@pytest.fixture
def full(place: Place, tmp_path: Path) -> Iterator[tuple[FlaskClient, Any]]:
    """The browser of ann, who has very much, and what examples are made of."""
    ann = place.ann
    assert ann.upload(times(tmp_path / "2.onnx", 2), name="m")[0] == 201
    assert ann("POST", "/v1/deployments", json={"name": "d", "model": "m", "version": 1})[0] == 201
    body = {"inputs": {"x": [[3, 0]]}}
    status, task = ann("POST", "/v1/deployments/d/predictions", json=body, headers={"Prefer": "respond-async"})
    assert status == 202, task
    status, batch = ann("POST", "/v1/batches", data={"deployment": "d", "file": (io.BytesIO(b"a,b\n1,2\n"), "rows.csv")})
    assert status == 202, batch
    status, hook = ann("POST", "/v1/webhooks", json={"url": "https://example.com/hook", "events": ["task.expired"]})
    assert status == 201 and ann("POST", "/v1/teams", json={"name": "crew"})[0] == 201, hook
    storage = place.services.storage
    record = storage.deployments.find("ann", "d")
    assert record is not None
    kept, _ = storage.blobs.put([b"{}"], place.services.now())
    storage.golden.pin(record.id, "d", kept, "application/json", kept, Doer(record.owner_id, "ann"), place.services.now(), 1)
    fill(storage, "ann")
    browser = place.ann.client
    assert sign_in(browser, "ann").status_code == 303
    yield browser, SimpleNamespace(owner=SimpleNamespace(name="ann"), task=task["id"], batch=batch["id"], webhook=hook["id"])


def test_every_page_is_quick_where_very_much_is_there(full: tuple[FlaskClient, Any], place: Place) -> None:
    browser, things = full
    known = examples(things) | {"/ui/dialogue": "/ui/dialogue"}  # the demo model is not there
    values = {
        "name": "d",
        "owner": "ann",
        "task_id": things.task,
        "batch_id": things.batch,
        "webhook_id": things.webhook,
        "request_name": "d",
    }
    slow: dict[str, float] = {}
    everything = [*rules(place.services.settings), *PIECES]
    is_theirs = {rule: rule in ADMINISTRATORS or rule.startswith("/ui/admin/") for rule in everything}
    for rule in sorted(everything, key=lambda rule: is_theirs[rule]):
        if is_theirs[rule]:  # from here on ann is an administrator
            with place.services.storage.database.write() as db:
                db.execute("update users set role = 'administrator' where name = 'ann'")
        if rule.startswith(("/ui/static", "/ui/avatars", "/ui/idl")):
            continue
        values["name"] = "m" if rule.startswith("/ui/models") else "d"
        path = known.get(rule) or re.sub(r"<(?:\w+:)?(\w+)>", lambda match: values[match[1]], rule)
        took = []
        for _ in range(ROUNDS):
            began = time.thread_time()
            answer = browser.get(path)
            took.append(1000 * (time.thread_time() - began))
            assert answer.status_code < 400 or rule in NOT_HERE, (path, answer.status)
        if (typical := sorted(took)[ROUNDS // 2]) > MOST_MS:
            slow[path] = typical
    assert not slow
