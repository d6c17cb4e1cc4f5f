"""Lists of models, their versions, what is said of them, and what somebody wrote, as pages."""

import html
import re
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from gateway.context import Services
from gateway.pages import cards
from gateway.storage.audit import Doer
from gateway.storage.model_records import NewVersion
from gateway.types import Role
from tests.gateway.conftest import PASSWORD, SetClock
from tests.gateway.owners import Place
from tests.onnx_models import times
from tests.pages.test_frame import sign_in, token

MEASURED = {"memory_bytes": 2_000_000, "load_ms": 12.0, "latency": [{"batch": 1, "runs": 9, "p50_ms": 0.25, "p99_ms": 1.5}]}
X = {"name": "x", "type": "FP32", "shape": ["batch", 2], "range": None, "optype": "", "values": []}


class Writer:
    """Makes rows as uploads do."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def register(self, *names: str) -> None:
        for name in names:
            self.services.users.register(name, PASSWORD)

    def doer(self, owner: str) -> Doer:
        user = self.services.storage.users.by_name(owner)
        assert user is not None
        return Doer(user.id, user.name)

    def version(self, text: str = "a", kind: str = "onnx") -> NewVersion:
        sha256, size = self.services.storage.blobs.put([text.encode()], self.services.now())
        signature = {"inputs": [X], "outputs": [X | {"name": "<b>y"}]}
        facts = {"size_bytes": size, "warnings": ["slow"], "parameter_count": 1234567}
        return NewVersion(kind, sha256, size, "<i>file.onnx", signature, facts, MEASURED)

    def model(self, owner: str, name: str, *, kind: str = "onnx", tags: tuple[str, ...] = (), **values: Any) -> int:
        doer, now = self.doer(owner), self.services.now()
        assert doer.user_id is not None
        return self.services.storage.models.create(
            doer.user_id, {"name": name, **values}, tags, self.version(kind=kind), doer, now, 1 << 62
        ).id

    def add(self, owner: str, model_id: int, text: str) -> None:
        self.services.storage.models.add_version(model_id, self.version(text), self.doer(owner), self.services.now())


@pytest.fixture
def writer(services: Services) -> Writer:
    made = Writer(services)
    made.register("ann", "bob")
    return made


def names(page: str) -> list[str]:
    return re.findall(r'<tr data-model="[^.]+\.([^"]+)"', page)


def post(client: FlaskClient, path: str, **fields: Any) -> Any:
    return client.post(path, data={"form_token": token(client.get("/ui/account")), **fields})


def test_whose_models_are_listed(client: FlaskClient, services: Services, writer: Writer) -> None:
    writer.model("ann", "own")
    writer.model("bob", "secret")
    writer.model("bob", "open", visibility="public")
    team = services.storage.teams.create("t", writer.doer("bob").user_id or 0, services.now(), doer=writer.doer("bob"))
    services.storage.teams.set_member(team.id, writer.doer("ann").user_id or 0, "viewer", services.now(), writer.doer("bob"))
    writer.model("bob", "shared", visibility="team", team_id=team.id)
    assert client.get("/ui/models").status_code == 303
    sign_in(client)
    for show, found in (("mine", ["own"]), ("teams", ["shared"]), ("public", ["open"]), ("all", ["open", "own", "shared"]), ("x", ["own"])):
        assert names(client.get(f"/ui/models?show={show}").text) == found, show
    assert "No model yet" not in client.get("/ui/models").text
    shared = client.get("/ui/models?show=teams").text
    assert "/ui/models/bob/shared/edit" not in shared and "/delete" not in shared
    for path in ("", "/versions", "/about", "/edit", "/versions/new", "/result"):
        assert client.get(f"/ui/models/bob/secret{path}").status_code == 404
    assert client.get("/ui/models/bob/shared/about").status_code == 200
    assert client.get("/ui/models/bob/shared/edit").status_code == 403
    assert post(client, "/ui/models/bob/shared/delete").status_code == 403
    assert post(client, "/ui/models/bob/shared/edit", description="mine").status_code == 403


def test_searching_filtering_and_sorting(client: FlaskClient, writer: Writer, time_of_day: SetClock) -> None:
    writer.model("ann", "beta", tags=("x", "churn"), type="tabular")
    time_of_day.advance(60)
    writer.model("ann", "Alpha", kind="pmml", description="of 100% interest")
    time_of_day.advance(60)
    writer.model("ann", "gamma", visibility="public")
    sign_in(client)
    for query, found in (
        ("", ["Alpha", "beta", "gamma"]),
        ("order=-name", ["gamma", "beta", "Alpha"]),
        ("order=updated", ["beta", "Alpha", "gamma"]),
        ("order=-updated", ["gamma", "Alpha", "beta"]),
        ("order=drop+table", ["Alpha", "beta", "gamma"]),
        ("q=%25", ["Alpha"]),
        ("q=CHU", ["beta"]),
        ("tag=churn", ["beta"]),
        ("type=tabular", ["beta"]),
        ("format=pmml", ["Alpha"]),
        ("format=nonsense", ["Alpha", "beta", "gamma"]),
        ("visibility=public", ["gamma"]),
        ("q=nowhere", []),
    ):
        assert names(client.get(f"/ui/models?{query}").text) == found, query
    assert "Nothing fits" in client.get("/ui/models?q=nowhere").text
    piece = client.get("/ui/models?q=al", headers={"HX-Request": "true"})
    assert names(piece.text) == ["Alpha"] and "<html" not in piece.text
    assert 'aria-sort="descending"' in client.get("/ui/models?order=-updated").text


@pytest.mark.parametrize("order", ["name", "-name", "updated", "-updated"])
def test_pages_of_the_list_lead_on_and_back(client: FlaskClient, writer: Writer, order: str) -> None:
    """All in one moment: what is equal has an order as well."""
    for number in range(60):
        writer.model("ann", f"m{number:02}")
    sign_in(client)
    where, seen, before = f"/ui/models?order={order}", list[list[str]](), list[str]()
    while where:
        page = client.get(where).text
        seen.append(names(page))
        before += re.findall(r'rel="prev" href="([^"]+)"', page)
        where = html.unescape(next(iter(re.findall(r'rel="next" href="([^"]+)"', page)), ""))
    assert [len(each) for each in seen] == [25, 25, 10]
    flat = [name for each in seen for name in each]
    assert sorted(flat) == sorted(set(flat)) and len(flat) == 60
    assert flat == sorted(flat, reverse=order.startswith("-"))
    assert [names(client.get(html.unescape(each)).text) for each in before] == seen[:2]
    assert 'rel="prev"' not in client.get(html.unescape(before[0])).text
    for cursor in ("x", "W10", "WzEsMl0", "W251bGwsMV0"):
        assert client.get(f"/ui/models?after={cursor}").status_code == 400


def test_deleted_models_come_back(client: FlaskClient, services: Services, writer: Writer, time_of_day: SetClock) -> None:
    writer.model("ann", "m")
    sign_in(client)
    gone = post(client, "/ui/models/ann/m/delete")
    assert gone.headers["Location"] == "/ui/models?gone=ann.m"
    page = client.get("/ui/models?gone=ann.m").text
    assert "m is deleted." in page and 'action="/ui/models/ann/m/restore"' in page and names(page) == []
    assert "m is deleted." not in client.get("/ui/models?gone=bob.m").text
    time_of_day.advance(60)
    writer.model("ann", "m")
    post(client, "/ui/models/ann/m/delete")
    listed = client.get("/ui/models?show=deleted").text
    assert listed.count("/ui/models/ann/m/restore") == 1 and "one of the same name was deleted after it" in listed
    assert '<time datetime="2026-12-21T04:06:06' in listed
    assert post(client, "/ui/models/ann/m/restore").headers["Location"] == "/ui/models?restored=ann.m"
    assert "is there again." in client.get("/ui/models?restored=ann.m").text
    taken = post(client, "/ui/models/ann/m/restore")
    assert taken.status_code == 409 and "There is another model named m now." in taken.text
    stranger = client.application.test_client()
    sign_in(stranger, "bob")
    assert post(stranger, "/ui/models/ann/m/delete").status_code == 404
    assert post(stranger, "/ui/models/ann/m/restore").status_code == 404
    assert client.post("/ui/models/ann/m/delete").status_code == 403


def test_a_model_in_use_is_not_deleted(client: FlaskClient, services: Services, writer: Writer) -> None:
    model_id = writer.model("ann", "m")
    writer.add("ann", model_id, "b")
    first = services.storage.models.versions(model_id)[-1].id
    given = {"owner_id": writer.doer("ann").user_id, "name": "d", "model_id": model_id, "version_id": first, "desired_state": "paused"}
    services.storage.deployments.create({**given, "state": "paused"}, writer.doer("ann"), services.now())
    sign_in(client)
    used = post(client, "/ui/models/ann/m/delete")
    assert used.status_code == 409 and "deployments use it" in used.text and "/ui/deployments/ann.d" in used.text
    page = client.get("/ui/models/ann/m/versions").text
    assert "/ui/deployments/ann.d" in page and "versions/2/delete" in page and "versions/1/delete" not in page
    assert post(client, "/ui/models/ann/m/versions/1/delete").status_code == 409


def test_the_history_of_versions(client: FlaskClient, services: Services, writer: Writer) -> None:
    model_id = writer.model("ann", "m", visibility="public")
    for text in ("b", "c"):
        writer.add("ann", model_id, text)
    sign_in(client)
    page = client.get("/ui/models/ann/m/versions").text
    assert re.findall(r'data-version="(\d+)"', page) == ["3", "2", "1"]
    assert page.count("ann sent it") == 3 and "&lt;i&gt;file.onnx" in page and "&lt;b&gt;y" in page and "<b>y" not in page
    assert "2.0 MB" in page and "0.250 ms" in page and "1,234,567" in page and "slow" in page
    assert services.storage.models.versions(model_id)[0].sha256 in page
    deleted = post(client, "/ui/models/ann/m/versions/2/delete")
    assert deleted.headers["Location"] == "/ui/models/ann/m/versions?gone=2"
    page = client.get("/ui/models/ann/m/versions?gone=2").text
    assert "Version 2 is deleted." in page and page.count("versions/2/restore") == 2
    other = client.application.test_client()
    sign_in(other, "bob")
    seen = other.get("/ui/models/ann/m/versions").text
    assert re.findall(r'data-version="(\d+)"', seen) == ["3", "1"] and "/delete" not in seen and "upload-form" not in seen
    assert post(other, "/ui/models/ann/m/versions/1/delete").status_code == 403
    assert post(client, "/ui/models/ann/m/versions/2/restore").status_code == 303
    for number in ("2", "1"):
        post(client, f"/ui/models/ann/m/versions/{number}/delete")
    alone = post(client, "/ui/models/ann/m/versions/3/delete")
    assert alone.status_code == 409 and "it is the only one" in alone.text
    for wrong in ("/ui/models/ann/m/versions/9/restore", "/ui/models/ann/m/versions/x/delete"):
        assert post(client, wrong).status_code == 404
    assert client.get("/ui/models/ann/m/versions?before=x").status_code == 400


def test_changing_what_is_said(client: FlaskClient, services: Services, writer: Writer) -> None:
    writer.model("ann", "m")
    writer.model("ann", "other")
    sign_in(client)
    fields = {
        "name": "m2",
        "description": "two\r\nlines",
        "type": "t",
        "tags": "a，b, ,a",
        "visibility": "public",
        "team": "",
        "card": "# <b>Hi",
    }
    saved = post(client, "/ui/models/ann/m/edit", **fields, revision="1")
    assert saved.headers["Location"] == "/ui/models/ann/m2/about?saved=1"
    page = client.get(saved.headers["Location"]).text
    assert "It is saved." in page and "<h3>&lt;b&gt;Hi</h3>" in page and "two\nlines" in page
    found = services.storage.models.find("ann", "m2")
    assert found is not None and found.tags == ("a", "b") and found.visibility == "public"
    taken = post(client, "/ui/models/ann/m2/edit", **fields | {"name": "other"})
    assert (
        taken.status_code == 409
        and re.search(r'id="error-name">there is a model &#39;other&#39;', taken.text)
        and "open data-now" in taken.text
    )
    wrong = post(client, "/ui/models/ann/m2/edit", **fields | {"name": "a b", "type": "x" * 65, "visibility": "team", "tags": "y" * 41})
    assert wrong.status_code == 400
    assert all(f'id="error-{name}"' in wrong.text for name in ("name", "type", "tags")) and 'value="a b"' in wrong.text
    no_team = post(client, "/ui/models/ann/m2/edit", **fields | {"name": "m2", "visibility": "team"})
    assert 'id="error-team"' in no_team.text
    meanwhile = post(client, "/ui/models/ann/m2/edit", **fields | {"name": "m2", "type": "late"}, revision="1")
    assert meanwhile.status_code == 409 and "Somebody else has changed it meanwhile" in meanwhile.text and 'value="late"' in meanwhile.text
    piece = client.post(
        "/ui/models/ann/m2/edit",
        data={**fields, "name": "-", "form_token": token(client.get("/ui/account"))},
        headers={"HX-Request": "true"},
    )
    assert 'id="error-name"' in piece.text and "<html" not in piece.text and piece.headers["HX-Retarget"] == "#edit-form"
    again = re.search(r'name="revision" value="(\d+)"', meanwhile.text)
    assert again and post(client, "/ui/models/ann/m2/edit", **fields | {"name": "m2", "type": "late"}, revision=again[1]).status_code == 303


def test_an_editor_changes_all_but_name_and_sharing(client: FlaskClient, services: Services, writer: Writer) -> None:
    team = services.storage.teams.create("t", writer.doer("ann").user_id or 0, services.now(), doer=writer.doer("ann"))
    services.storage.teams.set_member(team.id, writer.doer("bob").user_id or 0, "editor", services.now(), writer.doer("ann"))
    writer.model("ann", "m", visibility="team", team_id=team.id)
    sign_in(client, "bob")
    page = client.get("/ui/models/ann/m/edit").text
    assert 'id="field-card"' in page and 'id="field-name"' not in page and 'id="field-visibility"' not in page
    assert post(client, "/ui/models/ann/m/edit", name="n", description="d", visibility="public").status_code == 303
    found = services.storage.models.find("ann", "m")
    assert found is not None and (found.description, found.visibility) == ("d", "team")


def test_hostile_names_and_queries_are_text(client: FlaskClient, writer: Writer) -> None:
    writer.model("ann", "m", description="<script>alert(1)</script>", type='"><img src=x>', tags=("<u>t</u>", "a&b"))
    sign_in(client)
    for path in ("/ui/models", "/ui/models/ann/m/about", "/ui/models/ann/m/edit", "/ui/models?q=%22%3E%3Cscript%3E&tag=%3Cb%3E"):
        page = client.get(path).text
        assert "<script>alert" not in page and "<img src=x" not in page and "<u>t" not in page and '"><script>' not in page, path
    assert "/ui/models?tag=a%26b" in client.get("/ui/models").text


def test_what_was_said_against_an_upload(client: FlaskClient, writer: Writer) -> None:
    sign_in(client)
    pickled = "a b.pkl is a pickle, which is code and is not loaded: make ONNX of it with outboard models convert FILE, where you trust it"
    said = post(client, "/ui/models/refusal", code="invalid_model", detail=pickled, file="a b.pkl", request_id="r-1")
    assert "outboard models convert &#39;a b.pkl&#39;</code>" in said.text and "r-1" in said.text and "<html" not in said.text
    taken = post(client, "/ui/models/refusal", code="already_exists", detail="name: there is a model 'm'")
    assert '<span hidden data-error-for="name">there is a model &#39;m&#39;</span>' in taken.text and "alert" not in taken.text
    fields = {"code": "invalid_input", "detail": "tags: x", "field.tags": "has 21 entries, it must have 0 to 20"}
    chinese = client.post(
        "/ui/models/refusal", data={**fields, "form_token": token(client.get("/ui/account"))}, headers={"Accept-Language": "zh"}
    )
    assert "须为 0 到 20 项" in chinese.text
    odd = post(client, "/ui/models/refusal", code="x", detail="<b>broken")
    assert "&lt;b&gt;broken" in odd.text and client.post("/ui/models/refusal").status_code == 403


def test_what_was_found_out_about_a_model_that_has_just_come(place: Place, tmp_path: Path) -> None:
    client = place.ann.client
    assert place.ann.upload(times(tmp_path / "m.onnx", 3), name="m")[0] == 201
    sign_in(client)
    result = client.get("/ui/models/ann/m/result").text
    assert "m, version 1, was tried and is there." in result and "[batch, 2]" in result and "/ui/deployments/new?model=ann.m" in result


def test_administrators_and_operators(client: FlaskClient, services: Services, writer: Writer) -> None:
    writer.model("bob", "secret")
    ann = services.storage.users.by_name("ann")
    assert ann is not None
    services.storage.users.change(
        ann.id, services.now(), role=Role.OPERATOR, disabled=None, quota=None, revision=None, doer=writer.doer("ann")
    )
    sign_in(client)
    assert names(client.get("/ui/models?show=all").text) == ["secret"] and names(client.get("/ui/models").text) == []
    assert client.get("/ui/models/bob/secret/about").status_code == 200
    assert client.get("/ui/models/bob/secret/edit").status_code == 403


@pytest.mark.parametrize(
    ("text", "there", "not_there"),
    [
        ("# A", "<h3>A</h3>", "<h1"),
        ("###### A", "<h6>A</h6>", "<h8"),
        ("<script>x</script>", "&lt;script&gt;", "<script"),
        ("a\n\n<div onclick=x>\n\n<style>", "&lt;div onclick=x&gt;", "<div onclick"),
        ("[a](javascript:x)", "a</a>", "href"),
        (
            "[a](JaVaScRiPt:x) <javascript:x> [b](&#106;avascript:x) [c](data:text/html,x) [d](//e) [e](vbscript:x) [f](\\\\e)",
            "d</a>",
            "href",
        ),
        ('[a](https://e.org "x\\"y")', 'href="https://e.org" title="x&quot;y" rel="nofollow noopener noreferrer"', "target"),
        ("[a]\n\n[a]: javascript:x", "a</a>", "href"),
        ("![a <b>](https://e.org/x.png)", '<span class="card-picture">a &lt;b&gt;</span>', "<img"),
        ("![](https://e.org/x.png)![x](data:image/png;base64,a)", '<span class="card-picture">x</span>', "e.org"),
        ("|a|\n|--:|\n|1|", '<div class="table-wide" tabindex="0">', "style"),
        ('```py" onclick="x\n<b>\n```', "<pre tabindex=", "onclick"),
        ("[" * 20_000, "<pre>[[", "<p>"),
    ],
)
def test_cards(text: str, there: str, not_there: str) -> None:
    made = cards.html_of(text)
    assert there in made and not_there not in made
