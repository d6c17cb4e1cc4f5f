"""A Flask application with the model inside: each uWSGI worker loads it and runs it.

What it answers, and how it reads a photograph, is what Outboard's gateway does, so that only the place of the model differs.
"""

import os
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from flask import Flask, request
from PIL import Image

from benchmarks.inprocess import LABELS_VARIABLE, MODEL_VARIABLE
from benchmarks.repository import picture_tensor
from benchmarks.workload import open_session

TOP_K = 5


def create_app() -> Flask:
    app = Flask(__name__)
    file = Path(os.environ[MODEL_VARIABLE]).resolve()
    labels = app.json.loads(Path(os.environ[LABELS_VARIABLE]).read_text())
    session = open_session(file, 1)

    @app.post("/predictions")
    def predict() -> dict[str, Any]:
        begin = time.perf_counter()
        tensor = picture_tensor(Image.open(request.files["image"].stream).convert("RGB"))
        rows = session.run(["probabilities"], {"image": tensor})[0]
        best = np.argsort(rows[0])[: -TOP_K - 1 : -1].tolist()
        return {
            "id": str(uuid.uuid4()),
            "model": "efficientnet-lite0",
            "version": file.parent.name,
            "outputs": {"probabilities": rows.tolist()},
            "labels": [[{"label": labels[index], "index": index, "score": float(rows[0, index])} for index in best]],
            "timing_ms": {"total": (time.perf_counter() - begin) * 1e3},
        }

    return app


application = create_app()
