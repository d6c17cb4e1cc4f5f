"""A real pipeline: sentences to token ids (Python), to a vector for each token (MiniLM, ONNX), to one for each sentence (Python)."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from idl import tensors
from idl.messages import InferRequest, Tensor
from inference_server.engine import Engine
from outboard import demo_dialogue
from tests import dialogue
from tests.python_models import python_model

TOKENISE = """
import numpy as np
from wordpiece import WordPiece
def load(context):
    global pieces
    pieces = WordPiece((context.folder / "vocabulary.txt").read_text().splitlines())
def infer(inputs):
    found = [pieces(text.decode()) for text in inputs["text"]]
    longest = max(map(len, found))
    ids = np.array([each + [0] * (longest - len(each)) for each in found], np.int64)
    mask = np.array([[1] * len(each) + [0] * (longest - len(each)) for each in found], np.int64)
    return {"ids": ids, "mask": mask, "types": np.zeros_like(ids)}
"""
TOKENISE_TOML = """
[inputs.text]
datatype = "BYTES"
shape = [-1]
""" + "".join(f'[outputs.{name}]\ndatatype = "INT64"\nshape = [-1, -1]\n' for name in ("ids", "mask", "types"))
POOL = """
import numpy as np
def infer(inputs):
    mask = inputs["mask"][:, :, None]
    mean = (inputs["states"] * mask).sum(axis=1) / mask.sum(axis=1)
    return {"vector": (mean / np.linalg.norm(mean, axis=1)[:, None]).astype(np.float32)}
"""
POOL_TOML = """
[inputs.states]
datatype = "FP32"
shape = [-1, -1, 384]
[inputs.mask]
datatype = "INT64"
shape = [-1, -1]
[outputs.vector]
datatype = "FP32"
shape = [-1, 384]
"""
PIPELINE = """
[[steps]]
model = "tokenise"
inputs = { text = "sentence" }
[[steps]]
model = "minilm"
inputs = { input_ids = "ids", attention_mask = "mask", token_type_ids = "types" }
outputs = { OUTPUT = "states" }
[[steps]]
model = "pool"
outputs = { vector = "embedding" }
"""
SENTENCES = ["A man is eating food.", "Somebody has a meal.", "The server answers in microseconds.", "Ünïcode, über alles?"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_dialogue.prepare(tmp_path_factory.mktemp("dialogue")) / "1"


def embed(engine: Engine, *sentences: str) -> np.ndarray:
    array = np.array([sentence.encode() for sentence in sentences], object)
    request = InferRequest("embed", (Tensor("sentence", "BYTES", array.shape, tensors.encode(array)),))
    (output,) = engine.model_infer(request).outputs
    assert (output.name, output.datatype) == ("embedding", "FP32")
    return np.frombuffer(output.data, np.float32).reshape(output.shape)


def test_sentences_become_vectors_inside_the_server(engine: Engine, repository: Path, prepared: Path) -> None:
    tokenise = python_model(repository / "tokenise", TOKENISE, TOKENISE_TOML)
    for name in ("wordpiece.py", "vocabulary.txt"):
        shutil.copy(prepared / name, tokenise.parent)
    python_model(repository / "pool", POOL, POOL_TOML)
    (repository / "minilm" / "1").mkdir(parents=True)
    shutil.copy(prepared / "encoder.onnx", repository / "minilm" / "1" / "model.onnx")
    (repository / "minilm" / "model.toml").write_text("max_batch_size = 8\nmax_queue_delay_us = 20000")
    (repository / "embed" / "1").mkdir(parents=True)
    engine.repository_model_load("minilm", {})
    (output,) = engine.model_metadata("minilm", "").outputs
    (repository / "embed" / "model.toml").write_text(PIPELINE.replace("OUTPUT", output.name))
    engine._library.load_all(0)
    metadata = engine.model_metadata("embed", "")
    assert [(s.name, s.datatype, s.shape) for s in (*metadata.inputs, *metadata.outputs)] == [
        ("sentence", "BYTES", (-1,)),
        ("embedding", "FP32", (-1, 384)),
    ]
    module = dialogue.module(prepared)
    alone = module.Dialogue(prepared).embedded(SENTENCES)
    together = embed(engine, *SENTENCES)
    assert np.abs(together - alone).max() < 1e-4, "as without a server"
    near = together @ together.T
    assert near[0, 1] > 0.5 > near[0, 2]
    with ThreadPoolExecutor(8) as pool:
        many = list(pool.map(lambda number: embed(engine, SENTENCES[number % 4]), range(32)))
    for number, vector in enumerate(many):
        assert float(vector[0] @ alone[number % 4]) > 0.98
    stats = {name: engine.model_statistics(name, "")[0] for name in ("embed", "tokenise", "minilm", "pool")}
    assert {each.success.count for each in stats.values()} == {33}
    assert stats["minilm"].execution_count < 33, "requests of different callers shared runs of the encoder"
