"""`POST /v1/models/{name}/predictions` over a real model host: files, forms, JSON, tables, labels, and what is refused."""

import base64
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.test import TestResponse

from idl.codes import Code
from tests.gateway.model_host import MAX_BODY, Served

PICTURES = Path(skimage.__file__).parent / "data"
DEMO = "efficientnet-lite0"


def ask(web: FlaskClient, model: str, **options: Any) -> TestResponse:
    return web.post(f"/v1/models/{model}/predictions", **options)


def good(answer: TestResponse) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.content_type == "application/json"

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not strict JSON")

    return json.loads(answer.data, parse_constant=refuse)


def predict(web: FlaskClient, model: str, given: Any) -> Any:
    return good(ask(web, model, json=given))


def problem(answer: TestResponse, status: int = 400, code: Code = Code.INVALID_INPUT) -> str:
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json" and answer.json is not None
    assert (answer.json["status"], answer.json["code"]) == (status, code.value), answer.text
    return str(answer.json["detail"])


def refused(web: FlaskClient, model: str, given: Any) -> str:
    return problem(ask(web, model, json=given))


def file(data: bytes, name: str = "photo.jpg") -> FileStorage:
    return FileStorage(io.BytesIO(data), filename=name)


def png(pixels: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(out, "PNG")
    return out.getvalue()


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


class TestDemoModel:
    @pytest.mark.parametrize(("picture", "label", "score"), [("coffee.png", "espresso", 0.951), ("camera.png", "tripod", 0.937)])
    def test_a_photograph_as_curl_sends_it(self, web: FlaskClient, picture: str, label: str, score: float) -> None:
        body = good(ask(web, DEMO, data={"image": file((PICTURES / picture).read_bytes(), picture)}))
        (labels,) = body["labels"]
        assert [entry["score"] for entry in labels] == sorted((entry["score"] for entry in labels), reverse=True)
        assert labels[0]["label"] == label and labels[0]["score"] == pytest.approx(score, abs=1e-3)
        assert len(labels) == 5
        (row,) = body["outputs"]["probabilities"]
        assert len(row) == 1000 and row[labels[0]["index"]] == labels[0]["score"]
        assert (body["model"], body["version"]) == (DEMO, "1")
        assert "assumed" not in body

    def test_two_photographs_are_a_batch(self, web: FlaskClient) -> None:
        files = MultiDict([("image", file((PICTURES / name).read_bytes())) for name in ("coffee.png", "camera.png")])
        files.add("top_k", "1")
        files.add("outputs", "")
        body = good(ask(web, DEMO, data=files))
        assert [[entry["label"] for entry in row] for row in body["labels"]] == [["espresso"], ["tripod"]]
        assert body["outputs"] == {}

    def test_base64_gives_the_same(self, web: FlaskClient) -> None:
        data = (PICTURES / "coffee.png").read_bytes()
        one = predict(web, DEMO, {"inputs": {"image": b64(data)}})
        several = predict(web, DEMO, {"inputs": {"image": [b64(data), b64(data)]}})
        form = good(ask(web, DEMO, data={"image": file(data)}))
        assert one["outputs"] == form["outputs"]
        assert np.allclose(several["outputs"]["probabilities"], one["outputs"]["probabilities"] * 2, atol=1e-6)


class TestJson:
    def test_nested_lists(self, web: FlaskClient) -> None:
        body = predict(web, "triple", {"inputs": {"x": [[1, 2.5], [0, -1]]}})
        assert body["outputs"] == {"y": [[3.0, 7.5], [0.0, -3.0]]}
        assert set(body) == {"id", "model", "version", "outputs", "timing_ms"}
        timing = body["timing_ms"]
        assert timing["total"] >= timing["compute"] > 0 and timing["queue"] >= 0

    def test_the_id_is_the_requests(self, web: FlaskClient) -> None:
        answer = ask(web, "triple", json={"inputs": {"x": [[1, 2]]}}, headers={"X-Request-Id": "mine-7"})
        assert good(answer)["id"] == answer.headers["X-Request-Id"] == "mine-7"

    def test_versions(self, web: FlaskClient) -> None:
        for version, factor in (("1", 1), ("2", 2)):
            body = good(web.post(f"/v1/models/versions/predictions?version={version}", json={"inputs": {"x": [[1, 1]]}}))
            assert (body["version"], body["outputs"]["y"]) == (version, [[factor, factor]])
        answer = web.post("/v1/models/versions/predictions?version=9", json={"inputs": {"x": [[1, 1]]}})
        problem(answer, 404, Code.VERSION_NOT_FOUND)
        answer = web.post("/v1/models/versions/predictions?verison=1", json={"inputs": {"x": [[1, 1]]}})
        assert "'verison'" in problem(answer)

    @pytest.mark.parametrize(
        ("datatype", "given", "answered"),
        [
            ("FP32", [1, "NaN", "Infinity", "-Infinity"], [1.0, "NaN", "Infinity", "-Infinity"]),
            ("FP16", [0.5, "NaN"], [0.5, "NaN"]),
            ("BF16", [0.5, 1.0], [0.5, 1.0]),
            ("FP64", [0.1, 1e300], [0.1, 1e300]),
            ("INT8", [-128, 127], [-128, 127]),
            ("UINT64", [2**64 - 1], [2**64 - 1]),
            ("BOOL", [True, False], [True, False]),
            ("BYTES", ["\u6f22", {"b64": "YWJj"}], ["\u6f22", "abc"]),
        ],
    )
    def test_datatypes(self, web: FlaskClient, datatype: str, given: list[Any], answered: list[Any]) -> None:
        assert predict(web, f"same-{datatype}", {"inputs": {"x": given}})["outputs"] == {"y": answered}

    def test_scalar(self, web: FlaskClient) -> None:
        assert predict(web, "scalar", {"inputs": {"x": 4}})["outputs"] == {"y": 4.0}
        assert good(ask(web, "scalar", data={"x": "4"}))["outputs"] == {"y": 4.0}

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ([], "not a JSON object"),
            ({}, "no inputs"),
            ({"input": {}}, "'input'"),
            ({"inputs": {"x": [[1, 2]]}, "extra": 1}, "'extra'"),
            ({"inputs": {}, "records": [{}]}, "inputs and records"),
            ({"inputs": []}, "not an object"),
            ({"inputs": {}}, "'x' is missing"),
            ({"inputs": {"X": [[1, 2]]}}, "no input 'X'; its inputs are 'x'"),
            ({"inputs": {"x": [[1, 2]], "z": 1}}, "no input 'z'"),
            ({"inputs": {"\ud800": 1}}, "surrogate"),
            ({"inputs": {"x": [1, 2]}}, "shape [2], the model takes [-1, 2]"),
            ({"inputs": {"x": [[1, 2, 3]]}}, "shape [1, 3], the model takes [-1, 2]"),
            ({"inputs": {"x": [[[1, 2]]]}}, "shape [1, 1, 2]"),
            ({"inputs": {"x": [[1, 2], [3]]}}, "'x' is ragged"),
            ({"inputs": {"x": [[1, "two"]]}}, "'x' is FP32 and has an element that is a text"),
            ({"inputs": {"x": [[1, None]]}}, "null"),
            ({"inputs": {"x": [[1, True]]}}, "true or false"),
            ({"inputs": {"x": {"y": 1}}}, "an object"),
            ({"inputs": {"x": None}}, "null"),
            ({"inputs": {"x": {"b64": "AAAA"}}}, "takes numbers of shape [-1, 2], not a file"),
            ({"inputs": {"x": {"b64": "?"}}}, "not base64"),
            ({"inputs": {"x": [[1, 2]]}, "outputs": "y"}, "outputs is not a list"),
            ({"inputs": {"x": [[1, 2]]}, "outputs": ["q"]}, "no output 'q'; its outputs are 'y'"),
            ({"inputs": {"x": [[1, 2]]}, "outputs": []}, "nothing would be answered"),
            ({"inputs": {"x": [[1, 2]]}, "top_k": 3}, "declares no labels"),
            ({"inputs": {"x": [[1, 2]]}, "top_k": 0}, "top_k"),
            ({"inputs": {"x": [[1, 2]]}, "top_k": True}, "top_k"),
            ({"inputs": {"x": [[1, 2]]}, "top_k": "3"}, "top_k"),
        ],
    )
    def test_refused(self, web: FlaskClient, given: Any, says: str) -> None:
        assert says in refused(web, "triple", given)

    def test_bodies_that_are_no_json(self, web: FlaskClient) -> None:
        headers = {"Content-Type": "application/json"}
        for body in (b"", b"{", b"\xff\xfe", b"[" * 5000):
            problem(ask(web, "triple", data=body, headers=headers))
        problem(ask(web, "triple", data=b"x", content_type="text/plain"), 415, Code.UNSUPPORTED_MEDIA)
        problem(ask(web, "triple", data=b"x"), 415, Code.UNSUPPORTED_MEDIA)
        problem(ask(web, "triple", data=bytes(MAX_BODY + 1), headers=headers), 413, Code.TOO_LARGE)

    def test_compressed(self, web: FlaskClient) -> None:
        body = gzip.compress(b'{"inputs": {"x": [[1, 2]]}}')
        answer = ask(web, "triple", data=body, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"})
        assert good(answer)["outputs"] == {"y": [[3.0, 6.0]]}


class TestWhoMay:
    def test_missing_and_not_loaded(self, web: FlaskClient) -> None:
        problem(ask(web, "nobody", json={"inputs": {}}), 404, Code.MODEL_NOT_FOUND)
        answer = ask(web, "unloaded", json={"inputs": {}})
        problem(answer, 503, Code.NOT_READY)
        assert int(answer.headers["Retry-After"]) >= 1

    def test_private(self, web: FlaskClient, served: Served) -> None:
        given = {"inputs": {"x": [[1, 2]]}}
        problem(ask(web, "secret", json=given), 401, Code.UNAUTHENTICATED)
        assert good(ask(web, "secret", json=given, headers=served.user))["outputs"] == {"y": [[2.0, 4.0]]}


class TestTables:
    def test_a_column_for_each_input(self, web: FlaskClient) -> None:
        expected = {"a": [[36.0], [29.5]], "b": [["Ada"], ["Alan"]]}
        records = [{"name": "Ada", "age": 36}, {"age": 29.5, "name": "Alan"}]
        assert predict(web, "pair", {"records": records})["outputs"] == expected
        assert predict(web, "pair", {"columns": ["name", "age"], "data": [["Ada", 36], ["Alan", 29.5]]})["outputs"] == expected

    def test_columns_of_one_input_in_the_callers_order(self, web: FlaskClient) -> None:
        body = predict(web, "rows", {"columns": ["a", "b", "c", "d"], "data": [[1, 2, 3, 4], [5, 6, 7, "NaN"]]})
        assert body["outputs"] == {"same": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, "NaN"]]}
        assert body["assumed"] == {"features": {"columns": ["a", "b", "c", "d"]}}

    @pytest.mark.parametrize(
        ("model", "given", "says"),
        [
            ("rows", {"records": [{"a": 1, "b": 2, "c": 3, "d": 4}]}, "records have no order"),
            ("rows", {"columns": ["a", "b", "c"], "data": [[1, 2, 3]]}, "shape [1, 3], the model takes [-1, 4]"),
            ("pair", {"records": []}, "at least one"),
            ("pair", {"records": {}}, "at least one"),
            ("pair", {"records": [1]}, "at least one"),
            ("pair", {"records": [{"age": 1, "name": "a"}, {"age": 1}]}, "record 2"),
            ("pair", {"records": [{"age": 1}]}, "'name' is missing"),
            ("pair", {"records": [{"age": 1, "name": "a", "more": 1}]}, "no input 'more'"),
            ("pair", {"records": [{"age": "old", "name": "a"}]}, "'age' is FP32"),
            ("pair", {"records": [{"age": [1], "name": "a"}]}, "'age' is FP32"),
            ("pair", {"columns": ["age", "name"], "data": [[1]]}, "row 1 of data has 1 values, there are 2 columns"),
            ("pair", {"columns": ["age", "age"], "data": [[1, 2]]}, "twice"),
            ("pair", {"columns": ["age", 3], "data": [[1, 2]]}, "columns"),
            ("pair", {"columns": ["age", "name"]}, "data"),
            ("pair", {"data": [[1, 2]]}, "columns"),
            ("pair", {"columns": [], "data": [[]]}, "is missing"),
            ("triple", {"records": [{"x": 1}]}, "[-1, 2]"),
        ],
    )
    def test_refused(self, web: FlaskClient, model: str, given: Any, says: str) -> None:
        assert says in refused(web, model, given)


class TestForms:
    def test_a_field_for_each_input(self, web: FlaskClient) -> None:
        expected = {"a": [[36.0]], "b": [["[Ada]"]]}
        fields = {"age": "36", "name": "[Ada]"}
        assert good(ask(web, "pair", data=fields))["outputs"] == expected
        assert good(ask(web, "pair", data=fields, content_type="multipart/form-data"))["outputs"] == expected

    def test_repeated_fields_are_samples(self, web: FlaskClient) -> None:
        fields = MultiDict([("age", "1"), ("age", "2"), ("name", "a"), ("name", "b")])
        assert good(ask(web, "pair", data=fields))["outputs"] == {"a": [[1.0], [2.0]], "b": [["a"], ["b"]]}

    def test_a_list_in_a_field(self, web: FlaskClient) -> None:
        assert good(ask(web, "triple", data={"x": "[[1, 2]]"}))["outputs"] == {"y": [[3.0, 6.0]]}

    def test_a_file_for_an_input_of_bytes(self, web: FlaskClient) -> None:
        assert good(ask(web, "same-BYTES", data={"x": file(b"abc")}))["outputs"] == {"y": ["abc"]}
        files = MultiDict([("x", file(b"a\0")), ("x", file(b""))])
        assert good(ask(web, "same-BYTES", data=files))["outputs"] == {"y": ["a\0", ""]}

    def test_outputs_and_top_k(self, web: FlaskClient) -> None:
        fields = {"x": "[[1, 3, 2]]", "z": "5", "top_k": "1", "outputs": "other,scores"}
        body = good(ask(web, "animals", data=fields))
        assert body["labels"] == [[{"label": "dog", "index": 1, "score": 3.0}]]
        assert list(body["outputs"]) == ["other", "scores"]

    @pytest.mark.parametrize(
        ("model", "fields", "says"),
        [
            ("triple", {}, "no input"),
            ("triple", {"x": "1, 2"}, "'x' takes a number, a JSON list"),
            ("triple", {"x": "abc"}, "-F x=@PATH): the field is not JSON"),
            ("triple", {"x": ""}, "-F x=@PATH): the field is empty"),
            ("triple", {"x": "3"}, "takes shape [-1, 2], not 1 single value"),
            ("triple", {"x": "[1, 2]"}, "shape [2], the model takes [-1, 2]"),
            ("same-FP32", {"x": '"text"'}, "a text"),
            ("triple", {"y": "1"}, "no input 'y'"),
            ("pair", MultiDict([("age", "[[1]]"), ("age", "[[2]]"), ("name", "a")]), "2 times"),
            ("animals", {"x": "[[1]]", "z": "1", "top_k": "x"}, "top_k"),
            ("animals", {"x": "[[1]]", "z": "1", "top_k": "-1"}, "top_k"),
            ("animals", MultiDict([("x", "[[1]]"), ("z", "1"), ("top_k", "1"), ("top_k", "2")]), "top_k"),
        ],
    )
    def test_refused(self, web: FlaskClient, model: str, fields: Any, says: str) -> None:
        assert says in problem(ask(web, model, data=fields, content_type="application/x-www-form-urlencoded"))

    def test_a_file_and_a_field_of_one_name(self, web: FlaskClient) -> None:
        assert "as a file and as a field" in problem(ask(web, "same-BYTES", data=MultiDict([("x", file(b"a")), ("x", "b")])))

    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            (b"--b\r\n", "multipart/form-data; boundary=b"),
            (b"", "multipart/form-data; boundary=b"),
            (b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\n1\r\n--b", "multipart/form-data; boundary=b"),
            (b"--b\r\nContent-Disposition: form-data\r\n\r\n1\r\n--b--", "multipart/form-data; boundary=b"),
            (b"--b\r\nContent-Type: text/plain\r\n\r\n1\r\n--b--", "multipart/form-data; boundary=b"),
            (b"--b--", "multipart/form-data"),
            (b"--b--", 'multipart/form-data; boundary="\xc3\xa4"'),
            (b"x=%ff%fe", "application/x-www-form-urlencoded"),
            (b"\xff", "application/x-www-form-urlencoded"),
        ],
    )
    def test_malformed(self, web: FlaskClient, body: bytes, content_type: str) -> None:
        problem(ask(web, "triple", data=body, headers={"Content-Type": content_type}))

    def test_too_many_parts(self, web: FlaskClient) -> None:
        problem(ask(web, "triple", data=b"a&" * 5000, content_type="application/x-www-form-urlencoded"), 413, Code.TOO_LARGE)
        part = b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\n1\r\n"
        problem(ask(web, "triple", data=part * 2000 + b"--b--", content_type="multipart/form-data; boundary=b"), 413, Code.TOO_LARGE)


class TestLabels:
    def given(self, **more: Any) -> dict[str, Any]:
        return {"inputs": {"x": [[0.1, 0.7, 0.2], [3, 1, 2]], "z": [1, 2]}, **more}

    def test_as_many_as_the_model_says(self, web: FlaskClient) -> None:
        body = predict(web, "animals", self.given())
        assert [[(entry["label"], entry["index"]) for entry in row] for row in body["labels"]] == [
            [("dog", 1), ("bird", 2)],
            [("cat", 0), ("bird", 2)],
        ]
        assert body["labels"][1][0]["score"] == 3.0
        assert list(body["outputs"]) == ["scores", "other"]

    def test_as_many_as_the_caller_says(self, web: FlaskClient) -> None:
        for top_k, count in ((1, 1), (3, 3), (1000, 3)):
            assert [len(row) for row in predict(web, "animals", self.given(top_k=top_k))["labels"]] == [count, count]

    def test_outputs_choose(self, web: FlaskClient) -> None:
        body = predict(web, "animals", self.given(outputs=["other"]))
        assert body["outputs"] == {"other": [1.0, 2.0]} and "labels" not in body
        body = predict(web, "animals", self.given(outputs=[]))
        assert body["outputs"] == {} and len(body["labels"]) == 2
        body = predict(web, "animals", self.given(outputs=["scores"]))
        assert list(body["outputs"]) == ["scores"] and len(body["labels"]) == 2

    def test_more_classes_than_labels_and_odd_scores(self, web: FlaskClient) -> None:
        given = {"inputs": {"x": [["NaN", 1, "Infinity", 2, "-Infinity"]], "z": [0]}, "top_k": 5}
        (row,) = predict(web, "animals", given)["labels"]
        assert [(entry["label"], entry["index"], entry["score"]) for entry in row] == [
            ("bird", 2, "Infinity"),
            (None, 3, 2.0),
            ("dog", 1, 1.0),
            (None, 4, "-Infinity"),
            ("cat", 0, "NaN"),
        ]

    def test_no_samples_and_no_classes(self, web: FlaskClient) -> None:
        assert predict(web, "animals", {"inputs": {"x": [[], []], "z": []}})["labels"] == [[], []]


class TestPictures:
    picture = np.arange(2 * 3 * 3).reshape(2, 3, 3)

    def test_as_declared(self, web: FlaskClient) -> None:
        body = good(ask(web, "photo", data={"photo": file(png(self.picture))}))
        expected = (self.picture[:, :, ::-1] - np.array([1, 2, 3])) / 2
        assert body["outputs"]["y"] == [expected.tolist()]
        assert "assumed" not in body

    def test_image_stands_for_the_only_picture_input(self, web: FlaskClient) -> None:
        named = good(ask(web, "photo", data={"photo": file(png(self.picture))}))
        assert good(ask(web, "photo", data={"image": file(png(self.picture))}))["outputs"] == named["outputs"]
        assert predict(web, "photo", {"inputs": {"image": b64(png(self.picture))}})["outputs"] == named["outputs"]
        assert "no input 'image'" in problem(ask(web, "stereo", data={"image": file(png(self.picture))}))
        assert "no input 'image'" in problem(ask(web, "photo", data=MultiDict([("image", file(b"x")), ("photo", file(b"x"))])))

    def test_without_a_declaration_the_shape_decides_and_the_answer_says_so(self, web: FlaskClient) -> None:
        body = good(ask(web, "picture", data={"image": file(png(self.picture))}))
        assert body["outputs"]["y"] == [self.picture.transpose(2, 0, 1).tolist()]
        assert body["assumed"] == {"pixels": {"layout": "NCHW", "colour": "RGB", "size": None, "mean": [0.0] * 3, "std": [1.0] * 3}}
        body = good(ask(web, "stereo", data={side: file(png(self.picture)) for side in ("left", "right")}))
        assert body["outputs"]["left_y"] == [self.picture.tolist()]
        assert body["assumed"]["right"]["layout"] == "NHWC"

    def test_a_tensor_is_taken_as_it_is(self, web: FlaskClient) -> None:
        given = self.picture[None].tolist()
        assert predict(web, "photo", {"inputs": {"photo": given}})["outputs"]["y"] == given

    def test_what_is_wrong_with_a_file_is_said(self, web: FlaskClient) -> None:
        assert "a PDF document" in problem(ask(web, "photo", data={"photo": file(b"%PDF-1.7 ...")}))
        assert "empty" in problem(ask(web, "photo", data={"photo": file(b"")}))
        assert "cut off" in problem(ask(web, "photo", data={"photo": file(png(self.picture)[:50])}))
        files = MultiDict([("photo", file(png(self.picture))), ("photo", file(b"hello"))])
        assert "'photo', picture 2" in problem(ask(web, "photo", data=files))
        big = io.BytesIO()
        Image.new("1", (1001, 1000)).save(big, "PNG")
        assert "1001 x 1000" in problem(ask(web, "photo", data={"photo": file(big.getvalue())}), 413, Code.TOO_LARGE)
        assert "takes numbers" in problem(ask(web, "triple", data={"x": file(png(self.picture))}))
        assert "JSON list" in problem(ask(web, "photo", data={"photo": "photo.jpg"}))
