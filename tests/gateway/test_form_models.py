"""The form API on models, as a client of 2020 used it: fields, files, and `status`."""

# ruff: noqa: F811 - fixtures are arguments
import io
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.storage.incoming import Incoming
from tests.gateway.conftest import PASSWORD
from tests.gateway.deployed_host import deployed, users_host  # noqa: F401
from tests.gateway.owners import Person, Place, fivefold, place, triple  # noqa: F401

DONE = (200, {"status": "success"})


def model(path: Path) -> Any:
    return (io.BytesIO(path.read_bytes()), path.name)


def upload(person: Person, path: Path, name: str = "m", **more: Any) -> tuple[int, Any]:
    return person.form("POST", "/uploadmodel", modelname=name, modeltype="numbers", description="Thrice.", model=model(path), **more)


def test_a_models_whole_life(place: Place, triple: Path, fivefold: Path) -> None:
    assert upload(place.ann, triple) == DONE
    assert upload(place.ann, triple)[1]["status"] == "duplication"
    status, info = place.ann.form("GET", "/getmodelinfo", modelname="m")
    assert status == 200 and info["status"] == "success" and info["modelname"] == "m" and info["modeltype"] == "numbers"
    assert info["engine"] == "onnxruntime" and info["algorithm"] and info["description"] == "Thrice." and info["time"].endswith("Z")
    assert info["input"] == [{"name": "x", "type": "FP32", "range": None, "dimension": ["batch", 2], "optype": ""}]
    assert info["output"][0]["name"] == "y"
    listed = place.ann.form("GET", "/getusermodel")[1]["model"]
    assert [(entry["modelname"], entry["modeltype"]) for entry in listed] == [("m", "numbers")] and listed[0]["time"] == info["time"]
    everything = place.ann.form("GET", "/getmodellist")[1]["model"]
    assert [(entry["modelname"], entry["owner"]) for entry in everything] == [("triple", None), ("m", "ann")]
    assert [entry["modelname"] for entry in place.bob.form("GET", "/getmodellist")[1]["model"]] == ["triple"]
    status, answer = place.ann.form("POST", "/testmodel", modelname="m", filetype="none", input='{"x": [1, 2]}')
    assert (status, answer) == (200, {"status": "success", "output": {"y": [[3, 6]]}})
    rows = (io.BytesIO(b"a,b\n1,2\n3,4\n"), "rows.csv")
    assert place.ann.form("POST", "/testmodel", modelname="m", filetype="csv", input=rows)[1]["output"] == {"y": [[3, 6], [9, 12]]}
    kinds = json.dumps({"x": "none"})
    assert place.ann.form("POST", "/testmodel", modelname="m", filetype=kinds, inputfile_x="[1, 2]")[1]["output"] == {"y": [[3, 6]]}
    assert place.ann.form("POST", "/modifymodel", modelname="m", newname="n", description="Fivefold.", model=model(fivefold)) == DONE
    assert place.ann.form("GET", "/getmodelinfo", modelname="m")[1]["status"] == "model not found"
    assert place.ann.form("GET", "/getmodelinfo", modelname="n")[1]["description"] == "Fivefold."
    assert place.ann.form("POST", "/testmodel", modelname="n", filetype="none", input='{"x": [1, 2]}')[1]["output"] == {"y": [[5, 10]]}
    assert place.ann.form("DELETE", "/deletemodel", modelname="n") == DONE
    assert place.ann.form("DELETE", "/deletemodel", modelname="n") == (
        200,
        {"status": "model not found", "message": "there is no model 'n'"},
    )
    assert place.ann.form("GET", "/getusermodel")[1]["model"] == []


def test_what_goes_wrong(place: Place, triple: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    status, refused = upload(place.ann, bad)
    assert status == 200 and refused["status"] == "invalid model" and "bad.onnx" in refused["message"]
    assert place.kept() == []
    assert upload(place.ann, triple, name="a b")[1]["message"].startswith("modelname: must have")
    status, refused = place.ann.form("POST", "/uploadmodel", modelname="m", modeltype="t", description="d")
    assert status == 400 and refused["status"] == "invalid parameter" and "model" in refused["message"]
    assert place.ann.form("POST", "/uploadmodel", modelname="m", model=model(triple))[0] == 400
    assert upload(place.ann, triple, user="nobody")[1]["status"] == "user not found"
    assert upload(place.ann, triple, password="wrong")[1]["status"] == "invalid password"
    assert place.kept() == []
    assert upload(place.ann, triple) == DONE
    assert place.ann.form("POST", "/modifymodel", modelname="x", description="d")[1]["status"] == "model not found"
    assert place.bob.form("POST", "/modifymodel", modelname="ann.m", description="d")[1]["status"] == "model not found"
    assert place.ann.form("POST", "/modifymodel", modelname="m", model=(io.BytesIO(b"x"), "x"))[1]["status"] == "invalid model"
    upload(place.ann, triple, name="n")
    assert place.ann.form("POST", "/modifymodel", modelname="m", newname="n")[1]["status"] == "duplication"
    for given, code in (
        ({"input": "x", "filetype": "none"}, 200),
        ({"input": "1", "filetype": "csv"}, 200),
        ({"input": "[1]", "filetype": "none"}, 200),
        ({"input": "[1]", "filetype": "word"}, 400),
        ({"filetype": "none"}, 400),
        ({"input": "[1]"}, 400),
    ):
        status, answer = place.ann.form("POST", "/testmodel", modelname="m", **given)
        assert status == code and answer["status"] == ("invalid input" if code == 200 else "invalid parameter"), answer
    assert place.ann.form("POST", "/testmodel", modelname="x", filetype="none", input="1")[1]["status"] == "model not found"
    assert place.bob.form("POST", "/testmodel", modelname="ann.m", filetype="none", input="1")[1]["status"] == "model not found"
    # a path that never fails says so with 200, too
    assert place.ann("DELETE", "/deletemodel") == (
        200,
        {"status": "invalid parameter", "message": "user: is missing; password: is missing; modelname: is missing"},
    )
    assert place.ann("DELETE", "/deletemodel", data={"user": "ann", "password": PASSWORD, "modelname": "m"}) == DONE, "a form, too"


def test_a_strangers_file_is_not_written(place: Place, triple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise AssertionError("it was written")

    monkeypatch.setattr(Incoming, "write", write)
    assert upload(place.ann, triple, password="wrong")[1] == {
        "status": "invalid password",
        "message": "the username or the password is wrong",
    }
    assert upload(place.ann, triple, user="nobody")[1]["status"] == "user not found"
