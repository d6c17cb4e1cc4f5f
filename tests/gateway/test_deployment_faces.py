"""What stands around a deployment: its scripts, golden requests and statistics, and the form API."""

# ruff: noqa: F401, F811 - fixtures are imported, and then are arguments
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.gateway.conftest import PASSWORD
from tests.gateway.deployed_host import deployed, users_host, within
from tests.gateway.deployed_stage import Stage, plain, predict, stage
from tests.needs import need_box

SCRIPT = """
def preprocess(inputs):
    return {"x": inputs["rows"] + 1}


def postprocess(outputs):
    return {"largest": float(outputs["y"].max())}
"""
POSTPROCESS = "def postprocess(outputs):\n    return {'sum': float(outputs['y'].sum())}\n"


def test_golden_requests(plain: Stage) -> None:
    ann = plain.ann
    plain.deploy()
    pinned = ann.made("/v1/deployments/d/golden?name=big", {"inputs": {"x": [[1000, 1]]}})
    assert pinned["outputs"] == {"y": [[2000, 2]]}
    assert ann("POST", "/v1/deployments/d/golden?name=big", {"inputs": {"x": [[1, 1]]}}).status_code == 409
    form = {"x": "[[3, 4]]"}
    assert ann("POST", "/v1/deployments/d/golden?name=form", data=form).status_code == 201
    assert [entry["name"] for entry in ann("GET", "/v1/deployments/d/golden").get_json()["items"]] == ["big", "form"]
    assert ann("GET", "/v1/deployments/d/golden/form").get_json()["outputs"] == {"y": [[6, 8]]}
    ann("PATCH", "/v1/deployments/d", {"version": 3})
    refused = plain.until("d")
    assert refused["version"] == refused["serving_version"] == 1
    assert refused["reason"].startswith("version 3 was refused: golden request 'big': output 'y' differs by 1.5 at element 0")
    assert predict(ann)["version"] == "1"
    ann("PATCH", "/v1/deployments/d", {"version": 2})
    assert plain.until("d")["serving_version"] == 2
    ann("PATCH", "/v1/deployments/d", {"version": 3, "golden_tolerance": 10})
    assert plain.until("d")["serving_version"] == 3
    for name in ("big", "form"):
        assert ann("DELETE", f"/v1/deployments/d/golden/{name}").status_code == 204
    assert ann("DELETE", "/v1/deployments/d/golden/big").status_code == ann("GET", "/v1/deployments/d/golden/big").status_code == 404


def scripted(stage: Stage, source: str, name: str = "s") -> Any:
    need_box()
    return stage.ann("POST", f"/v1/scripts?name={name}", data=source, content_type="text/x-python")


def test_a_script_stands_around_predictions(stage: Stage) -> None:
    ann = stage.ann
    made = scripted(stage, SCRIPT)
    assert made.status_code == 201 and made.get_json()["functions"] == ["preprocess", "postprocess"]
    stage.deploy(script={"name": "s"})
    assert stage.until("d")["script"] == {"name": "s", "version": 1, "functions": ["preprocess", "postprocess"]}

    def asked(body: Any) -> Any:
        answer = ann("POST", "/v1/deployments/d/predictions", body)
        return answer.get_json()["outputs"] if answer.status_code == 200 else (answer.status_code, answer.get_json()["detail"])

    assert asked({"inputs": {"rows": [[1, 4]]}}) == {"largest": 10}
    tensor = {"name": "rows", "datatype": "INT64", "shape": [1, 2], "data": [1, 4]}
    over_v2 = ann("POST", "/v2/models/ann.d/infer", {"inputs": [tensor]})
    assert [(output["name"], output["data"]) for output in over_v2.get_json()["outputs"]] == [("largest", [10.0])]
    assert asked({"inputs": {"x": [[1, 4]]}})[0] == 500 and "KeyError" in asked({"inputs": {"x": [[1, 4]]}})[1]
    assert asked({"inputs": {"rows": [1, 4]}}) == (
        500,
        "the script's preprocess gave 'x' of shape [2], and the model takes [-1, 2] (-1: any size)",
    )
    assert asked({"inputs": {"rows": [[1, 4]]}, "outputs": ["y"]})[0] == 400
    new = ann("POST", "/v1/scripts/s/versions", data=POSTPROCESS, content_type="text/plain")
    assert new.status_code == 201 and new.get_json()["version"] == 2
    assert asked({"inputs": {"rows": [[1, 4]]}}) == {"largest": 10}, "it keeps its version"
    ann("PATCH", "/v1/deployments/d", {"script": {"name": "s", "version": 2}})
    stage.until("d")
    assert asked({"inputs": {"x": [[1, 4]]}}) == {"sum": 10} and asked({"columns": ["a", "b"], "data": [[1, 4], [2, 2]]}) == {"sum": 18}
    assert ann("DELETE", "/v1/scripts/s").status_code == 409
    ann("PATCH", "/v1/deployments/d", {"script": None})
    stage.until("d")
    assert asked({"inputs": {"x": [[1, 4]]}}) == {"y": [[2, 8]]}


def test_a_script_that_never_ends_harms_nobody(plain: Stage) -> None:
    assert scripted(plain, "def postprocess(outputs):\n    while True: pass\n").status_code == 201
    plain.deploy(script={"name": "s"})
    plain.deploy("other")
    with ThreadPoolExecutor(2) as pool:
        looping = pool.submit(predict, plain.ann)
        started = time.monotonic()
        assert predict(plain.ann, "other")["outputs"] == {"y": [[4, 0]]} and time.monotonic() - started < 3
        assert looping.result(30) == (500, "model_failed")


def test_scripts(plain: Stage) -> None:
    ann = plain.ann
    assert scripted(plain, SCRIPT).headers["Location"] == "/v1/scripts/s"
    assert scripted(plain, SCRIPT).status_code == 409
    wrong = scripted(plain, "def preprocess(inputs:\n", "t")
    assert wrong.status_code == 400 and "line 1" in wrong.get_json()["detail"]
    assert scripted(plain, "x = 1\n", "t").status_code == 400 and scripted(plain, "", "t").status_code == 400
    again = ann("POST", "/v1/scripts/s/versions", data={"script": (io.BytesIO(SCRIPT.encode()), "s.py")})
    assert again.status_code == 201 and again.get_json()["version"] == 1, "the same source is the same version"
    ann("POST", "/v1/scripts/s/versions", data=POSTPROCESS, content_type="text/plain")
    assert [entry["version"] for entry in ann("GET", "/v1/scripts/s/versions").get_json()["items"]] == [2, 1]
    assert ann("GET", "/v1/scripts/s/versions/1/source").get_data(as_text=True) == SCRIPT
    assert ann("GET", "/v1/scripts/s/versions/3/source").status_code == 404
    read = ann("GET", "/v1/scripts/s")
    assert (read.get_json()["version"], read.get_json()["functions"]) == (2, ["postprocess"])
    assert ann("PATCH", "/v1/scripts/s", {"description": "sums"}, headers={"If-Match": '"99"'}).status_code == 412
    assert ann("PATCH", "/v1/scripts/s", {"description": "sums"}).get_json()["description"] == "sums"
    assert [entry["name"] for entry in ann("GET", "/v1/scripts").get_json()["items"]] == ["s"]
    assert plain.bob("GET", "/v1/scripts/s").status_code == 404 and plain.bob("GET", "/v1/scripts").get_json()["items"] == []
    assert ann("DELETE", "/v1/scripts/s").status_code == 204 and ann("GET", "/v1/scripts/s").status_code == 404


def test_statistics(plain: Stage) -> None:
    plain.deploy()
    for _ in range(5):
        predict(plain.ann)
    assert predict(plain.ann, value="text")[0] == 400  # type: ignore[arg-type]
    told = within(10, lambda: (found := plain.ann("GET", "/v1/deployments/d/stats").get_json())["total"]["requests"] >= 5 and found)
    assert told["span"] == "minute" and told["total"]["requests"] == 5 and sum(point["requests"] for point in told["points"]) == 5
    assert 0 < told["total"]["latency_ms"]["p50"] <= told["total"]["latency_ms"]["p99"] and told["total"]["memory"] > 0
    assert plain.ann("GET", "/v1/deployments/d/stats?span=hour").get_json()["total"]["requests"] == 5
    assert plain.ann("GET", "/v1/deployments/d/stats?from=2020-01-01T00:00:00Z&to=2020-01-02T00:00:00Z").get_json()["points"] == []
    for wrong in ("span=day", "from=yesterday", "from=2020-01-01", "other=1"):
        assert plain.ann("GET", f"/v1/deployments/d/stats?{wrong}").status_code == 400, wrong


class FormUser:
    """What a client of 2020 does: nothing but paths and form fields."""

    def __init__(self, http: FlaskClient) -> None:
        self.http = http

    def __call__(self, method: str, path: str, **fields: Any) -> Any:
        given = {"user": "ann", "password": PASSWORD, "modelname": "m", "deployment": "f", **fields}
        sent = {"query_string": given} if method in ("GET", "DELETE") else {"data": given}
        answer = self.http.open(path, method=method, **sent)
        assert answer.status_code == 200 or answer.get_json()["status"] == "invalid parameter", answer.get_data()
        return answer.get_json()


def test_the_form_api(plain: Stage) -> None:
    form = FormUser(plain.nobody.http)
    assert form("POST", "/createdeployment", time="2020-02-02", cpu="0.5", memory="64MiB") == {"status": "success"}
    assert form("POST", "/createdeployment")["status"] == "duplication"
    assert form("POST", "/createdeployment", deployment="g", modelname="none")["status"] == "model not found"
    assert form("POST", "/createdeployment", deployment="g", memory="900TiB")["status"] == "insufficient capacity"
    assert form("POST", "/createdeployment", deployment="g", memory="512")["status"] == "invalid parameter"
    assert form("POST", "/createdeployment", deployment="g", password="wrong password")["status"] == "invalid password"
    assert form("POST", "/createdeployment", deployment="g", user="nobody")["status"] == "user not found"
    asked = {"filetype": "none", "input": json.dumps({"x": [[2, 0]]})}
    assert form("POST", "/predict", **asked)["output"] == {"y": [[10, 0]]}, "the newest version, which it waits for"
    plain.until("f")
    assert form("GET", "/getmodeldeployment")["deployment"] == [{"deployment": "f", "status": "running", "time": "2020-02-02"}]
    assert form("GET", "/getmodeldeployment", modelname="none")["status"] == "model not found"
    assert form("POST", "/predict", filetype="none", input="{}")["status"] == "invalid input"
    assert form("POST", "/predict", deployment="none", **asked)["status"] == "deployment not found"
    many = form("POST", "/predict", filetype="csv", input=(io.BytesIO(b"x\n"), "a.csv"))
    assert many["status"] == "invalid input"
    told = within(10, lambda: (found := form("GET", "/getdeploymentstatus"))["requests"] and found)
    assert (
        (told["status"], told["state"], told["errors"]) == ("success", "running", 0)
        and told["p99"] >= told["p50"] > 0
        and told["memory"] > 0
    )
    for path in ("/settaskstatuspause", "/setdeploymentstatuspause"):
        assert form("POST", path) == {"status": "success"}
        assert form("POST", "/predict", **asked)["status"] == "deployment paused"
        assert form("POST", path, deployment="none")["status"] == "deployment not found"
        assert form("POST", "/setdeploymentstatusrunning") == {"status": "success"}
        assert form("POST", "/predict", **asked)["status"] == "success"
        plain.until("f")
    source = form("POST", "/uploadscript", script=(io.BytesIO(POSTPROCESS.encode()), "s.py"))
    if source["status"] == "success":
        plain.until("f")
        assert form("POST", "/predict", **asked)["output"] == {"sum": 10}
        assert form("POST", "/uploadscript", script=(io.BytesIO(b"def x(:"), "s.py"))["status"] == "invalid script"
    assert form("DELETE", "/deletedeployment") == {"status": "success"}
    assert form("DELETE", "/deletedeployment")["status"] == "deployment not found"
    assert form("GET", "/getdeploymentstatus")["status"] == "deployment not found"
