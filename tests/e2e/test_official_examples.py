"""What the official client's examples do, over gRPC and HTTP, against everything as `outboard up` starts it."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from onnx import TensorProto, helper

from tests.gateway.model_host import copies
from tests.inference_server.test_sequences import summing
from tests.onnx_models import identity, save, times
from tests.processes import Process, environment, start_up
from tests.python_models import python_model

PROGRAM = Path(__file__).parent / "clients" / "triton_examples.py"
FUNCTIONS = [node for node in ast.parse(PROGRAM.read_text()).body if isinstance(node, ast.FunctionDef)]
CHECKS = [function.name for function in FUNCTIONS if [argument.arg for argument in function.args.args] == ["o"]]
PASSWORD = "correct horse battery"
REPEATS = """
import json
def infer(inputs, parameters):
    return {"said": [json.dumps(parameters)]}, {"heard": parameters["word"]}
"""
ASLEEP = """
import time
def infer(inputs):
    time.sleep(0.5)
    return {"y": inputs["x"]}
"""


def simple(path: Path) -> None:
    """The model of most examples: the sum and the difference of two times sixteen numbers."""
    given, taken = (
        [helper.make_tensor_value_info(f"{name}{index}", TensorProto.INT32, ("batch", 16)) for index in (0, 1)]
        for name in ("INPUT", "OUTPUT")
    )
    nodes = [helper.make_node(kind, ["INPUT0", "INPUT1"], [f"OUTPUT{index}"]) for index, kind in enumerate(("Add", "Sub"))]
    save(helper.make_graph(nodes, "simple", given, taken), path)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("examples")
    models = folder / "models"
    simple(models / "simple" / "1" / "model.onnx")
    times(models / "controlled" / "1" / "model.onnx", 3)
    identity(models / "text" / "1" / "model.onnx", TensorProto.STRING, ("n", "m"))
    summing(models / "sums" / "1" / "model.onnx")
    (models / "sums" / "model.toml").write_text('[state.sum]\noutput = "next"\nbatch_axis = 1\n[sequence]\nidle_timeout_s = 60\n')
    copies(models / "animals" / "1" / "model.onnx", ("x", "scores", TensorProto.FLOAT, ("n", "k")))
    (models / "animals" / "labels.txt").write_text("cat\ndog\nbird\n")
    (models / "animals" / "model.toml").write_text('[labels]\nscores = "labels.txt"\n')
    x = '[inputs.x]\ndatatype = "FP32"\nshape = [-1]\n'
    python_model(models / "repeats", REPEATS, x + '[outputs.said]\ndatatype = "BYTES"\nshape = [1]\n')
    python_model(models / "asleep", ASLEEP, "batching = false\n" + x + '[outputs.y]\ndatatype = "FP32"\nshape = [-1]\n')
    more = {"OUTBOARD_ADMIN_PASSWORD": PASSWORD, "OUTBOARD_SERVER_SHARED_MEMORY": "true"}
    made = start_up(folder / "data", "--no-demo", "--models", str(models), **more)
    body = json.dumps({"username": "admin", "password": PASSWORD}).encode()
    asked = Request(f"{made['http']}/v1/tokens", body, {"Content-Type": "application/json"})
    with urlopen(asked, timeout=30) as answer:
        made.addresses["token"] = json.load(answer)["access_token"]
    yield made
    assert made.stop() == 0, made.log.read_text()


@pytest.fixture(scope="module", params=["grpc", "http"])
def told(up: Process, request: pytest.FixtureRequest) -> dict[str, str]:
    """Check -> what went wrong."""
    command = [sys.executable, str(PROGRAM), request.param, up[request.param].removeprefix("http://"), up["token"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("check", CHECKS)
def test_example(told: dict[str, str], check: str) -> None:
    assert told[check] == "", told[check]
