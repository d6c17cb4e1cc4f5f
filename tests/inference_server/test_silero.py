"""A real stateful model: silero-vad, whose state the server carries for many conversations at a time. Equal to running each alone, to the bit."""

import importlib.util
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idl.messages import InferRequest, Tensor
from inference_server.backends.runtime import onnxruntime
from inference_server.engine import Engine

CHUNKS, SAMPLES, RATE = 12, 576, 16_000
SETTINGS = """
max_queue_delay_us = 10000
[state.state]
output = "stateN"
batch_axis = 1
"""


def found() -> Path:
    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.onnx"


def conversation(seed: int) -> "np.ndarray[Any, Any]":
    """[CHUNKS, SAMPLES]: something like speech for a while, then next to nothing."""
    random = np.random.default_rng(seed)
    time = np.arange(CHUNKS * SAMPLES) / RATE
    tone = sum(np.sin(2 * np.pi * (110 + 20 * seed) * harmonic * time) / harmonic for harmonic in range(1, 8))
    sound = 0.2 * tone * (1 + np.sin(2 * np.pi * 4 * time)) * (time < time[-1] * (0.3 + 0.05 * seed)) + random.normal(0, 0.005, time.size)
    return sound.astype(np.float32).reshape(CHUNKS, SAMPLES)


def alone(sound: "np.ndarray[Any, Any]") -> list[float]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(found()), options, providers=["CPUExecutionProvider"])
    state, said = np.zeros((2, 1, 128), np.float32), []
    for chunk in sound:
        output, state = session.run(["output", "stateN"], {"input": chunk[None], "state": state, "sr": np.array(RATE, np.int64)})
        said.append(float(output[0, 0]))
    return said


@pytest.fixture
def speech(engine: Engine, repository: Path) -> Engine:
    file = repository / "vad" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    shutil.copy(found(), file)
    (repository / "vad" / "model.toml").write_text(SETTINGS)
    engine.repository_model_load("vad", {})
    return engine


def test_twenty_conversations_at_once_are_each_as_if_alone(speech: Engine) -> None:
    assert [spec.name for spec in speech.model_metadata("vad", "").inputs] == ["input", "sr"]
    sounds = [conversation(seed) for seed in range(20)]
    heard: list[list[float]] = [[] for _ in sounds]

    def talk(number: int) -> None:
        for turn, chunk in enumerate(sounds[number]):
            tensors = (
                Tensor("input", "FP32", (1, SAMPLES), chunk.tobytes()),
                Tensor("sr", "INT64", (), np.array(RATE, np.int64).tobytes()),
            )
            flags = {"sequence_start": turn == 0, "sequence_end": turn == CHUNKS - 1}
            answer = speech.model_infer(InferRequest("vad", tensors, parameters={"sequence_id": f"caller-{number}", **flags}))
            heard[number].append(float(np.frombuffer(answer.outputs[0].data, np.float32)[0]))

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(len(sounds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [alone(sound) for sound in sounds]
    assert max(max(said) for said in expected) > 0.5 > min(min(said) for said in expected), "something is heard, and something is not"
    assert heard == expected
    statistics = speech.model_statistics("vad", "")[0]
    assert statistics.success.count == 20 * CHUNKS and statistics.execution_count < 20 * CHUNKS, "some shared a run"
