"""The last errors of deployments: whichever way they were called, bounded, and never in the way of a call; and scripts that are only tried."""

# ruff: noqa: F811 - fixtures are arguments
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from gateway.operations.deployment_errors import DeploymentErrors
from gateway.storage.deployment_errors import KEPT, CallError
from gateway.worker import deploying
from gateway.worker.task_runner import TaskRunner
from idl.codes import Code, ServingError
from tests.gateway.deployed_host import Deployed, deployed, users_host, within  # noqa: F401
from tests.gateway.deployed_rows import NOW, deployment, model, user
from tests.gateway.deployed_stage import Person, Stage, infer, predict, stage, staged  # noqa: F401
from tests.gateway.test_script_changes import BOTH, put
from tests.needs import boxed
from tests.onnx_models import times

WRONG = {"inputs": {"x": [["no number", 0]]}}


def errors(who: Person, name: str = "d", **query: Any) -> list[dict[str, Any]]:
    answer = who("GET", f"/v1/deployments/{name}/errors", query_string=query)
    assert answer.status_code == 200, answer.get_json()
    return list(answer.get_json()["items"])


def test_a_call_that_fails_is_told_of_with_its_id(stage: Stage) -> None:
    stage.deploy()
    assert isinstance(predict(stage.ann), dict) and errors(stage.ann) == []
    answer = stage.ann("POST", "/v1/deployments/d/predictions", WRONG, headers={"X-Request-Id": "abc-1"})
    assert answer.status_code == 400
    found = within(5, lambda: errors(stage.ann))
    assert [(one["request_id"], one["way"], one["code"]) for one in found] == [("abc-1", "/v1", "invalid_input")]
    assert found[0]["message"] == answer.get_json()["detail"] and found[0]["at"].endswith("Z")
    body = {"inputs": [{"name": "z", "datatype": "FP32", "shape": [1, 2], "data": [2, 0]}]}
    stage.ann("POST", "/v2/models/ann.d/infer", body, headers={"X-Request-Id": "abc-2"})
    form = {"user": "ann", "password": "correct horse battery", "modelname": "m", "deployment": "d", "filetype": "none", "input": "{"}
    assert stage.nobody.http.post("/predict", data=form, headers={"X-Request-Id": "abc-3"}).get_json()["status"] != "success"
    within(5, lambda: len(errors(stage.ann)) == 3)
    assert [(one["request_id"], one["way"]) for one in errors(stage.ann, limit=2)] == [("abc-3", "form"), ("abc-2", "/v2")]
    for verb, number in (("generate", 4), ("generate_stream", 5)):
        given = stage.ann("POST", f"/v2/models/ann.d/{verb}", {"x": "no number"}, headers={"X-Request-Id": f"abc-{number}"})
        assert given.status_code == 400
    within(5, lambda: [(one["request_id"], one["way"]) for one in errors(stage.ann, limit=2)] == [("abc-5", "/v2"), ("abc-4", "/v2")])
    stage.ann("PATCH", "/v1/deployments/d", {"desired_state": "paused"})
    stage.until("d", "paused")
    assert predict(stage.ann)[1] == "deployment_paused" and infer(stage.ann)[0] == 409
    within(5, lambda: [one["code"] for one in errors(stage.ann)[:2]] == ["deployment_paused"] * 2)


def test_who_may_see_them(stage: Stage) -> None:
    """Whoever changes it; and whoever is refused for who he is has not called it."""
    stage.deploy(visibility="public")
    assert stage.bob("GET", "/v1/deployments/ann.d/errors").status_code == 403
    assert stage.nobody("GET", "/v1/deployments/ann.d/errors").status_code == 401
    stage.ann("PATCH", "/v1/deployments/d", {"visibility": "private"})
    assert stage.bob("GET", "/v1/deployments/ann.d/errors").status_code == 404
    assert predict(stage.bob, "ann.d")[0] == 404 and infer(stage.nobody)[0] == 401
    assert stage.ann("GET", "/v1/deployments/d/errors?limit=0").status_code == 400
    stage.over.services.deployed.errors.close()
    assert errors(stage.ann) == []


def test_a_task_that_fails(deployed: Deployed, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = deploying.parts
    monkeypatch.setattr(deploying, "parts", lambda services, number: [TaskRunner(services, number), *parts(services, number)])
    with contextmanager(staged)(deployed, tmp_path, hot=True) as stage:
        stage.deploy()
        made = stage.ann("POST", "/v1/deployments/d/predictions", WRONG, headers={"Prefer": "respond-async"}).get_json()
        found = within(20, lambda: errors(stage.ann))
        assert [(one["request_id"], one["way"], one["code"]) for one in found] == [(made["id"], "task", "invalid_input")]


@pytest.fixture
def row(deployed: Deployed, tmp_path: Any) -> Iterator[tuple[Deployed, int]]:
    ann = user(deployed.storage, "ann")
    model_id, versions = model(deployed.storage, ann, "m", times(tmp_path / "2.onnx", 2))
    yield deployed, deployment(deployed.storage, ann, "d", model_id, versions[0]).id


def test_no_more_are_kept_than_may_be(row: tuple[Deployed, int]) -> None:
    over, number = row
    rows = over.storage.deployment_errors
    given = [CallError(f"2026-11-21T00:00:00.{place:06d}Z", f"r{place}", "/v1", "internal", "x") for place in range(KEPT + 7)]
    rows.add({number: given[:60], number + 1000: given})
    rows.add({number: given[60:]})
    assert [one.request_id for one in rows.last(number, 500)] == [one.request_id for one in reversed(given[7:])]
    assert rows.last(number + 1000, 1) == [], "of one that is gone none"
    assert rows.forget(NOW) == 0 and rows.forget(NOW + timedelta(days=90)) == KEPT


def test_of_a_storm_the_last_ones(row: tuple[Deployed, int], caplog: pytest.LogCaptureFixture) -> None:
    over, number = row
    noted = DeploymentErrors(over.storage, lambda: NOW)
    for place in range(500):
        with pytest.raises(ServingError), noted.noting(number, f"r{place}", "/v1"):
            raise ServingError(Code.MODEL_FAILED, "m" * 5000)
    with pytest.raises(ValueError, match="secret"), noted.noting(number, "last", "/v1"):
        raise ValueError("secret")
    noted.note(number, "stranger", "/v1", ServingError(Code.FORBIDDEN, "no"))
    noted.close()
    noted.close()
    found = noted.last(number, 500)
    assert len(found) == 20 and [one.request_id for one in found[:2]] == ["last", "r499"]
    assert (found[0].code, found[0].message) == ("internal", "the server made a mistake") and len(found[1].message) == 500
    noted.note(number, "late", "/v1", ServingError(Code.INTERNAL, "x"))
    noted.close()
    assert noted.last(number, 1)[0].request_id == "last", "nothing is begun that nobody waits for"


@boxed
def test_a_script_is_tried_and_nothing_of_it_is_kept(stage: Stage) -> None:
    stage.deploy()
    put(stage, "after", "def postprocess(outputs):\n    return {'after': outputs['y'] + 2}\n")
    stage.ann("PATCH", "/v1/deployments/d", {"script": {"name": "after"}})
    stage.until("d")
    body = {"inputs": {"x": [[2, 0]]}}
    asked = {"script": BOTH, "request": body}
    tried = stage.ann("POST", "/v1/deployments/d/script-trials", asked)
    assert tried.status_code == 200, tried.get_json()
    assert tried.get_json()["outputs"] == {"both": [[41, 1]]} and tried.get_json()["functions"] == ["preprocess", "postprocess"]
    assert predict(stage.ann)["outputs"] == {"after": [[6, 2]]}, "its calls go on as they were"
    assert not stage.over.ready("ann.d.try") and stage.over.storage.test_loads.all() == []
    for source, code, words in (
        ("def preprocess(inputs:\n", "invalid_input", "line 1"),
        ("def postprocess(outputs):\n    return 1 / 0\n", "model_failed", "line 2"),
        ("def preprocess(inputs):\n    return {'z': inputs['x']}\n", "model_failed", "'z'"),
    ):
        answer = stage.ann("POST", "/v1/deployments/d/script-trials", asked | {"script": source}).get_json()
        assert answer["code"] == code and words in answer["detail"], answer
    assert stage.over.storage.test_loads.all() == []
    checked = stage.ann("POST", "/v1/script-checks", headers={"Content-Type": "text/x-python"}, data=BOTH)
    assert checked.get_json() == {"functions": ["preprocess", "postprocess"]}
    refused = stage.ann("POST", "/v1/script-checks", headers={"Content-Type": "text/x-python"}, data="x = (\n")
    assert refused.status_code == 400 and "line 1" in refused.get_json()["detail"]
    assert stage.bob("POST", "/v1/deployments/ann.d/script-trials", asked).status_code == 404
    assert stage.ann("POST", "/v1/deployments/d/script-trials", asked | {"request": {"inputs": 3}}).status_code == 400
    names = [each["name"] for each in stage.ann("GET", "/v1/scripts").get_json()["items"]]
    assert names == ["after"]
