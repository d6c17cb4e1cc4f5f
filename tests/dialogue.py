"""The dialogue's model in this process, and, as a command (`python -m tests.dialogue`), what computes its vectors anew after its questions were
changed.
"""

import runpy
import sys
import types
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

OURS = Path(__file__).resolve().parent.parent / "outboard" / "dialogue"
VECTORS = OURS / "vectors.npy"


def module(version: Path) -> Any:
    """`model.py` of a prepared folder, as an executor runs it."""
    api: Any = types.ModuleType("outboard_model")
    api.InvalidInput = ValueError
    before = dict(sys.modules)
    sys.modules["outboard_model"] = api
    sys.path.insert(0, str(version))
    try:
        return types.SimpleNamespace(**runpy.run_path(str(version / "model.py")))
    finally:
        sys.path.remove(str(version))
        for name in ("outboard_model", "wordpiece"):
            sys.modules.pop(name)
            if name in before:
                sys.modules[name] = before[name]


def main() -> None:
    from outboard import demo_dialogue

    with TemporaryDirectory() as folder:
        version = demo_dialogue.prepare(Path(folder)) / "1"
        found = module(version)
        texts = [text for text in found.questions(version) if not found.in_chinese(text)]
        np.save(version / "vectors.npy", np.zeros((len(texts), 384), np.float16))
        np.save(VECTORS, found.Dialogue(version).embedded(texts).astype(np.float16))


if __name__ == "__main__":
    main()
