"""Clients that others wrote, unmodified, each in a process of its own, against everything as `outboard up` starts it.

All of them must give what onnxruntime gives when it is called directly: to the last bit for the raw forms.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import skimage
from PIL import Image

from outboard import demo
from tests.needs import needs
from tests.processes import ROOT, Process, environment

CLIENTS = Path(__file__).parent / "clients"
PICTURES = Path(skimage.__file__).parent / "data"
DEMO = "efficientnet-lite0"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def photograph() -> np.ndarray:
    """The demo's input made by hand: short side 256, centre 224, (x - 127) / 128."""
    with Image.open(PICTURES / "coffee.png") as picture:
        scale = 256 / min(picture.size)
        small = picture.convert("RGB").resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (small.width - 224) // 2, (small.height - 224) // 2
    pixels = np.asarray(small.crop((left, top, left + 224, top + 224)), np.float32)
    return np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1)[None])


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """(the input's file, onnxruntime's own answer)."""
    folder = tmp_path_factory.mktemp("question")
    demo.prepare(folder)
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / DEMO / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"])
    np.save(folder / "in.npy", photograph())
    (answer,) = session.run(None, {"image": photograph()})
    return folder / "in.npy", answer


def same_bits(path: Path, answer: np.ndarray) -> None:
    got = np.load(path)
    assert got.dtype == answer.dtype and got.shape == answer.shape and got.tobytes() == answer.tobytes()


@pytest.mark.parametrize("form", ["binary", "json"])
def test_triton_http(stack: Process, question: tuple[Path, np.ndarray], tmp_path: Path, form: str) -> None:
    run(
        sys.executable,
        str(CLIENTS / "triton_http.py"),
        stack["http"].removeprefix("http://"),
        DEMO,
        str(question[0]),
        str(tmp_path / "out.npy"),
        form,
    )
    same_bits(tmp_path / "out.npy", question[1])


@pytest.mark.parametrize("client", ["triton_grpc", "triton_grpc_aio"])
def test_triton_grpc(stack: Process, question: tuple[Path, np.ndarray], tmp_path: Path, client: str) -> None:
    run(sys.executable, str(CLIENTS / f"{client}.py"), stack["grpc"], DEMO, str(question[0]), str(tmp_path / "out.npy"))
    same_bits(tmp_path / "out.npy", question[1])


@needs("thrift")
def test_apache_thrift(stack: Process, question: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    run("thrift", "-r", "--gen", "py", "-out", str(tmp_path), str(ROOT / "idl" / "inference.thrift"))
    host, port = stack["thrift"].split(":")
    client = str(CLIENTS / "apache_thrift.py")
    run(sys.executable, client, host, port, DEMO, str(question[0]), str(tmp_path / "out.npy"), str(tmp_path))
    same_bits(tmp_path / "out.npy", question[1])


def test_health_probe_by_reflection(stack: Process) -> None:
    run(sys.executable, str(CLIENTS / "reflection_probe.py"), stack["grpc"], DEMO)


@needs("curl")
@pytest.mark.parametrize(("picture", "label", "score"), [("coffee.png", "espresso", 0.951), ("camera.png", "tripod", 0.937)])
def test_curl_classifies_a_photograph(stack: Process, picture: str, label: str, score: float) -> None:
    answer = json.loads(run("curl", "-sS", "-F", f"image=@{PICTURES / picture}", f"{stack['http']}/v1/models/{DEMO}/predictions"))
    best = answer["labels"][0][0]
    assert best["label"] == label and abs(best["score"] - score) < 0.005, best
    assert answer["model"] == DEMO and answer["version"] == "1" and len(answer["labels"][0]) == 5
    assert abs(answer["outputs"]["probabilities"][0][best["index"]] - best["score"]) < 1e-6


@needs("curl")
def test_curl_speaks_the_open_protocol(stack: Process) -> None:
    body = json.dumps({"id": "c", "inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}]})
    answer = json.loads(run("curl", "-sS", "-d", body, f"{stack['http']}/v2/models/triple/infer"))
    assert answer["id"] == "c" and answer["outputs"][0]["data"] == [3, 6, 9, 12] and answer["outputs"][0]["shape"] == [2, 2]
