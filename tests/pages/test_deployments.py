"""The list of deployments, making one, and its settings."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from gateway.context import Services
from gateway.operations import golden, host_counters
from gateway.pages.refusals import Refusal, refusal
from gateway.storage.deployment_statistics import Counts, Seen
from gateway.storage.deployments import DeploymentRecord
from gateway.types import Principal
from idl.board import BUCKETS_S
from idl.codes import Code, ServingError
from idl.messages import Capacity, HostModel
from tests.gateway.conftest import PASSWORD
from tests.gateway.deployed_rows import DOER, deployment, doer, model
from tests.onnx_models import times
from tests.pages.test_frame import sign_in, token

PART = {"HX-Request": "true"}
CHINESE = {"Accept-Language": "zh"}


class Owners:
    """Ann, who is signed in, and Bob, both with a model `m` of two versions."""

    def __init__(self, client: FlaskClient, services: Services, folder: Path) -> None:
        self.client, self.services = client, services
        self.ann, self.bob = (self._person(name) for name in ("ann", "bob"))
        files = [times(folder / f"{factor}.onnx", factor) for factor in (2, 5)]
        self.models = {each.name: model(services.storage, each, "m", *files) for each in (self.ann, self.bob)}
        sign_in(client)
        self.token = token(client.get("/ui"))

    def _person(self, name: str) -> Principal:
        made = self.services.users.register(name, PASSWORD)
        return Principal(made.id, made.name, made.role)

    def has(self, owner: Principal, name: str, **values: Any) -> DeploymentRecord:
        model_id, versions = self.models[owner.name]
        settled = {"observed_generation": 1, "serving_version_id": versions[0], "state": "running"}
        return deployment(self.services.storage, owner, name, model_id, versions[0], **(settled | values))

    def now(self, record: DeploymentRecord) -> DeploymentRecord:
        found = self.services.storage.deployments.by_id(record.id)
        assert found is not None
        return found

    def send(self, path: str, headers: Any = None, **fields: str) -> TestResponse:
        return self.client.post(path, data={"form_token": self.token, **fields}, headers=headers)


@pytest.fixture
def owners(client: FlaskClient, services: Services, tmp_path: Path) -> Owners:
    return Owners(client, services, tmp_path)


def names(page: TestResponse) -> list[str]:
    """Of the deployments in a list, in their order."""
    return re.findall(r'href="/ui/deployments/[a-z]+\.([\w-]+)">', page.text)


# the list ------------------------------------------------------------------------------------------------------------------------


def test_who_sees_what(owners: Owners) -> None:
    owners.services.storage.teams.create("t", owners.bob.user_id, owners.services.now())
    team = owners.services.storage.teams.by_name("t")
    assert team is not None
    owners.services.storage.teams.set_member(team.id, owners.ann.user_id, "viewer", owners.services.now(), DOER)
    assert "No deployment yet" in owners.client.get("/ui/deployments").text
    owners.has(owners.ann, "mine")
    owners.has(owners.bob, "secret")
    owners.has(owners.bob, "shared", visibility="team", team_id=team.id)
    owners.has(owners.bob, "open", visibility="public")
    for whose, wanted in {"": ["mine"], "teams": ["shared"], "public": ["open"], "all": ["open", "shared", "mine"], "x": ["mine"]}.items():
        assert names(owners.client.get(f"/ui/deployments?whose={whose}")) == wanted, whose
    page = owners.client.get("/ui/deployments?whose=all").text
    assert "/ui/deployments/ann.mine/turn" in page and "/ui/deployments/bob.open/turn" not in page
    assert 'data-delete="/ui/deployments/ann.mine"' in page and 'data-delete="/ui/deployments/bob.shared"' not in page


def test_search_state_and_order(owners: Owners) -> None:
    for name, state, called in (("beta", "running", "2026-11-21T02"), ("Alpha", "paused", ""), ("gamma", "failed", "2026-11-21T09")):
        owners.has(owners.ann, name, state=state, last_call_at=f"{called}:00:00Z" if called else None)
    for query, wanted in {
        "q=ALPH": ["Alpha"],
        "q=ann.g": ["gamma"],
        "q=m": ["gamma", "Alpha", "beta"],
        "q=%25": [],
        "state=failed": ["gamma"],
        "state=nonsense": ["gamma", "Alpha", "beta"],
        "sort=name": ["Alpha", "beta", "gamma"],
        "sort=oldest": ["beta", "Alpha", "gamma"],
        "sort=called": ["gamma", "beta", "Alpha"],
        "sort=;drop": ["gamma", "Alpha", "beta"],
    }.items():
        assert names(owners.client.get(f"/ui/deployments?{query}")) == wanted, query
    assert "Nothing is like that" in owners.client.get("/ui/deployments?q=zzz").text
    hostile = owners.client.get("/ui/deployments?q=%22%3E%3Cb%3E&after=~~1&before=x~y").text
    assert "<b>" not in hostile


@pytest.mark.parametrize("order", ["newest", "oldest", "name", "called"])
def test_pages_lead_on_and_back(owners: Owners, order: str) -> None:
    for number in range(45):
        owners.has(owners.ann, f"d{number * 7 % 45:02}", last_call_at=f"2026-11-21T00:00:{number % 3:02}Z" if number % 4 else None)
    seen, where, pages = [], f"/ui/deployments?sort={order}", []
    while where:
        page = owners.client.get(where)
        pages.append(names(page))
        seen += pages[-1]
        following = re.search(r'rel="next" href="([^"]+)"', page.text)
        where = html.unescape(following[1]) if following else ""
    assert [len(each) for each in pages] == [20, 20, 5] and len(set(seen)) == 45
    for expected in (pages[1], pages[0]):
        before = re.search(r'rel="prev" href="([^"]+)"', page.text)
        assert before
        page = owners.client.get(html.unescape(before[1]))
        assert names(page) == expected
    assert 'rel="prev"' not in page.text and 'rel="next"' in page.text


def test_what_each_did_in_the_last_hour(owners: Owners) -> None:
    record = owners.has(owners.ann, "d")
    latency = [0, 0, 97, *[0] * (len(BUCKETS_S) - 2)]
    seen = Seen("h", "ann.d", "1", 1.0, record.id, Counts(1200, {"invalid_input": 3}, latency, 10**9))
    owners.services.storage.deployment_statistics.take([seen], owners.services.now(), host_counters.grown)
    page = owners.client.get("/ui/deployments").text
    assert "1,200" in page and "3 failed" in page and re.search(r"\d ms", page)


def test_what_is_asked_for_again_is_a_piece(owners: Owners) -> None:
    owners.has(owners.ann, "d", reason="why it is so")
    piece = owners.client.get("/ui/deployments?q=d", headers=PART)
    assert "<html" not in piece.text and names(piece) == ["d"] and 'hx-get="/ui/deployments?q=d"' in piece.text
    assert "why it is so" in piece.text
    again = owners.client.get("/ui/deployments?q=d", headers=PART | {"HX-History-Restore-Request": "true"})
    assert "<html" in again.text, "Back shows a whole page"


def test_starting_pausing_and_deleting(owners: Owners) -> None:
    record = owners.has(owners.ann, "d")
    assert owners.client.post("/ui/deployments/ann.d/turn", data={"desired": "paused"}).status_code == 403
    assert owners.now(record).desired_state == "running"
    answer = owners.send("/ui/deployments/ann.d/turn", desired="paused", next="/ui/deployments?q=d")
    assert answer.headers["Location"] == "/ui/deployments?q=d" and owners.now(record).desired_state == "paused"
    piece = owners.send("/ui/deployments/d/turn", PART, desired="running")
    assert (piece.status_code, piece.headers["HX-Trigger"]) == (204, "changed") and owners.now(record).desired_state == "running"
    away = owners.send("/ui/deployments/ann.d/delete", next="https://evil.example/")
    assert away.headers["Location"] == "/ui/deployments" and owners.now(record).state == "deleting"
    page = owners.client.get("/ui/deployments").text
    assert "being deleted" in page and "/turn" not in page


@pytest.mark.parametrize(("visibility", "status"), [("private", 404), ("public", 403)])
def test_what_is_somebody_elses(owners: Owners, visibility: str, status: int) -> None:
    record = owners.has(owners.bob, "d", visibility=visibility)
    for path in ("settings", "settings/now", "settings/fit", "golden", "golden/x"):
        assert owners.client.get(f"/ui/deployments/bob.d/{path}").status_code == status, path
    for path in ("turn", "delete", "settings/size", "settings/sharing", "settings/golden", "settings/nothing"):
        fields = {"desired": "paused", "instances": "9", "visibility": "public", "verb": "remove", "name": "x"}
        assert owners.send(f"/ui/deployments/bob.d/{path}", **fields).status_code in (status, 404), path
    assert owners.now(record) == record
    assert owners.client.get("/ui/deployments/bob.d/now").status_code == (404 if status == 404 else 200)


# making one ----------------------------------------------------------------------------------------------------------------------


def test_a_deployment_is_made(owners: Owners) -> None:
    page = owners.client.get("/ui/deployments/new?model=m").text
    assert 'value="m"' in page and "v2 · the newest" in page and re.search(r'name="name"[^>]*value="m"', page)
    fields = {"model": "m", "version": "1", "name": "new", "instances": "2", "min_instances": "1", "max_instances": "4"}
    answer = owners.send("/ui/deployments/new", sleep_after_s="1.5", visibility="private", team="", paused="1", **fields)
    assert answer.headers["Location"] == "/ui/deployments/ann.new", answer.text
    made = owners.services.storage.deployments.find("ann", "new")
    assert made is not None and (made.version, made.instances, made.min_instances, made.max_instances) == (1, 2, 1, 4)
    assert (made.sleep_after_s, made.desired_state, made.cpus, made.memory, made.visibility) == (90, "paused", None, None, "private")


def test_what_is_wrong_stands_beside_its_field(owners: Owners) -> None:
    owners.has(owners.ann, "taken")
    wrong = {
        "name": ("no dots.", "must have 1 to 64 letters"),
        "instances": ("0", "must be a whole number from 1 to 1024"),
        "cpus": ("many", "must be a number from 0.01 to 4096"),
        "memory": ("nan", "must be a number of MiB"),
        "sleep_after_s": ("1e99", "must be a number of minutes"),
        "version": ("x", "must be a whole number"),
    }
    answer = owners.send("/ui/deployments/new", model="m", **{name: text for name, (text, _) in wrong.items()})
    assert answer.status_code == 400
    for name, (text, reason) in wrong.items():
        assert re.search(rf'id="error-(?:field-)?{name}">{re.escape(reason)}', answer.text), (name, answer.text)
        assert name == "version" or f'value="{text}"' in answer.text, name
    fields = {"model": "m", "name": "taken", "instances": "1"}
    assert re.search(r'id="error-name">there is a deployment &#39;taken&#39;', owners.send("/ui/deployments/new", **fields).text)
    assert re.search(r'id="error-model">there is no model', owners.send("/ui/deployments/new", **fields | {"model": "bob.m"}).text)
    assert re.search(
        r'id="error-field-version">.*version 9', owners.send("/ui/deployments/new", **fields | {"name": "n", "version": "9"}).text
    )
    assert re.search(r'id="error-name">已有部署', owners.send("/ui/deployments/new", CHINESE, **fields).text)
    low = owners.send("/ui/deployments/new", **fields | {"min_instances": "5", "max_instances": "2"})
    assert "is 5, above max_instances, which is 2" in low.text and "<details" in low.text and " open>" in low.text


def test_what_there_is_no_room_for(owners: Owners, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    host = Capacity(
        4.0, 8 * gib, 8 * gib, 0, (), (), cpus_reserved=2.5, cpus_free=1.5, memory_reserved_bytes=6 * gib, memory_free_bytes=2 * gib
    )
    monkeypatch.setattr(services.models, "capacities", lambda timeout_s: [("host:1", host)])
    fields = {"model": "m", "name": "big", "instances": "2", "cpus": "1", "memory": "512"}
    answer = owners.send("/ui/deployments/new", **fields)
    said = "it would reserve 2 cores and 1.00 GiB of memory, and the model host has 1.5 cores and 2.00 GiB of memory free"
    assert answer.status_code == 507 and said in answer.text and 'id="error-capacity"' in answer.text
    assert "需要预留 2 核和 1.00 GiB 内存" in owners.send("/ui/deployments/new", CHINESE, **fields).text
    fit = owners.client.get("/ui/deployments/fit?model=m&instances=2&cpus=1&memory=512").text
    assert "1.5 of 4 free" in fit and "this would reserve 2: more than is free" in fit and "this reserves 1.1 GB" in fit
    assert owners.send("/ui/deployments/new", **fields | {"cpus": "0.5"}).status_code == 303
    strange = owners.client.get("/ui/deployments/fit?model=bob.m&version=-&instances=inf&cpus=x&memory=-3")
    assert strange.status_code == 200 and "this" not in strange.text.partition("Without")[0]


def test_what_is_free_says_nothing_of_others(owners: Owners, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    owners.has(owners.bob, "private")
    theirs = HostModel("bob.private", "1", "READY", 0, 0, 2.5, 6 << 30)
    host = Capacity(4.0, 8 << 30, 8 << 30, 0, (), (theirs,), 2.5, 1.5, 6 << 30, 2 << 30)
    monkeypatch.setattr(services.models, "capacities", lambda timeout_s: [("10.0.0.7:9000", host), ("10.0.0.8:9000", host)])
    fit = owners.client.get("/ui/deployments/fit?model=m&deployment=bob.private").text
    assert fit.count("1.5 of 4 free") == 2 and "Free on host 1" in fit and "Free on host 2" in fit and "10.0.0" not in fit
    assert owners.client.get("/ui/deployments/bob.private/settings/fit").status_code == 404


def test_the_model_is_found_while_one_types(owners: Owners) -> None:
    assert owners.client.get("/ui/deployments/new/models?model=m").text.count("<option") == 1, "not Bob's"
    piece = owners.client.get("/ui/deployments/new/versions?model=m")
    assert piece.text.count("<option") == 2 and piece.headers["HX-Trigger-After-Swap"] == "fit"
    assert "You have no model of this name" in owners.client.get("/ui/deployments/new/versions?model=bob.m").text


# settings ------------------------------------------------------------------------------------------------------------------------


def test_each_part_is_saved_by_itself(owners: Owners) -> None:
    record = owners.has(owners.ann, "d")
    owners.services.storage.teams.create("t", owners.ann.user_id, owners.services.now())
    changes: tuple[tuple[str, dict[str, str], dict[str, Any]], ...] = (
        ("version", {"version": "2"}, {"version": 2, "check_golden": 1}),
        ("version", {"verb": "back"}, {"version": 1}),
        ("canary", {"version": "2", "percent": "25"}, {"canary_version": 2, "canary_percent": 25}),
        ("canary", {"verb": "promote"}, {"version": 2, "canary_version": None}),
        ("canary", {"version": "1", "percent": "0"}, {"canary_version": 1, "canary_percent": 0}),
        ("canary", {"verb": "back"}, {"version": 2, "canary_version": None}),
        ("size", {"instances": "3", "cpus": "", "memory": ""}, {"instances": 3, "cpus": None}),
        ("scaling", {"min_instances": "2", "max_instances": "6", "sleep_after_s": "10"}, {"min_instances": 2, "sleep_after_s": 600}),
        ("scaling", {}, {"min_instances": None, "max_instances": None, "sleep_after_s": None}),
        ("golden", {"golden_tolerance": "0.5"}, {"golden_tolerance": 0.5}),
        ("sharing", {"visibility": "team", "team": "t"}, {"visibility": "team", "team": "t"}),
        ("sharing", {"visibility": "private", "team": "t"}, {"visibility": "private", "team": None}),
    )
    for part, fields, expected in changes:
        answer = owners.send(f"/ui/deployments/ann.d/settings/{part}", PART, **fields)
        assert answer.status_code == 200 and ("Saved" in answer.text) == (part not in ("version", "canary"))
        assert answer.headers["HX-Trigger"] == "changed", part
        assert "<html" not in answer.text and f'id="part-{part}"' in answer.text
        now = owners.now(record)
        assert {name: getattr(now, name) for name in expected} == expected, part
    plain = owners.send("/ui/deployments/d/settings/size", instances="1")
    assert plain.headers["Location"] == "/ui/deployments/ann.d/settings#part-size"


def test_what_a_part_refuses(owners: Owners) -> None:
    record = owners.has(owners.ann, "d")
    refused: tuple[tuple[str, dict[str, str], int, str], ...] = (
        ("size", {"instances": ""}, 400, 'id="error-instances">is missing'),
        *(
            ("canary", {"version": "2", "percent": percent}, 400, 'id="error-percent">must be a whole number from 0 to 100')
            for percent in ("101", "0000001000", "²", "9" * 5000)
        ),
        ("canary", {"version": "1", "percent": "5"}, 400, 'id="error-canary-version">is 1, which is the version that serves'),
        ("canary", {"verb": "promote"}, 409, "has no canary"),
        ("version", {"verb": "back"}, 409, "neither a canary nor an earlier version"),
        ("version", {"version": "7"}, 404, "does not have version 7"),
        ("sharing", {"visibility": "team"}, 400, "visibility team needs one"),
        ("sharing", {"visibility": "public", "team": "others"}, 400, "no team that you are an owner or editor of"),
        ("golden", {"verb": "remove", "name": "<b>"}, 404, "there is no golden request &#39;&lt;b&gt;&#39;"),
        ("nothing", {}, 404, "Request"),
    )
    for part, fields, status, said in refused:
        for headers in (PART, {}):
            answer = owners.send(f"/ui/deployments/ann.d/settings/{part}", headers, **fields)
            assert answer.status_code == status and said in answer.text, (part, answer.text)
            assert ("<html" in answer.text) == (headers != PART)
    assert owners.now(record) == record


def test_pinned_requests_are_listed_shown_and_removed(owners: Owners) -> None:
    record, storage = owners.has(owners.ann, "d"), owners.services.storage
    request, answer = (storage.blobs.put([text], owners.services.now())[0] for text in (b"{}", json.dumps({"y": [["<b>", 4]]}).encode()))
    storage.golden.pin(record.id, "first", request, "application/json", answer, doer(owners.ann), owners.services.now(), 10)
    page = owners.client.get("/ui/deployments/ann.d/settings").text
    assert "first" in page and 'hx-get="/ui/deployments/ann.d/golden/first"' in page
    assert owners.client.get("/ui/deployments/ann.d/golden/first").text.count("&lt;b&gt;") == 1
    assert owners.client.get("/ui/deployments/ann.d/golden/other").status_code == 404
    owners.send("/ui/deployments/ann.d/settings/golden", verb="remove", name="first")
    assert storage.golden.of(record.id) == []


def test_why_a_version_was_refused(owners: Owners) -> None:
    """In the words that the operations have for it."""
    differs = golden.difference({"y": [4.0, 1]}, {"y": [10.0, 1]}, 0.001)
    notice = f"version 2 was refused: golden request 'first': {differs} (tolerance 0.001)"
    assert refusal(notice) == Refusal("2", "first", f"{differs} (tolerance 0.001)", "y", "1.5", "0", "10", "4", "0.001")
    texts = refusal(f"version 3 was refused: golden request 'a': {golden.difference({'y': ['no']}, {'y': ['<b>']}, 0)} (tolerance 0)")
    assert texts is not None and (texts.by, texts.was, texts.now) == ("", "'no'", "'<b>'")
    shape = refusal(f"version 3 was refused: golden request 'a': {golden.difference({'y': [1]}, {'y': [1, 2]}, 0)} (tolerance 0)")
    assert shape is not None and not shape.output and "has shape [2], and had [1]" in shape.reason
    assert refusal("version 4 was refused: it does not load") == Refusal("4", "", "it does not load")
    assert refusal("something else") is None
    owners.has(owners.ann, "d", notice=notice, reason="it is short of memory")
    piece = owners.client.get("/ui/deployments/ann.d/settings/now").text
    assert "Version 2 was refused; version 1 goes on" in piece and "<strong>1.5</strong> (0.001 is allowed)" in piece
    head = owners.client.get("/ui/deployments/ann.d/now?tab=overview").text
    assert "Version 2 was refused" in head and "it is short of memory" in head and "/ui/deployments/ann.d/settings" in head
    assert "版本 2 被拒绝" in owners.client.get("/ui/deployments/ann.d/settings/now", headers=CHINESE).text


def test_a_model_that_is_gone_is_no_link(owners: Owners) -> None:
    owners.has(owners.ann, "d")
    assert 'href="/ui/models/ann/m"' in owners.client.get("/ui/deployments").text
    owners.services.library.delete(owners.ann, "m", DOER, used=True)
    for path in ("/ui/deployments", "/ui/deployments/ann.d/settings"):
        page = owners.client.get(path)
        assert page.status_code == 200 and 'href="/ui/models/ann/m"' not in page.text


def test_a_host_that_is_away_is_no_error(owners: Owners, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    owners.has(owners.ann, "d")
    monkeypatch.setattr(services.models, "capacities", lambda timeout_s: [("host:1", ServingError(Code.UNAVAILABLE, "away"))])
    assert "No model host says now" in owners.client.get("/ui/deployments/ann.d/settings/fit").text
