"""Snippets: what they say for every kind of signature, and that no name breaks out of them. tests/e2e/pages runs them."""

import ast
import json
import shlex
import subprocess
from dataclasses import replace

import pytest

from gateway.pages import signatures, snippets
from gateway.pages.signatures import Tensor
from gateway.pages.snippets import Endpoint
from gateway.settings import Settings
from tests.needs import needs

NUMBERS = Tensor("x", "FP32", ("batch", 2))
PICTURE = Tensor("image", "FP32", (-1, 3, 224, 224), picture=True)
TEXT = Tensor("text_input", "BYTES", (1,))
LARGE = Tensor("big", "FP16", (1, 64, 64))
CLASS = Tensor("colour", "BYTES", ("n", 1), values=("red", "blue"))
AGE = Tensor("age", "INT64", ("n", 1), low=18, high=40)
HOSTILE = Tensor("a'b\"c$(id)`id`\\\n</script>{x}", "FP32", (1,))
ALL = {
    "numbers": (NUMBERS,),
    "picture": (PICTURE,),
    "text": (TEXT,),
    "large": (LARGE,),
    "table": (CLASS, AGE),
    "picture and number": (PICTURE, AGE),
    "picture and large": (PICTURE, LARGE),
    "hostile": (HOSTILE,),
    "bf16": (Tensor("b", "BF16", (2,)), Tensor("flag", "BOOL", (1,))),
    "nothing": (),
}


def endpoint(*inputs: Tensor, streams: bool = False) -> Endpoint:
    outputs = (Tensor("y", "FP32", (-1, 2)),)
    more = {"rpc_name": "ann.d", "grpc": "grpcs://h:8001", "thrift": "thrifts://h:9090", "rpc_needs_token": True}
    return Endpoint("http://h:8080", "/v1/deployments/ann.d/predictions", inputs, outputs, needs_token=True, streams=streams, **more)


def texts(given: Endpoint) -> dict[str, str]:
    return {each.key: each.text for each in snippets.snippets(given)}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_each_is_a_program(name: str, streams: bool) -> None:
    made = texts(endpoint(*ALL[name], streams=streams))
    assert list(made) == ["curl", "python", "javascript", "grpc", "thrift"]
    for key in ("python", "grpc", "thrift"):
        ast.parse(made[key])
    assert subprocess.run(["bash", "-n"], input=made["curl"].encode(), check=False).returncode == 0
    words = shlex.split(made["curl"].replace("\\\n", " "))
    assert "curl" in words and words[-1] == "http://h:8080/v1/deployments/ann.d/predictions"
    if "-d" in words and "@-" not in words:
        body = json.loads(words[words.index("-d") + 1])
        assert set(body if streams else body["inputs"]) == {each.name for each in ALL[name]}


@needs("node")
def test_javascript_can_be_read(tmp_path: object) -> None:
    for given in ALL.values():
        text = texts(endpoint(*given))["javascript"]
        done = subprocess.run(["node", "--check", "--input-type=module"], input=text.encode(), capture_output=True, check=False)
        assert done.returncode == 0, (text, done.stderr.decode())


def test_names_are_literals() -> None:
    """Whatever an input is called, it is the same text inside the program."""
    made = texts(endpoint(HOSTILE))
    literals = {node.value for node in ast.walk(ast.parse(made["python"])) if isinstance(node, ast.Constant)}
    assert HOSTILE.name in literals
    assert json.loads(shlex.split(made["curl"].replace("\\\n", " "))[6])["inputs"] == {HOSTILE.name: [0.5]}


def test_what_a_picture_is_sent_as() -> None:
    assert "-F image=@picture.jpg" in texts(endpoint(PICTURE))["curl"]
    assert "--form-string age=[[29]]" in texts(endpoint(PICTURE, AGE))["curl"].replace("'", "")
    assert "b64encode" in texts(endpoint(PICTURE, LARGE))["python"]
    assert "-F" not in texts(endpoint(replace(PICTURE, name="a;type=x")))["curl"].split()


def test_without_a_host_that_can_be_reached_there_is_no_rpc() -> None:
    assert list(texts(replace(endpoint(NUMBERS), grpc="", rpc_name="x"))) == ["curl", "python", "javascript", "thrift"]
    assert list(texts(replace(endpoint(NUMBERS), rpc_name=""))) == ["curl", "python", "javascript"]
    assert "TOKEN" not in texts(replace(endpoint(NUMBERS), needs_token=False))["curl"]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (Settings(), ("", "thrift://127.0.0.1:9090")),
        (Settings(model_hosts=("thrift+unix:///x",)), ("", "")),
        (Settings(model_hosts=("grpcs://a:1",)), ("grpcs://a:1", "")),
        (Settings(public_grpc="grpc://0.0.0.0:8001", public_thrift="thrifts://[::]:9090"), ("grpc://page:8001", "thrifts://page:9090")),
        (Settings(public_grpc="nonsense", public_thrift="thrift://[::1]:9090"), ("", "thrift://[::1]:9090")),
    ],
)
def test_where_the_model_host_is(settings: Settings, wanted: tuple[str, str]) -> None:
    assert snippets.rpc_addresses(settings, "page") == wanted


@pytest.mark.parametrize(
    ("tensor", "kind", "sample"),
    [
        (NUMBERS, "grid", [[0.5, 1.0]]),
        (TEXT, "text", ["a short text"]),
        (AGE, "number", [[29]]),
        (CLASS, "choice", [["red"]]),
        (Tensor("i", "INT64", ("batch", "sequence")), "lines", [[1, 1, 1, 1]]),
        (Tensor("v", "FP32", (40,)), "lines", None),
        (Tensor("v", "FP32", (3,)), "grid", [0.5, 1.0, 1.5]),
        (Tensor("s", "FP32", ()), "number", 0.5),
        (Tensor("b", "BOOL", ("n",)), "check", [True]),
        (Tensor("t", "BYTES", (2, 2)), "json", [["a short text"] * 2] * 2),
        (Tensor("p", "FP64", (1,), low=2.0), "number", [2.0]),
        (Tensor("p", "FP64", (1,), high=-2.0), "number", [-2.0]),
        (Tensor("p", "INT32", (1,), values=("3", "4")), "choice", [3]),
        (Tensor("p", "FP32", (2, 2, 2)), "json", [[[0.5, 1.0], [1.5, 2.0]], [[2.5, 3.0], [3.5, 4.0]]]),
    ],
)
def test_which_piece_of_the_form_an_input_gets(tensor: Tensor, kind: str, sample: object) -> None:
    assert signatures.kind(tensor) == kind
    if sample is not None:
        assert tensor.is_small and signatures.sample(tensor) == sample
