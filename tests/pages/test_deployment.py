"""The pages of one deployment: its figures and last errors, its script, and how it is called."""

import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from gateway.context import Services
from gateway.operations import host_counters
from gateway.pages import deployment_script, script_templates
from gateway.pages.deployment import instances
from gateway.pages.signatures import Signature, Tensor
from gateway.storage.deployment_errors import CallError
from gateway.storage.deployment_statistics import Counts, Seen
from gateway.storage.deployments import DeploymentRecord
from gateway.types import Principal
from idl.board import BUCKETS_S
from tests.gateway.conftest import PASSWORD
from tests.gateway.deployed_rows import DOER, deployment, model
from tests.onnx_models import times
from tests.pages.test_frame import sign_in, token

EVIL = '<img src=x onerror="alert(1)">'


@pytest.fixture
def made(client: FlaskClient, services: Services, tmp_path: Path) -> DeploymentRecord:
    """Ann's deployment `d`, which runs; she is signed in."""
    services.users.register("ann", PASSWORD)
    services.users.register("bob", PASSWORD)
    kept = services.storage.users.by_name("ann")
    assert kept is not None
    ann = Principal(kept.id, kept.name, kept.role)
    model_id, versions = model(services.storage, ann, "m", times(tmp_path / "2.onnx", 2))
    sign_in(client)
    return deployment(services.storage, ann, "d", model_id, versions[0], state="running", observed_generation=1)


def kept_script(services: Services, record: DeploymentRecord, *sources: str, name: str = "d") -> None:
    for source in sources:
        sha256, _ = services.storage.blobs.put([source.encode()], services.now())
        services.storage.scripts.put(
            record.owner_id, name, None, sha256, ["preprocess"], replace(DOER, user_id=record.owner_id), services.now(), new=False
        )


def test_figures_and_last_errors(client: FlaskClient, services: Services, made: DeploymentRecord) -> None:
    page = client.get("/ui/deployments/ann.d").text
    assert "No call yet" in page and "No call has failed." in page
    latency = [0, 0, 97, *[0] * (len(BUCKETS_S) - 2)]
    seen = Seen("h", "ann.d", "1", 1.0, made.id, Counts(100, {"invalid_input": 3}, latency, 10**9, 0, 0, 5_000_000))
    services.storage.deployment_statistics.take([seen], services.now(), host_counters.grown)
    services.storage.deployment_errors.add(
        {made.id: [CallError("2026-11-21T00:00:00.000000Z", f"id-{way}", way, "invalid_input", EVIL) for way in ("/v1", "task")]}
    )
    page = client.get("/ui/deployments/ann.d?range=15m").text
    figures = re.findall(r'data-figure="(\w+)">([^<]+)<', page)
    assert figures == [("requests", "100"), ("errors", "3.0 %"), ("p95", figures[2][1]), ("memory", "5.0 MB")]
    assert 1 < float(figures[2][1].split()[0]) <= 2.5
    assert EVIL not in page and html.escape(EVIL, quote=False)[:8] in page
    assert "<code>id-/v1</code>" in page and 'href="/ui/tasks/id-task"' in page
    assert '"true">15 min' in page and '"true">1 hour' in client.get("/ui/deployments/ann.d?range=%3Cb%3E").text
    piece = client.get("/ui/deployments/ann.d/failed", headers={"HX-Request": "true"}).text
    assert "<html" not in piece and "id-task" in piece


def test_who_sees_what(client: FlaskClient, services: Services, made: DeploymentRecord) -> None:
    """Of others' things nothing; of public ones the figures, and neither errors nor scripts."""
    services.storage.deployment_errors.add({made.id: [CallError("2026-11-21T00:00:00Z", "id-1", "/v1", "internal", "secret")]})
    bob = client.application.test_client()
    sign_in(bob, "bob")
    tabs = ("", "/failed", "/try", "/use", "/script")
    assert [bob.get(f"/ui/deployments/ann.d{tab}").status_code for tab in tabs] == [404] * 5
    services.storage.deployments.change(made.id, {"visibility": "public"}, DOER, services.now())
    assert [bob.get(f"/ui/deployments/ann.d{tab}").status_code for tab in tabs] == [200, 200, 200, 200, 403]
    page = bob.get("/ui/deployments/ann.d").text
    assert "secret" not in page and "Last errors" not in page
    fields = {"form_token": token(bob.get("/ui")), "source": "x", "name": "d"}
    for path in ("script", "script/use", "script/delete"):
        assert bob.post(f"/ui/deployments/ann.d/{path}", data=fields).status_code == 403


def test_instances_in_words(client: FlaskClient, services: Services, made: DeploymentRecord) -> None:
    assert instances(made) == "1"
    services.storage.deployments.change(made.id, {"min_instances": 1, "max_instances": 4}, DOER, services.now())
    assert "1 of 1–4" in client.get("/ui/deployments/ann.d").text


def test_a_script_is_shown_compared_used_and_taken_off(client: FlaskClient, services: Services, made: DeploymentRecord) -> None:
    page = client.get("/ui/deployments/ann.d/script").text
    assert 'name="name" value="d"' in page and "Choose a template" in page and "Compare" not in page
    kept_script(services, made, "a = 1\nb = 2\n", "a = 1\n# </textarea><b>x</b>\n")
    page = client.get("/ui/deployments/ann.d/script").text
    assert "not in use" in page and "&lt;/textarea&gt;&lt;b&gt;" in page and "</textarea><b>" not in page
    compared = client.get("/ui/deployments/ann.d/script?before=1&after=2").text
    assert re.findall(r'<tr class="(\w+)"><td>(\d*)</td><td>(\d*)</td><td>(.)</td>', compared) == [
        ("removed", "2", "", "-"),
        ("added", "", "2", "+"),
    ]
    assert client.get("/ui/deployments/ann.d/script?version=9").status_code == 404
    fields = {"form_token": token(client.get("/ui")), "name": "d"}
    where = client.post("/ui/deployments/ann.d/script/use", data=fields | {"version": "1"}).headers["Location"]
    assert where == "/ui/deployments/ann.d/script?name=d&version=1"
    page = client.get(where).text
    assert "this version is in use" in page and "b = 2" in page
    refused = client.post("/ui/deployments/ann.d/script/delete", data=fields)
    assert refused.status_code == 409 and "&#39;d&#39; uses the script" in refused.text
    client.post("/ui/deployments/ann.d/script/use", data=fields)
    found = services.storage.deployments.by_id(made.id)
    assert found is not None and found.script_version_id is None
    assert client.post("/ui/deployments/ann.d/script/delete", data=fields).status_code == 303
    assert services.storage.scripts.of_owner(made.owner_id, "d") is None


def test_what_was_typed_is_kept_where_it_cannot_be_saved(client: FlaskClient, made: DeploymentRecord) -> None:
    """No model host is there to look at it."""
    fields = {"form_token": token(client.get("/ui")), "name": "mine", "source": "x = '<b>'\r\ny = 2", "use": "1"}
    answer = client.post("/ui/deployments/ann.d/script", data=fields)
    assert answer.status_code == 503 and "x = &#39;&lt;b&gt;&#39;\ny = 2</textarea>" in answer.text
    assert 'name="name" value="mine"' in answer.text and 'role="status" hidden' not in answer.text.split('id="script-said"')[1][:80]


@pytest.mark.parametrize("labelled", ["", "p"])
def test_every_template_is_python_with_the_models_names(client: FlaskClient, labelled: str) -> None:
    tensors = Tensor("it's", "FP32", ("n", 3, 32, 32)), Tensor("p", "FP32", ("n", 10))
    with client.application.test_request_context():
        for signature in (None, Signature((tensors[0],), (tensors[1],), labelled)):
            for each in script_templates.templates(signature):
                names: dict[str, Any] = {}
                exec(compile(each.source.replace("from outboard_model import InvalidInput", ""), each.key, "exec"), names)  # noqa: S102
                assert {"preprocess", "postprocess"} & names.keys() and "INPUT" not in each.source and "OUTPUT" not in each.source
                assert signature is None or "'p'" in each.source or '"it\'s"' in each.source or each.key == "both"


def test_a_comparison_leaves_out_what_is_equal() -> None:
    before = [str(number) for number in range(40)]
    after = [*before[:20], "new", *before[21:]]
    lines = list(deployment_script.compare(before, after))
    assert [(line.sign, line.before, line.after) for line in lines if line.sign in "+-"] == [("-", 21, None), ("+", None, 21)]
    assert len(lines) == 9 and lines[0].sign == "…" and list(deployment_script.compare(after, after)) == []


def test_a_comparison_of_what_is_long_takes_no_time() -> None:
    """Equal lines in another order, thousands of times, are what difflib takes minutes for."""
    before, after = ["a", "b"] * 2000, ["c", "b"] * 2000
    lines = list(deployment_script.compare(before, after))
    assert [line.sign for line in lines] == ["-"] * 3999 + ["+"] * 3999 + [" "], "the last line is the same"
    assert lines[-1] == deployment_script.Line(" ", 4000, 4000, "b") and lines[3999] == deployment_script.Line("+", None, 1, "c")
    far = ["x", *map(str, range(3900)), "y"]
    changed = [*far[:-2], "new", far[-1]]
    assert [(line.sign, line.text) for line in deployment_script.compare(far, changed) if line.sign in "+-"] == [
        ("-", "3899"),
        ("+", "new"),
    ]


@pytest.mark.parametrize(
    ("kind", "burst", "interval_s", "path", "fields"),
    [
        ("deployments", 60, 2.0, "/ui/deployments/new", {"model": "m", "name": "n", "instances": "1", "visibility": "private"}),
        ("scripts", 30, 2.0, "/ui/deployments/ann.d/script", {"name": "n", "source": "x = 1"}),
        ("keys", 200, 10.0, "/ui/deployments/ann.d/use/key", {"days": "30"}),
    ],
)
def test_pages_have_the_rates_of_v1(
    client: FlaskClient,
    services: Services,
    made: DeploymentRecord,
    kind: str,
    burst: int,
    interval_s: float,
    path: str,
    fields: dict[str, str],
) -> None:
    key, now = f"rate {kind} user {made.owner_id}", services.now().timestamp()
    for _ in range(burst):
        assert services.storage.attempts.take(key, now, burst=burst, interval_s=interval_s) == 0
    answer = client.post(path, data=fields | {"form_token": token(client.get("/ui"))})
    assert answer.status_code == 429 and f"too many requests of this kind ({kind})" in answer.text


def test_a_key_is_shown_once(client: FlaskClient, services: Services, made: DeploymentRecord) -> None:
    page = client.get("/ui/deployments/ann.d/use").text
    assert "export TOKEN=YOUR_KEY" in page and "/v1/deployments/ann.d/predictions" in page
    fields = {"form_token": token(client.get("/ui")), "days": "30"}
    answer = client.post("/ui/deployments/ann.d/use/key", data=fields)
    found = re.search(r"export TOKEN=(obk_\w+[\w-]*)", answer.text)
    assert found and answer.status_code == 200 and answer.headers["Cache-Control"] == "no-store"
    stranger = client.application.test_client()
    key = {"Authorization": f"Bearer {found[1]}"}
    assert stranger.get("/v1/deployments/ann.d", headers=key).status_code == 403, "it is for calls, and for nothing else"
    assert found[1] not in client.get("/ui/deployments/ann.d/use").text
    kept = services.storage.api_keys.page(made.owner_id, None, 5)
    assert [(each.name, list(each.scopes), bool(each.expires_at)) for each in kept] == [("deployment ann.d", ["call"], True)]
    assert client.post("/ui/deployments/ann.d/use/key", data={"days": "30"}).status_code == 403


def test_the_form_to_try_it(client: FlaskClient, services: Services, made: DeploymentRecord) -> None:
    page = client.get("/ui/deployments/ann.d/try").text
    assert 'data-try="/v1/deployments/ann.d/predictions"' in page and '"open"' not in page
    kept_script(services, made, "x = 1")
    version = services.storage.scripts.version(1, 1)
    assert version is not None
    change = {"script_version_id": version.id, "serving_script_id": version.id}
    services.storage.deployments.change(made.id, change, DOER, services.now())
    page = client.get("/ui/deployments/ann.d/try").text
    assert '"open": true' in html.unescape(page) and "The script takes the inputs" in page
    services.storage.deployments.change(made.id, {"desired_state": "paused", "state": "paused"}, DOER, services.now())
    assert "It is paused" in client.get("/ui/deployments/ann.d/try").text


def test_a_pages_script_calls_a_deployment_with_its_cookie(client: FlaskClient, services: Services, made: DeploymentRecord) -> None:
    """As the form to try it does; no model host is there to answer."""
    body = {"inputs": {"x": [[1, 2]]}}
    header = {"X-Form-Token": token(client.get("/ui"))}
    for address in ("/v1/deployments/ann.d/predictions", "/v1/models/m/predictions"):
        assert client.post(address, json=body, headers=header).status_code == 503, address
        assert client.post(address, json=body).status_code == 403, "a page of another site has no such token"
        assert client.application.test_client().post(address, json=body).status_code in (401, 503)
