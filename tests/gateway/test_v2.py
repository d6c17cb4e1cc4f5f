"""`/v2` over a real model host: every route, every datatype in both forms, who may, and what is refused how."""

import gzip
import json
import math
import time
import zlib
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from gateway.models_rpc import Models
from gateway.operations.v2_messages import HEADER_LENGTH
from idl import tensors
from idl.codes import Code
from inference_client import Client
from tests.gateway.model_host import KINDS, MAX_BODY, Served
from tests.processes import Process

SAMPLES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "FP16": [0.5, -65504.0, math.inf],
    "FP32": [0.1, -3.4e38, math.inf],
    "FP64": [0.1, 1e308, -math.inf],
    "BYTES": [b"", b"a\0b", "\u6f22".encode()],
} | {name: [0, int(np.iinfo(tensors.DTYPES[name]).min), int(np.iinfo(tensors.DTYPES[name]).max)] for name in KINDS if "INT" in name}


def infer(web: FlaskClient, model: str, given: Any, binary: bytes = b"", **headers: str) -> TestResponse:
    head = json.dumps(given).encode()
    if binary:
        headers[HEADER_LENGTH] = str(len(head))
    return web.post(f"/v2/models/{model}/infer", data=head + binary, headers=headers)


def x(values: list[Any], datatype: str = "FP32", shape: list[int] | None = None, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": datatype, "shape": shape or [len(values)], "data": values}], **more}


def error(answer: TestResponse, status: int, code: Code) -> str:
    assert (answer.status_code, answer.headers["Outboard-Code"]) == (status, code.value), answer.text
    assert answer.json is not None and list(answer.json) == ["error"]
    return str(answer.json["error"])


class TestInference:
    @pytest.mark.parametrize("datatype", [name for name in KINDS if name not in ("FP16", "BF16")])
    def test_json(self, web: FlaskClient, datatype: str) -> None:
        values = [item.decode() if isinstance(item, bytes) else item for item in SAMPLES[datatype]]
        answer = infer(web, f"same-{datatype}", x(values, datatype, id="i-1"))
        assert answer.status_code == 200 and answer.content_type == "application/json"
        body = answer.json
        assert body is not None and (body["id"], body["model_name"], body["model_version"]) == ("i-1", f"same-{datatype}", "1")
        (y,) = body["outputs"]
        assert (y["name"], y["datatype"], y["shape"]) == ("y", datatype, [len(values)])
        expected = np.array(values, tensors.DTYPES[datatype]).tolist()
        assert y["data"] == expected
        assert body["parameters"]["compute_us"] >= 0

    @pytest.mark.parametrize("datatype", KINDS)
    def test_binary(self, web: FlaskClient, datatype: str) -> None:
        if datatype == "BF16":
            raw = np.array([0x3F80, 0x7F80, 0x0001], "<u2").tobytes()
        else:
            array = np.empty(len(SAMPLES[datatype]), tensors.DTYPES[datatype])
            array[:] = SAMPLES[datatype]
            raw = tensors.encode(array, datatype)
        shape = [2 if datatype == "BOOL" else 3]
        tensor = {"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        answer = infer(web, f"same-{datatype}", {"inputs": [tensor], "parameters": {"binary_data_output": True}}, raw)
        assert answer.status_code == 200 and answer.content_type == "application/octet-stream"
        size = int(answer.headers[HEADER_LENGTH])
        (y,) = json.loads(answer.data[:size])["outputs"]
        assert y["parameters"] == {"binary_data_size": len(raw)} and "data" not in y
        assert answer.data[size:] == raw

    @pytest.mark.parametrize("datatype", ["FP16", "BF16"])
    def test_what_the_protocols_json_cannot_carry(self, web: FlaskClient, datatype: str) -> None:
        assert "as binary data" in error(infer(web, f"same-{datatype}", x([1.0], datatype)), 400, Code.INVALID_INPUT)
        tensor = {"name": "x", "datatype": datatype, "shape": [1], "parameters": {"binary_data_size": 2}}
        assert "ask for it as binary data" in error(infer(web, f"same-{datatype}", {"inputs": [tensor]}, b"\0\0"), 400, Code.INVALID_INPUT)

    def test_bytes_that_are_no_text(self, web: FlaskClient) -> None:
        tensor = {"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}
        # onnxruntime's strings are text, so the model refuses them, whatever form was asked for
        assert "UTF-8" in error(infer(web, "same-BYTES", {"inputs": [tensor]}, b"\1\0\0\0\xff"), 400, Code.INVALID_INPUT)

    def test_non_finite_numbers(self, web: FlaskClient) -> None:
        answer = infer(web, "same-FP32", x(["NaN", math.nan, "Infinity", -math.inf]))
        assert b"[NaN,NaN,Infinity,-Infinity]" in answer.data

    def test_scalar_and_empty(self, web: FlaskClient) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [], "data": [3.5]}
        assert infer(web, "scalar", {"inputs": [tensor]}).json["outputs"][0] == {
            "name": "y",
            "datatype": "FP32",
            "shape": [],
            "data": [3.5],
        }
        answer = infer(web, "triple", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [0, 2], "data": []}]})
        assert answer.json["outputs"][0] == {"name": "y", "datatype": "FP32", "shape": [0, 2], "data": []}

    def test_versions(self, web: FlaskClient) -> None:
        for version, factor in (("1", 1), ("2", 2)):
            answer = web.post(f"/v2/models/versions/versions/{version}/infer", json=x([1, 2], shape=[1, 2]))
            assert answer.json["model_version"] == version and answer.json["outputs"][0]["data"] == [factor, 2 * factor]
        assert infer(web, "versions", x([1, 2], shape=[1, 2])).json["model_version"] == "2"
        error(web.post("/v2/models/versions/versions/3/infer", json=x([1, 2], shape=[1, 2])), 404, Code.VERSION_NOT_FOUND)

    def test_output_selection_and_mixed_forms(self, web: FlaskClient) -> None:
        given = {
            "inputs": [
                {"name": "age", "datatype": "FP32", "shape": [1, 1], "data": [7]},
                {"name": "name", "datatype": "BYTES", "shape": [1, 1], "data": ["Ada"]},
            ]
        }
        assert [output["name"] for output in infer(web, "pair", given).json["outputs"]] == ["a", "b"]
        (b,) = infer(web, "pair", {**given, "outputs": [{"name": "b"}]}).json["outputs"]
        assert b["data"] == ["Ada"]
        answer = infer(web, "pair", {**given, "outputs": [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}]})
        size = int(answer.headers[HEADER_LENGTH])
        outputs = {output["name"]: output for output in json.loads(answer.data[:size])["outputs"]}
        assert outputs["a"]["data"] == [7.0] and answer.data[size:] == b"\3\0\0\0Ada"
        assert "'nothing'" in error(infer(web, "pair", {**given, "outputs": [{"name": "nothing"}]}), 400, Code.INVALID_INPUT)

    def test_raw_body(self, web: FlaskClient) -> None:
        raw = np.float32([1, 2, 3, 4]).tobytes()
        answer = web.post("/v2/models/triple/infer", data=raw, headers={HEADER_LENGTH: "0"})
        size = int(answer.headers[HEADER_LENGTH])
        assert json.loads(answer.data[:size])["outputs"][0]["shape"] == [2, 2]
        assert answer.data[size:] == np.float32([3, 6, 9, 12]).tobytes()

    def test_timeout_parameter_in_microseconds(self, web: FlaskClient) -> None:
        begun = time.monotonic()
        answer = infer(web, "slow", x([1], parameters={"timeout": 50_000}))
        error(answer, 504, Code.DEADLINE_EXCEEDED)
        assert time.monotonic() - begun < 5

    def test_what_the_model_host_refuses(self, web: FlaskClient) -> None:
        assert "FP64" in error(infer(web, "triple", x([1, 2], "FP64", [1, 2])), 400, Code.INVALID_INPUT)
        assert "[-1, 2]" in error(infer(web, "triple", x([1, 2, 3], shape=[1, 3])), 400, Code.INVALID_INPUT)
        assert "missing" in error(infer(web, "triple", {"inputs": []}), 400, Code.INVALID_INPUT)
        assert "'x'" in error(infer(web, "pair", x([1.0])), 400, Code.INVALID_INPUT)


class TestBodies:
    def test_gzip_and_deflate(self, web: FlaskClient) -> None:
        body = json.dumps(x([1, 2], shape=[1, 2])).encode()
        for encoding, data in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body)), ("identity", body)):
            answer = web.post("/v2/models/triple/infer", data=data, headers={"Content-Encoding": encoding})
            assert answer.json["outputs"][0]["data"] == [3.0, 6.0]

    def test_compressed_binary(self, web: FlaskClient) -> None:
        raw = np.float32([1, 2]).tobytes()
        head = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}]}).encode()
        headers = {"Content-Encoding": "gzip", HEADER_LENGTH: str(len(head))}
        answer = web.post("/v2/models/triple/infer", data=gzip.compress(head + raw), headers=headers)
        assert answer.json["outputs"][0]["data"] == [3.0, 6.0]

    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    def test_the_answer_is_compressed_on_request(self, web: FlaskClient, coding: str) -> None:
        values = [float(value) for value in range(2000)]
        answer = infer(web, "same-FP32", x(values), **{"Accept-Encoding": coding})
        assert answer.headers["Content-Encoding"] == coding and answer.headers["Vary"] == "Accept-Encoding"
        body = gzip.decompress(answer.data) if coding == "gzip" else zlib.decompress(answer.data)
        assert json.loads(body)["outputs"][0]["data"] == values
        assert "Content-Encoding" not in infer(web, "same-FP32", x([1.0]), **{"Accept-Encoding": coding}).headers

    def test_too_large(self, web: FlaskClient) -> None:
        assert str(MAX_BODY) in error(web.post("/v2/models/triple/infer", data=bytes(MAX_BODY + 1)), 413, Code.TOO_LARGE)
        bomb = gzip.compress(bytes(MAX_BODY + 1))
        error(web.post("/v2/models/triple/infer", data=bomb, headers={"Content-Encoding": "gzip"}), 413, Code.TOO_LARGE)

    def test_unknown_coding(self, web: FlaskClient) -> None:
        error(web.post("/v2/models/triple/infer", data=b"x", headers={"Content-Encoding": "br"}), 415, Code.UNSUPPORTED_MEDIA)

    def test_extensions_that_need_more(self, web: FlaskClient) -> None:
        given = x([1.0], outputs=[{"name": "y", "parameters": {"classification": 1}}])
        assert infer(web, "same-FP32", given).json["outputs"] == [
            {"name": "y", "datatype": "BYTES", "shape": [1], "data": ["1.000000:0"]},
        ]
        placed = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
        error(infer(web, "same-FP32", x([1.0], outputs=[{"name": "y", "parameters": placed}])), 401, Code.UNAUTHENTICATED)

    def test_other_methods_and_addresses(self, web: FlaskClient) -> None:
        assert web.get("/v2/models/triple/infer").status_code == 405
        assert web.get("/v2/nothing").json == {"error": "there is nothing at this address"}


class TestDescriptions:
    def test_server(self, web: FlaskClient) -> None:
        body = web.get("/v2").json
        assert body["name"] == "outboard" and body["version"]
        assert {"binary_tensor_data", "model_repository", "model_configuration", "statistics"} <= set(body["extensions"])
        assert web.get("/v2/health/live").json == {"live": True}
        assert web.get("/v2/health/ready").json == {"ready": True}

    def test_metadata(self, web: FlaskClient) -> None:
        expected = {
            "name": "versions",
            "versions": ["1", "2"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
        }
        for path in ("/v2/models/versions", "/v2/models/versions/versions/1"):
            body = web.get(path).json
            properties = body.pop("properties")
            assert body == expected and properties["default_version"] == "2" and properties["batching"].startswith(("on, ", "off: "))

    def test_configuration_has_numbers(self, web: FlaskClient) -> None:
        body = web.get("/v2/models/triple/config").json
        assert body["name"] == "triple"
        # the protocol leaves the batch axis out where the server makes batches, which it finds out by measuring
        dims = [2] if body.get("max_batch_size") else [-1, 2]
        assert body["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": dims}]

    def test_configuration_over_grpc_is_the_same(self, host: Process, web: FlaskClient) -> None:
        models = Models([f"grpc://{host['grpc']}"], Client)
        try:
            assert models.config("versions") == web.get("/v2/models/versions/config").json
        finally:
            models.close()

    def test_statistics(self, web: FlaskClient) -> None:
        before = web.get("/v2/models/versions/versions/1/stats").json["model_stats"][0]
        web.post("/v2/models/versions/versions/1/infer", json=x([1, 2], shape=[1, 2]))
        (after,) = web.get("/v2/models/versions/versions/1/stats").json["model_stats"]
        assert after["inference_count"] == before["inference_count"] + 1
        assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 1
        assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
        assert after["last_inference"] > 1.7e12
        assert [entry["version"] for entry in web.get("/v2/models/versions/stats").json["model_stats"]] == ["1", "2"]

    def test_model_ready(self, web: FlaskClient) -> None:
        assert web.get("/v2/models/triple/ready").json == {"name": "triple", "ready": True}
        assert web.get("/v2/models/versions/versions/1/ready").status_code == 200
        error(web.get("/v2/models/unloaded/ready"), 503, Code.NOT_READY)
        error(web.get("/v2/models/nobody/ready"), 404, Code.MODEL_NOT_FOUND)
        error(web.get("/v2/models/versions/versions/9/ready"), 404, Code.VERSION_NOT_FOUND)

    @pytest.mark.parametrize("path", ["", "/config", "/stats", "/versions/1", "/versions/1/config"])
    def test_missing_model(self, web: FlaskClient, path: str) -> None:
        assert "nobody" in error(web.get(f"/v2/models/nobody{path}"), 404, Code.MODEL_NOT_FOUND)
        error(infer(web, "nobody", x([1.0])), 404, Code.MODEL_NOT_FOUND)

    @pytest.mark.parametrize("name", ["%00", "..", "%F0%9F%92%A9", "a" * 5000, "%ED%A0%80"])
    def test_names_that_are_none(self, web: FlaskClient, name: str) -> None:
        assert infer(web, name, x([1.0])).status_code == 404


class TestPrivateModels:
    @pytest.mark.parametrize("path", ["", "/config", "/stats", "/ready", "/versions/1"])
    def test_need_somebody_who_is_signed_in(self, served: Served, web: FlaskClient, path: str) -> None:
        error(web.get(f"/v2/models/secret{path}"), 401, Code.UNAUTHENTICATED)
        assert web.get(f"/v2/models/secret{path}", headers=served.user).status_code == 200

    def test_inference(self, served: Served, web: FlaskClient) -> None:
        answer = infer(web, "secret", x([1, 2], shape=[1, 2]))
        error(answer, 401, Code.UNAUTHENTICATED)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert infer(web, "secret", x([1, 2], shape=[1, 2]), **served.user).json["outputs"][0]["data"] == [2.0, 4.0]

    def test_a_bad_token_is_refused_even_for_a_public_model(self, web: FlaskClient) -> None:
        error(infer(web, "triple", x([1, 2], shape=[1, 2]), Authorization="Bearer nonsense"), 401, Code.UNAUTHENTICATED)

    def test_are_not_listed_for_nobody(self, served: Served, web: FlaskClient) -> None:
        def names(headers: dict[str, str]) -> set[str]:
            return {entry["name"] for entry in web.post("/v2/repository/index", headers=headers).json}

        assert "secret" not in names({}) and "triple" in names({})
        assert "secret" in names(served.user)

        def counted(headers: dict[str, str]) -> set[str]:
            return {entry["name"] for entry in web.get("/v2/models/stats", headers=headers).json["model_stats"]}

        assert "secret" not in counted({}) and "secret" in counted(served.user)


class TestRepository:
    def test_index(self, served: Served, web: FlaskClient) -> None:
        entries = {(entry["name"], entry["version"]): entry for entry in web.post("/v2/repository/index", headers=served.user).json}
        assert entries["versions", "2"] == {"name": "versions", "version": "2", "state": "READY", "reason": ""}
        assert entries["unloaded", "1"]["state"] == "UNAVAILABLE" and entries["unloaded", "1"]["reason"]
        ready = web.post("/v2/repository/index", json={"ready": True}, headers=served.user).json
        assert ("unloaded", "1") not in {(entry["name"], entry["version"]) for entry in ready}
        error(web.post("/v2/repository/index", json={"ready": 1}), 400, Code.INVALID_INPUT)

    @pytest.mark.parametrize("verb", ["load", "unload"])
    def test_only_operators_change_it(self, served: Served, web: FlaskClient, verb: str) -> None:
        error(web.post(f"/v2/repository/models/triple/{verb}"), 401, Code.UNAUTHENTICATED)
        error(web.post(f"/v2/repository/models/triple/{verb}", headers=served.user), 403, Code.FORBIDDEN)
        error(web.post(f"/v2/repository/models/nobody/{verb}", headers=served.administrator), 404, Code.MODEL_NOT_FOUND)

    def test_load_and_unload(self, served: Served, web: FlaskClient) -> None:
        assert web.post("/v2/repository/models/unloaded/load", headers=served.administrator).status_code == 200
        assert infer(web, "unloaded", x([1, 2], shape=[1, 2])).json["outputs"][0]["data"] == [2.0, 4.0]
        assert web.post("/v2/repository/models/unloaded/unload", json={}, headers=served.administrator).status_code == 200
        error(infer(web, "unloaded", x([1, 2], shape=[1, 2])), 503, Code.NOT_READY)

    def test_parameters(self, served: Served, web: FlaskClient) -> None:
        answer = web.post("/v2/repository/models/versions/load", json={"parameters": {"nonsense": "1"}}, headers=served.administrator)
        assert answer.status_code in (400, 501) and "nonsense" in answer.json["error"]
        for body in ({"parameters": []}, {"parameters": {"a": None}}, []):
            error(web.post("/v2/repository/models/versions/load", json=body, headers=served.administrator), 400, Code.INVALID_INPUT)

    @pytest.mark.parametrize("path", ["models/versions/load", "models/versions/unload", "index"])
    def test_a_misspelt_field_is_refused_and_nothing_done(self, served: Served, web: FlaskClient, path: str) -> None:
        answer = web.post(f"/v2/repository/{path}", json={"parameter": {"version": "1"}}, headers=served.administrator)
        error(answer, 400, Code.INVALID_INPUT)
        assert "unknown field 'parameter'; known is '" in answer.json["error"]
        assert infer(web, "versions", x([1, 2], shape=[1, 2])).json["model_version"] == "2"


class TestRequests:
    @pytest.mark.parametrize("path", ["/v1/users", "/v1/models/triple/predictions", "/v2/models/triple/infer"])
    def test_an_empty_json_body_is_called_empty(self, web: FlaskClient, path: str) -> None:
        answer = web.post(path, data=b"", content_type="application/json")
        assert answer.status_code == 400 and "the body is empty" in answer.text

    def test_the_request_id_reaches_the_answer(self, web: FlaskClient) -> None:
        answer = infer(web, "triple", x([1, 2], shape=[1, 2]), **{"X-Request-Id": "mine-1"})
        assert answer.headers["X-Request-Id"] == "mine-1" and "id" not in answer.json
