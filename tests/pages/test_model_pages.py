"""A model's page: what it is in words, the form that tries it, snippets, and its graph; with a real model host."""

# ruff: noqa: F811 - fixtures are arguments
import html
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from onnx import TensorProto

from gateway import create_app
from gateway.operations import onnx_graph
from gateway.operations.onnx_graph import Graph, Node
from gateway.pages import signatures
from gateway.pages.model_graph import Kept
from gateway.pages.model_overview import described
from gateway.pages.signatures import Tensor
from tests.gateway.deployed_host import deployed, users_host  # noqa: F401
from tests.gateway.model_host import copies
from tests.gateway.owners import Place, place, triple  # noqa: F401
from tests.pages.test_frame import sign_in

HOSTILE = "x'\"><script>alert(1)</script>"


def pages(place: Place, name: str = "ann") -> FlaskClient:
    client = create_app(place.services.settings, services=place.services).test_client()
    assert sign_in(client, name).status_code == 303
    return client


def signature(page: str) -> Any:
    found = re.search(r"data-signature='([^']*)'", page)
    assert found, page
    return json.loads(html.unescape(found[1]))


def test_what_a_model_is_in_words(place: Place, triple: Path) -> None:
    place.ann.upload(triple, name="m", description="Three times.")
    client = pages(place)
    page = client.get("/ui/models/ann/m").text
    assert "Three times." in page and "number, 32 bits" in page and "2 for each sample" in page and "[batch, 2]" in page
    assert "ONNX Runtime" in page and "p99" in page and "Draw the graph" in page and "Proposed for a deployment" in page
    assert "每个样本 2" in client.get("/ui/models/ann/m", headers={"Accept-Language": "zh"}).text
    assert client.get("/ui/models/ann/m?version=1").status_code == 200 and client.get("/ui/models/ann/m?version=7").status_code == 404


def test_an_operators_model(place: Place) -> None:
    client = pages(place)
    assert "[?, 2]" in client.get("/ui/models/-/triple").text and "Draw the graph" not in client.get("/ui/models/-/triple").text
    assert 'data-try="/v1/models/triple/predictions"' in client.get("/ui/models/-/triple/test").text
    page = html.unescape(client.get("/ui/models/-/triple/use").text)
    assert "http://localhost/v1/models/triple/predictions" in page and 'client.ModelInfer(idl.InferRequest(model_name="triple"' in page
    assert client.get("/ui/models/-/nothing").status_code == 404


def test_others_see_nothing(place: Place, triple: Path) -> None:
    place.ann.upload(triple, name="m")
    bob = pages(place, "bob")
    for path in ("", "/test", "/use", "/graph"):
        assert bob.get(f"/ui/models/ann/m{path}").status_code == 404, path
    place.ann("PATCH", "/v1/models/m", json={"visibility": "public"})
    assert bob.get("/ui/models/ann/m").status_code == 200 and bob.get("/ui/models/ann/m/graph").status_code == 200
    assert bob.get("/ui/models/ann/m/test").status_code == 403, "trying it is for those who may change it"
    assert "No deployment that you may call" in bob.get("/ui/models/ann/m/use").text


def test_the_form_has_the_versions_own_signature(place: Place, triple: Path, tmp_path: Path) -> None:
    place.ann.upload(triple, name="m")
    other = copies(tmp_path / "o.onnx", (HOSTILE, "y", TensorProto.STRING, ("n", 1)))
    status, made = place.ann("POST", "/v1/models/m/versions", data={"model": (io.BytesIO(other.read_bytes()), "o.onnx")})
    assert status == 201, made
    client = pages(place)
    page = client.get("/ui/models/ann/m/test").text
    assert [each["name"] for each in signature(page)["inputs"]] == [HOSTILE] and signature(page)["inputs"][0]["kind"] == "text"
    assert "<script>alert" not in page and 'data-try="/v1/models/ann.m/test"' in page
    older = client.get("/ui/models/ann/m/test?version=1").text
    assert signature(older)["inputs"][0]["kind"] == "grid" and 'data-try="/v1/models/ann.m/test?version=1"' in older
    for path in ("", "/use"):
        answer = client.get(f"/ui/models/ann/m{path}")
        assert answer.status_code == 200 and "<script>alert" not in answer.text


def test_what_the_owner_declares_counts(place: Place, tmp_path: Path) -> None:
    """A picture without a shape that says so, and labels; as files beside each other and in an archive."""
    model = copies(tmp_path / "m.onnx", ("pixels", "scores", TensorProto.FLOAT, ("n", "a", "b", "c")))
    declared = '[labels]\nscores = "labels.txt"\ntop_k = 2\n[inputs.pixels]\nkind = "image"\nsize = [8, 8]\n'
    files = {"model.onnx": model.read_bytes(), "model.toml": declared.encode(), "labels.txt": b"a\nb\n"}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    beside = [(io.BytesIO(files[name]), name) for name in ("model.toml", "labels.txt")]
    assert (
        place.ann("POST", "/v1/models", data={"name": "a", "model": (io.BytesIO(model.read_bytes()), "m.onnx"), "files": beside})[0] == 201
    )
    assert place.ann("POST", "/v1/models", data={"name": "z", "model": (io.BytesIO(packed.getvalue()), "m.zip")})[0] == 201
    client = pages(place)
    for name in "az":
        found = signature(client.get(f"/ui/models/ann/{name}/test").text)
        assert found["inputs"][0]["kind"] == "picture" and found["labelled"] == "scores" and found["top_k"] == 2, name
        assert "-F pixels=@picture.jpg" in client.get(f"/ui/models/ann/{name}/use").text
        assert client.get(f"/ui/models/ann/{name}/graph").json["nodes"][0]["op"] == "Identity"  # type: ignore[index]


def test_the_graph(place: Place, triple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.ann.upload(triple, name="m")
    client = pages(place)
    answer = client.get("/ui/models/ann/m/graph?version=1")
    piece = answer.json
    assert piece is not None and [each["op"] for each in piece["nodes"]] == ["Mul"] and piece["weights"]["factor"]["shape"] == []
    assert "private" in answer.headers["Cache-Control"]
    assert client.get("/ui/models/ann/m/graph?find=mul").json["found"] == 0  # type: ignore[index]
    monkeypatch.setattr(onnx_graph, "read", None)
    assert client.get("/ui/models/ann/m/graph").json == piece, "it is kept"
    missing = client.get("/ui/models/ann/m/graph?version=9")
    assert missing.status_code == 404 and "version" in missing.json["error"]  # type: ignore[index]


def test_what_generates_clients(place: Place) -> None:
    client = pages(place)
    assert "service Inference" in client.get("/ui/idl/inference.thrift").text
    assert client.get("/ui/idl/..%2Fcodes.py").status_code == 404 and client.get("/ui/idl/codes.py").status_code == 404


@pytest.mark.parametrize(
    ("tensor", "size", "values"),
    [
        (Tensor("a", "FP32", ("n", 1), 1.0, 2.5, "continuous"), "one value for each sample", "1 to 2.5"),
        (Tensor("a", "FP32", (1,), low=0.0), "one value", "0 or more"),
        (Tensor("a", "FP32", (3, 4), high=9.0), "3 × 4", "9 or less"),
        (Tensor("a", "FP32", (-1, -1)), "any size for each sample", ""),
        (Tensor("a", "FP32", (2, "k")), "any size", ""),
        (Tensor("a", "BYTES", (1,), values=tuple("abcdefghijklmn")), "one value", "a, b, c, d, e, f, g, h, i, j, k, l and 2 more"),
    ],
)
def test_tensors_in_words(place: Place, tensor: Tensor, size: str, values: str) -> None:
    with create_app(place.services.settings, services=place.services).test_request_context():
        said = described(tensor)
    assert said["size"] == size and said["values"] == values


def test_graphs_are_kept_within_bounds() -> None:
    graph = Graph(nodes=[Node("Relu", outputs=["x"])])
    kept = Kept(onnx_graph.size(graph) * 2)
    for name in "ab":
        kept.put((name, ""), graph)
    assert kept.get(("a", "")) is graph
    kept.put(("c", ""), graph)
    assert [kept.get((name, "")) for name in "abc"] == [graph, None, graph], "what was not asked for is put out"
    kept.put(("d", ""), Graph(nodes=graph.nodes * 9))
    assert kept.get(("d", "")) is None and kept.get(("c", "")) is graph


def test_numbers_that_json_has_none_for() -> None:
    given = {"type": "FP32", "shape": ["n", 1], "optype": "", "range": [float("-inf"), float("inf")], "values": []}
    listed = {**given, "type": "INT64", "range": None, "values": ["1e999", "nan", "2"]}
    inputs = tuple(signatures._recorded({**each, "name": name}) for name, each in (("x", given), ("y", listed)))
    form = signatures.for_form(signatures.Signature(inputs, ()))
    assert json.loads(json.dumps(form, allow_nan=False))["inputs"][1]["sample"] == [[1]] and form["inputs"][0]["low"] is None
