"""Why a model that cannot be loaded is not ready is for signed-in callers: it may be a private one, and its reason may say what is in it."""

import shutil
from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from idl.codes import Code, ServingError
from inference_client import Client
from tests.gateway.model_host import Served
from tests.processes import Process

WHY = "top_secret_key"
"""A word of the reason: the key that the model's settings may not have."""


@pytest.fixture
def failed(host: Process) -> Iterator[str]:
    """A private model that failed to load."""
    folder = host.log.parent / "models" / "hidden"
    (folder / "1").mkdir(parents=True)
    (folder / "model.toml").write_text(f"public = false\n{WHY} = 1\n")
    (folder / "1" / "model.onnx").write_bytes(b"not a model" * 100)
    with Client(f"thrift://{host['thrift']}") as client:
        with pytest.raises(ServingError) as caught:
            client.load_model("hidden")
        assert caught.value.code is Code.INVALID_MODEL and WHY in caught.value.message
        yield "hidden"
        shutil.rmtree(folder)
        with pytest.raises(ServingError):
            client.unload_model("hidden")


def asked(web: FlaskClient, headers: dict[str, str]) -> dict[str, TestResponse]:
    """Every way to ask about it."""
    tensor = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}
    return {
        "metadata": web.get("/v2/models/hidden", headers=headers),
        "version": web.get("/v2/models/hidden/versions/1", headers=headers),
        "ready": web.get("/v2/models/hidden/ready", headers=headers),
        "config": web.get("/v2/models/hidden/config", headers=headers),
        "statistics": web.get("/v2/models/hidden/stats", headers=headers),
        "infer": web.post("/v2/models/hidden/infer", json=tensor, headers=headers),
        "predictions": web.post("/v1/models/hidden/predictions", json={"inputs": {"x": [1]}}, headers=headers),
    }


def test_an_anonymous_caller_learns_that_it_is_not_ready_and_not_why(web: FlaskClient, failed: str) -> None:
    for way, answer in asked(web, {}).items():
        assert answer.status_code == 503, way
        assert "model 'hidden' is not ready" in answer.text and WHY not in answer.text, f"{way}: {answer.text}"
    index = web.post("/v2/repository/index", json={})
    assert index.status_code == 200 and "hidden" not in index.text and WHY not in index.text
    assert "hidden" not in web.get("/v2/models/stats").text


def test_a_signed_in_caller_learns_why(web: FlaskClient, served: Served, failed: str) -> None:
    for headers in (served.user, served.administrator):
        for way, answer in asked(web, headers).items():
            assert answer.status_code == 503 and WHY in answer.text, f"{way}: {answer.text}"
        (entry,) = (each for each in web.post("/v2/repository/index", json={}, headers=headers).json if each["name"] == "hidden")
        assert entry["state"] == "UNAVAILABLE" and WHY in entry["reason"]
