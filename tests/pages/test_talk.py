"""Whom the page of a dialogue offers, and what it shows of them."""

import re
from dataclasses import replace
from typing import Any

import pytest
from flask.testing import FlaskClient

from gateway.context import Services
from gateway.operations import dialogues
from gateway.operations.dialogues import Spec
from gateway.operations.host_models import HostModel, HostModels
from gateway.storage.deployments import PAUSED, RUNNING
from gateway.types import Principal, Role
from idl.messages import ModelMetadata, TensorSpec
from tests.gateway.deployed_rows import NOW, deployment, doer
from tests.pages.test_frame import register, sign_in


def model_of(services: Services, owner: Principal, name: str, given: str = "BYTES", taken: str = "BYTES") -> tuple[int, int]:
    """The ids of a model with such a signature, and of its version."""
    from gateway.storage.model_records import NewVersion

    signature = {
        "inputs": [{"name": "q", "type": given, "shape": [-1, 1]}],
        "outputs": [{"name": "a", "type": taken, "shape": [1]}],
    }
    sha256, size = services.storage.blobs.put([name.encode()], NOW)
    version = NewVersion("onnx", sha256, size, "model.onnx", signature, {}, {})
    made = services.storage.models.create(owner.user_id, {"name": name}, (), version, doer(owner), NOW, 100)
    return made.id, services.storage.models.versions(made.id)[0].id


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> list[HostModel]:
    """The operators' models."""
    found: list[HostModel] = []
    monkeypatch.setattr(HostModels, "listed", lambda self, *_: found)
    return found


@pytest.fixture
def ann(client: FlaskClient, services: Services, hosts: list[HostModel]) -> Principal:
    register(services)
    register(services, "bob")
    sign_in(client)
    return person(services, "ann")


def person(services: Services, name: str) -> Principal:
    found = services.storage.users.by_name(name)
    assert found is not None
    return Principal(found.id, found.name, Role.USER)


def host_model(name: str = "dialogue", *, public: bool = True, given: str = "BYTES") -> HostModel:
    sides = (TensorSpec("text_input", given, (1,)),), (TensorSpec("text_output", "BYTES", (1,)),)
    return HostModel(name, "1", public, "says <b>hello</b>", ModelMetadata(name, ("1",), "python", *sides))


def offered(page: str) -> list[str]:
    return re.findall(r'<option value="([^"]+)"[^>]*>', page.partition('id="field-with"')[2].partition("</select>")[0])


def test_what_takes_a_text_and_gives_one_can_be_talked_to() -> None:
    text, number = Spec("q", "BYTES", (1,)), Spec("n", "FP32", (1,))
    answer = Spec("a", "BYTES", (-1, 1))
    assert dialogues.names_of([text], [number, answer]) == ("q", "a")
    assert dialogues.names_of([replace(text, shape=(-1, 1))], [answer]) == ("q", "a")
    assert dialogues.names_of([replace(text, shape=("n", 1))], [answer]) == ("q", "a")
    for inputs, outputs in (([number], [answer]), ([text], [number]), ([text, number], [answer]), ([replace(text, shape=(2,))], [answer])):
        assert dialogues.names_of(inputs, outputs) is None


def test_ones_own_public_ones_and_the_operators(client: FlaskClient, services: Services, ann: Principal, hosts: list[HostModel]) -> None:
    bob = person(services, "bob")
    texts, numbers = model_of(services, ann, "texts"), model_of(services, ann, "numbers", taken="FP32")
    deployment(services.storage, ann, "mine", *texts, state=RUNNING)
    deployment(services.storage, ann, "paused", *texts, desired_state=PAUSED, state=PAUSED)
    deployment(services.storage, ann, "numbers", *numbers, state=RUNNING)
    theirs = model_of(services, bob, "theirs")
    deployment(services.storage, bob, "open", *theirs, state=RUNNING, visibility="public")
    deployment(services.storage, bob, "hidden", *theirs, state=RUNNING)
    hosts += [host_model(), host_model("pictures", given="UINT8")]
    page = client.get("/ui/dialogue").text
    assert offered(page) == ["ann.mine", "ann.paused", "bob.open", "dialogue"]
    assert "ann.paused (paused)" in page and 'data-name="ann.mine"' in page, "one's own that runs comes first"
    assert 'data-anyone="no"' in page and 'data-question="q"' in page and 'data-answer="a"' in page
    other = client.get("/ui/dialogue?with=bob.open").text
    assert 'data-name="bob.open"' in other and 'data-anyone="yes"' in other
    demo = client.get("/ui/dialogue?with=dialogue").text
    assert 'data-question="text_input"' in demo and "What is Outboard?" in demo and "&lt;b&gt;hello" in demo and "<b>hello" not in demo
    for name in ("bob.hidden", "ann.numbers", "<script>"):
        gone = client.get("/ui/dialogue", query_string={"with": name})
        assert (
            gone.status_code == 404
            and "that you can talk to" in gone.text
            and 'id="talk"' not in gone.text
            and "<script>" not in gone.text.partition("<body>")[2]
        )


def test_one_with_a_script_is_asked_as_a_whole(client: FlaskClient, services: Services, ann: Principal, monkeypatch: Any) -> None:
    from tests.gateway.deployed_rows import script

    number = script(services.storage, ann, "s", "def preprocess(x): return x", "preprocess")
    deployment(services.storage, ann, "mine", *model_of(services, ann, "texts"), state=RUNNING, script_version_id=number)
    page = client.get("/ui/dialogue").text
    assert 'data-streams="no"' in page and "answers all at once" in page


def test_nobody_to_talk_to(client: FlaskClient, ann: Principal) -> None:
    page = client.get("/ui/dialogue")
    assert page.status_code == 200 and "Nobody to talk to yet" in page.text and "talk.js" not in page.text


def test_strangers_sign_in_first(client: FlaskClient) -> None:
    assert client.get("/ui/dialogue?with=dialogue").headers["Location"] == "/ui/sign-in?next=/ui/dialogue%3Fwith%3Ddialogue"


def test_many_deployments_cost_one_question_each_side(client: FlaskClient, services: Services, ann: Principal, monkeypatch: Any) -> None:
    """The signatures of all of them are one statement."""
    texts = model_of(services, ann, "texts")
    for number in range(20):
        deployment(services.storage, ann, f"d{number}", *texts, state=RUNNING)
    asked: list[Any] = []
    real = services.storage.models.versions_by_id

    def counted(self: Any, ids: Any) -> Any:
        asked.append(ids)
        return real(ids)

    monkeypatch.setattr(type(services.storage.models), "versions_by_id", counted)
    assert len(offered(client.get("/ui/dialogue").text)) == 20 and asked == [{texts[1]}]
