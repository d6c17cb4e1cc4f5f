"""Models made of models: what they answer, what they refuse, and what becomes of them when their steps change or go."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idl.codes import Code, ServingError
from idl.messages import InferRequest, Tensor
from inference_server.engine import Engine
from inference_server.executors.process import Watcher, Zygote
from tests.engines import engine_over
from tests.eventually import eventually
from tests.inference_server.conftest import floats, request
from tests.onnx_models import identity, times
from tests.python_models import python_model

CHAIN = """
[[steps]]
model = "double"
outputs = { y = "doubled" }
[[steps]]
model = "triple"
inputs = { x = "doubled" }
"""
CIRCLE = """
[[steps]]
model = "double"
inputs = { x = "b" }
outputs = { y = "a" }
[[steps]]
model = "triple"
inputs = { x = "a" }
outputs = { y = "b" }
"""
SLEEP = """
import time
def infer(inputs, parameters):
    time.sleep(float(parameters.get("pause", 0)))
    if parameters.get("fail"): raise ValueError("on purpose")
    return {"y": inputs["x"]}, {"said": "slept"}
"""
SLEEP_TOML = """
[inputs.x]
datatype = "FP32"
shape = [-1, 2]
[outputs.y]
datatype = "FP32"
shape = [-1, 2]
"""


def pipeline(repository: Path, toml: str, name: str = "p") -> None:
    """A version folder without anything in it, and `model.toml`."""
    (repository / name / "1").mkdir(parents=True, exist_ok=True)
    (repository / name / "model.toml").write_text(toml)


def load(engine: Engine, *names: str) -> None:
    for name in names:
        engine.repository_model_load(name, {})


def why(engine: Engine, name: str = "p") -> tuple[Code, str]:
    with pytest.raises(ServingError) as caught:
        engine.repository_model_load(name, {})
    return caught.value.code, caught.value.message


def ask(engine: Engine, values: Any = ((1, 2),), **more: Any) -> list[float]:
    array = np.float32(values)
    return floats(engine.model_infer(InferRequest("p", (Tensor("x", "FP32", array.shape, array.tobytes()),), **more)))


def refused(engine: Engine, **more: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        ask(engine, **more)
    return caught.value


@pytest.fixture
def chain(engine: Engine, repository: Path) -> Engine:
    """x -> doubled -> y, six times x; loaded as a start does it, in an order in which the pipeline comes first by its name."""
    times(repository / "triple" / "1" / "model.onnx", 3)
    times(repository / "double" / "1" / "model.onnx", 2)
    pipeline(repository, CHAIN)
    pipeline(repository, '[[steps]]\nmodel = "p"', "a")
    engine._library.load_all(0)
    return engine


def test_a_chain_answers_with_the_signature_of_its_ends(chain: Engine) -> None:
    assert ask(chain) == [6, 12]
    metadata = chain.model_metadata("p", "")
    assert [(s.name, s.datatype, s.shape) for s in (*metadata.inputs, *metadata.outputs)] == [
        ("x", "FP32", (-1, 2)),
        ("y", "FP32", (-1, 2)),
    ]
    config = chain.model_config("p", "")
    assert (metadata.platform, config["platform"], "backend" in config) == ("ensemble", "ensemble", False)
    assert [step["model_name"] for step in config["ensemble_scheduling"]["step"]] == ["double", "triple"]
    for name in ("p", "double", "triple"):
        assert chain.model_statistics(name, "")[0].success.count == 1
    assert refused(chain, values=[1, 2]).code is Code.INVALID_INPUT
    assert floats(chain.model_infer(request("a", [[1, 1]]))) == [6, 6], "a pipeline in a pipeline"
    wrong = request("p", [[1, 2]])
    with pytest.raises(ServingError, match="no sequences"):
        chain.model_infer(InferRequest("p", wrong.inputs, parameters={"sequence_id": 5}))


def test_steps_that_change_or_go(chain: Engine, repository: Path) -> None:
    times(repository / "triple" / "2" / "model.onnx", 5)
    load(chain, "triple")
    assert ask(chain) == [10, 20]
    chain.repository_model_unload("triple", {})
    error = refused(chain)
    assert (error.code, error.message) == (Code.NOT_READY, "step 'triple': model 'triple' is not loaded")
    assert not chain.model_ready("p", "") and not chain.model_ready("a", "")
    states = {entry.name: (entry.state, entry.reason) for entry in chain.repository_index(False)}
    assert states["p"][0] == "UNAVAILABLE" and "step 'triple'" in states["p"][1]
    load(chain, "triple")
    assert chain.model_ready("p", "") and ask(chain) == [10, 20]


def test_a_pipeline_waits_for_its_steps(engine: Engine, repository: Path) -> None:
    times(repository / "double" / "1" / "model.onnx", 2)
    pipeline(repository, CHAIN)
    engine._library.load_all(0)
    assert why(engine) == (Code.NOT_READY, "model 'p': step 'triple': model 'triple' is not in the repository")
    assert refused(engine).message == "model 'p' failed to load: step 'triple': model 'triple' is not in the repository"
    times(repository / "triple" / "1" / "model.onnx", 3)
    load(engine, "triple")
    assert ask(engine) == [6, 12], "it was loaded when its last step was"


def test_branches_run_side_by_side_and_only_what_is_wanted(engine: Engine, repository: Path) -> None:
    for name in ("left", "right"):
        python_model(repository / name, SLEEP, SLEEP_TOML)
    pipeline(
        repository,
        """
        [[steps]]
        model = "left"
        outputs = { y = "l" }
        [[steps]]
        model = "right"
        outputs = { y = "r" }
        """,
    )
    load(engine, "left", "right", "p")
    began = time.monotonic()
    response = engine.model_infer(InferRequest("p", request("p", [[1, 2]]).inputs, parameters={"pause": 1.0}))
    assert time.monotonic() - began < 1.9
    assert [output.name for output in response.outputs] == ["l", "r"] and response.parameters["said"] == "slept"
    response = engine.model_infer(InferRequest("p", request("p", [[1, 2]]).inputs, outputs=("r",)))
    assert [output.name for output in response.outputs] == ["r"]
    assert [engine.model_statistics(name, "")[0].success.count for name in ("left", "right")] == [1, 2]


def test_errors_deadlines_and_callers_that_go(engine: Engine, repository: Path) -> None:
    python_model(repository / "sleep", SLEEP, SLEEP_TOML)
    pipeline(repository, '[[steps]]\nmodel = "sleep"\nname = "nap"')
    load(engine, "sleep", "p")
    error = refused(engine, parameters={"fail": True})
    assert (error.code, error.message) == (Code.MODEL_FAILED, "step 'nap': model.py, line 5: ValueError: on purpose")
    error = refused(engine, parameters={"pause": 0.6}, deadline=time.monotonic() + 0.2)
    assert error.code is Code.DEADLINE_EXCEEDED
    eventually(lambda: engine._models.in_flight() == 0, "nothing is left inside")
    # one sleeps in the step, the others wait before it; their callers go, and they are not run
    counted = engine.model_statistics("sleep", "")[0].execution_count
    late = time.monotonic() + 0.6
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda _: refused(engine, parameters={"pause": 1.0}, deadline=late), range(5)))
    eventually(lambda: engine._models.in_flight() == 0, "nothing is left inside")
    assert engine.model_statistics("sleep", "")[0].execution_count - counted <= 1
    assert ask(engine) == [1, 2]


def test_requests_share_the_runs_of_a_step(engine: Engine, repository: Path) -> None:
    times(repository / "double" / "1" / "model.onnx", 2)
    (repository / "double" / "model.toml").write_text("max_batch_size = 8\nmax_queue_delay_us = 2000000\npreferred_batch_sizes = [8]")
    pipeline(repository, '[[steps]]\nmodel = "double"')
    load(engine, "double", "p")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: ask(engine, [[number, number]]), range(8)))
    assert answers == [[2 * number] * 2 for number in range(8)]
    assert engine.model_statistics("double", "")[0].execution_count == 1


def test_a_step_that_dies_is_waited_for(chain: Engine) -> None:
    served = chain._library.route("double", "")
    stop, answers = threading.Event(), []

    def caller() -> None:
        while not stop.is_set():
            try:
                answers.append(ask(chain))
            except ServingError as error:
                answers.append(error)

    thread = threading.Thread(target=caller)
    thread.start()
    try:
        for _ in range(3):
            eventually(lambda: served.executors, "it is there")
            (executor,) = served.executors
            count = len(answers)
            executor.kill()
            eventually(lambda count=count: len(answers) > count + 20, "answers go on")
    finally:
        stop.set()
        thread.join()
    wrong = [answer for answer in answers if answer != [6, 12]]
    assert all(isinstance(error, ServingError) and error.code is Code.MODEL_FAILED for error in wrong) and len(wrong) <= 3


def test_a_drain_lets_those_inside_finish(engine: Engine, repository: Path) -> None:
    python_model(repository / "sleep", SLEEP, SLEEP_TOML)
    pipeline(repository, '[[steps]]\nmodel = "sleep"\noutputs = { y = "t" }\n[[steps]]\nmodel = "sleep"\ninputs = { x = "t" }')
    load(engine, "sleep", "p")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, engine, parameters={"pause": 0.3})
        eventually(lambda: engine._models.in_flight() > 0, "it is inside")
        assert engine.drain(False, 10) == (True, 0)
        assert answer.result() == [1, 2]


@pytest.mark.parametrize(
    ("toml", "reason"),
    [
        ('[[steps]]\nmodel = "double"\ninputs = { z = "x" }', "step 'double': model 'double' has no input 'z'; it has 'x'"),
        ('[[steps]]\nmodel = "double"\noutputs = { z = "x" }', "step 'double': model 'double' has no output 'z'; it has 'y'"),
        ('[[steps]]\nmodel = "double"\ninputs = {}', "step 'double' does not say where input 'x' of model 'double' comes from"),
        ('[[steps]]\nmodel = "double"\noutputs = {}', "step 'double' gives nothing: its outputs name no tensor"),
        (CHAIN + '[inputs.a]\nkind = "tensor"', "step 'double' takes tensor 'x', which no step makes, and which is none of its inputs ([inputs])"),
        (CHAIN + '[inputs.x]\n[inputs.doubled]', "inputs.doubled: step 'double' makes it"),
        (CHAIN + '[inputs.x]\n[inputs.b]', "inputs.b: no step takes it"),
        (CHAIN + '[inputs.x]\ndatatype = "INT32"', "tensor 'x' is FP32 [-1, 2] for its steps and INT32 [-1, 2] for model.toml (inputs)"),
        (CHAIN + "[outputs.c]", "outputs.c: no step makes it; made are 'doubled', 'y'"),
        ('[[steps]]\nmodel = "double"\n[[steps]]\nmodel = "triple"', "tensor 'y' is made twice: by step 'double' and 'triple'"),
        (
            CIRCLE,
            "its steps wait for each other in a circle: 'double', 'triple'",
        ),
        (
            '[[steps]]\nmodel = "double"\noutputs = { y = "t" }\n[[steps]]\nmodel = "text"\ninputs = { x = "t" }\noutputs = { y = "z" }',
            "tensor 't' is FP32 [-1, 2] for step 'double' and BYTES [-1] for step 'text'",
        ),
        ('[[steps]]\nmodel = "tokens"', "step 'tokens': model 'tokens' gives several answers for a request, and a step must give one"),
        ("[[steps]]\n", "model.toml: steps[1].model = None is not the name of a model"),
        ('steps = []', "model.toml: steps = [] is not a list of 1 to 64 tables"),
        ('[[steps]]\nmodel = "m"\nx = 1', "model.toml: steps[1] has an unknown key 'x'; known are inputs, model, name, outputs, version"),
        ('[[steps]]\nmodel = "m"\ninputs = 1', "model.toml: steps[1].inputs = 1 is not a table of tensor of the step = tensor of the pipeline"),
        ('[[steps]]\nmodel = "m"\nversion = 0', "model.toml: steps[1].version = 0 is not a version's number or a label"),
        ('[[steps]]\nmodel = "m"\n[[steps]]\nmodel = "n"\nname = "m"', "model.toml: steps[2].name = 'm' is the name of another step as well"),
        (CHAIN + '[python]\nflags = ["-O"]', "python and steps do not go together: a pipeline has no model of its own"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_says_why(engine: Engine, repository: Path, toml: str, reason: str) -> None:
    times(repository / "double" / "1" / "model.onnx", 2)
    times(repository / "triple" / "1" / "model.onnx", 3)
    identity(repository / "text" / "1" / "model.onnx", 8)
    for name in [name for name in ("double", "triple", "text") if name in toml]:
        load(engine, name)
    if "tokens" in toml:
        from tests.python_models import tokens

        tokens(repository / "tokens")
        load(engine, "tokens")
    pipeline(repository, toml)
    code, message = why(engine)
    assert code is Code.INVALID_MODEL and message.replace(" version 1", "", 1) == f"model 'p': {reason}"


def test_a_pipeline_is_no_step_of_itself(chain: Engine, repository: Path) -> None:
    pipeline(repository, '[[steps]]\nmodel = "a"')
    assert why(chain) == (Code.INVALID_MODEL, "model 'p': it would be a step of itself: p -> a -> p")
    assert ask(chain) == [6, 12], "what served goes on serving"


def test_versions_and_labels_of_steps(engine: Engine, repository: Path) -> None:
    for number, factor in ((1, 2), (2, 5)):
        times(repository / "m" / str(number) / "model.onnx", factor)
    (repository / "m" / "model.toml").write_text('version_policy = "all"\nversion_labels = { stable = 1 }')
    pipeline(
        repository,
        '[[steps]]\nmodel = "m"\nversion = "stable"\noutputs = { y = "a" }\n[[steps]]\nmodel = "m"\nversion = 2\ninputs = { x = "a" }',
    )
    load(engine, "m", "p")
    assert ask(engine) == [10, 20]
    engine.set_labels("m", {"stable": 2}, 0)
    assert ask(engine) == [25, 50]


def test_polling_sees_a_version_folder_without_a_file(zygote: Zygote, watcher: Watcher, repository: Path) -> None:
    with engine_over(zygote, watcher, repository, model_control="poll") as engine:
        engine._library.load_all(time.time_ns())
        times(repository / "double" / "1" / "model.onnx", 2)
        (repository / "empty" / "1").mkdir(parents=True)
        pipeline(repository, '[[steps]]\nmodel = "double"')
        for _ in range(2):
            engine._library.poll()
        assert ask(engine) == [2, 4] and "empty" not in {entry.name for entry in engine.repository_index(False)}
        pipeline(repository, '[[steps]]\nmodel = "double"\noutputs = { y = "z" }\n[[steps]]\nmodel = "double"\ninputs = { x = "z" }')
        for _ in range(2):
            engine._library.poll()
        assert ask(engine) == [4, 8]
        (repository / "p" / "model.toml").unlink()
        (repository / "p" / "1").rmdir()
        (repository / "p").rmdir()
        for _ in range(2):
            engine._library.poll()
        assert refused(engine).code is Code.MODEL_NOT_FOUND
