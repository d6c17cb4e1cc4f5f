"""Execution providers: which a model gets with which options, what is told of them, and runs whose tensors are bound to a device.

There is no GPU where these tests are run: what needs one is marked `gpu`, skipped without, and so counted.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from idl.codes import Code, ServingError
from inference_server import model_settings, provider_options
from inference_server.backends import bound
from inference_server.backends.onnx import OnnxModel, OnnxOptions
from inference_server.backends.runtime import onnxruntime
from inference_server.executors.process import Watcher, Zygote
from inference_server.setting_checks import InvalidModelSettings
from tests.engines import engine_over
from tests.inference_server.conftest import floats, request
from tests.onnx_models import save, times

CPU, CUDA = provider_options.CPU, provider_options.CUDA
has_cuda = CUDA in onnxruntime.get_available_providers()


def read(folder: Path, toml: str) -> dict[str, Any]:
    (folder / "model.toml").write_text(toml)
    return model_settings.read_toml(folder)


def test_options_become_those_of_onnxruntime(tmp_path: Path) -> None:
    said = read(
        tmp_path,
        """
        device_id = 1
        [onnxruntime.cuda]
        memory = "1GiB"
        arena = "exact"
        convolutions = "heuristic"
        tf32 = false
        graph = true
        [onnxruntime.tensorrt]
        fp16 = true
        workspace = "2KiB"
        [onnxruntime.openvino]
        device = "GPU"
        threads = 3
        """,
    )
    wanted = ("TensorrtExecutionProvider", CUDA, "OpenVINOExecutionProvider", CPU)
    assert provider_options.chosen(wanted, (*wanted, "AzureExecutionProvider"), said["onnxruntime"], said["device_id"]) == [
        ("TensorrtExecutionProvider", {"device_id": "1", "trt_fp16_enable": "1", "trt_max_workspace_size": "2048"}),
        (
            CUDA,
            {
                "device_id": "1",
                "gpu_mem_limit": str(2**30),
                "arena_extend_strategy": "kSameAsRequested",
                "cudnn_conv_algo_search": "HEURISTIC",
                "use_tf32": "0",
                "enable_cuda_graph": "1",
            },
        ),
        ("OpenVINOExecutionProvider", {"device_type": "GPU", "num_of_threads": "3"}),
        (CPU, {}),
    ]
    assert provider_options.chosen([CUDA, CUDA, "NoSuchExecutionProvider"], [CPU], {}, 0) == [(CPU, {})], "what is there, and the CPU's"


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[onnxruntime.cuda]\nuser_compute_stream = 1", "onnxruntime.cuda has an unknown key 'user_compute_stream'; known are arena, "),
        ('[onnxruntime.tensorrt]\ntrt_engine_cache_path = "/x"', "onnxruntime.tensorrt has an unknown key 'trt_engine_cache_path'"),
        ('[onnxruntime.openvino]\ndevice = "TOASTER"', "onnxruntime.openvino.device = 'TOASTER' is not"),
        ("[onnxruntime]\ncuda = 1", "onnxruntime.cuda = 1 is not a table"),
        ("device_id = -1", "device_id = -1 is not a whole number from 0"),
    ],
)
def test_other_options_are_refused(tmp_path: Path, toml: str, words: str) -> None:
    with pytest.raises(InvalidModelSettings) as caught:
        read(tmp_path, toml)
    assert words in str(caught.value)


def test_a_provider_that_gets_no_node_is_not_told(tmp_path: Path) -> None:
    """Azure's is registered in every build, and runs nothing of such a model."""
    model = OnnxModel(times(tmp_path / "model.onnx", 3), "m", OnnxOptions(1, ("AzureExecutionProvider", CPU)))
    assert model._session.get_providers() == ["AzureExecutionProvider", CPU]
    assert model.providers == (CPU,)
    assert model.run({"x": np.ones((1, 2), np.float32)}, ["y"])[0].tolist() == [[3, 3]]


@pytest.mark.skipif(has_cuda, reason="this onnxruntime has CUDA")
def test_what_is_wanted_and_not_there_is_said_and_the_cpu_answers(
    zygote: Zygote, watcher: Watcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    times(tmp_path / "m" / "1" / "model.onnx", 3)
    (tmp_path / "m" / "model.toml").write_text('device = "gpu"\n[onnxruntime.cuda]\ngraph = true\n')
    wanted = ("NoSuchExecutionProvider", CUDA, CPU)
    with caplog.at_level(logging.INFO, "outboard.server"), engine_over(zygote, watcher, tmp_path, execution_providers=wanted) as engine:
        engine.repository_model_load("m", {})
        config = engine.model_config("m", "")
        assert config["parameters"]["execution_providers"]["string_value"] == CPU
        assert [group["kind"] for group in config["instance_group"]] == ["KIND_CPU"]
        assert floats(engine.model_infer(request("m", [[1, 2]]))) == [3, 6]
    (said,) = [record.__dict__["fields"] for record in caplog.records if "execution providers" in record.message]
    assert said == {"model": "m", "version": 1, "wanted": ("NoSuchExecutionProvider", CUDA), "used": (CPU,)}
    assert any("device" in record.__dict__["fields"]["unused_settings"] for record in caplog.records if record.message == "loaded")


def two_outputs(path: Path) -> Any:
    """x (n, 2), w (2) -> product, sum."""
    x, w = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", ("n", 2)), ("w", (2,))))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", 2)) for name in ("product", "sum")]
    nodes = [helper.make_node("Mul", ["x", "w"], ["product"]), helper.make_node("Add", ["x", "w"], ["sum"])]
    save(helper.make_graph(nodes, "two", [x, w], outputs), path)
    return onnxruntime.InferenceSession(str(path), providers=[CPU])


@pytest.mark.parametrize("graphs", [False, True])
def test_bound_runs_answer_as_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: bool) -> None:
    """The CPU stands for the device: bindings, buffers that are written again, and outputs that stay what they were."""
    monkeypatch.setattr(bound, "MOST_GRAPHS", 3)
    session = two_outputs(tmp_path / "model.onnx")
    runs = bound.BoundRuns(session, "cpu", 0, ["product", "sum"], graphs=graphs)
    random, kept = np.random.default_rng(0), []
    for count in (1, 2, 1, 5, 2, 7, 0, 1):
        feed = {"x": random.normal(size=(count, 2)).astype(np.float32), "w": random.normal(size=2).astype(np.float32)}
        kept.append((runs.run(["sum", "product"], feed), session.run(["sum", "product"], feed)))
        assert runs.run(["product"], feed)[0].tolist() == kept[-1][1][1].tolist()
    for found, right in kept:
        assert [each.tolist() for each in found] == [each.tolist() for each in right]
    assert runs._graphs is None or len(runs._graphs) == 3
    with pytest.raises(Exception, match="Got invalid dimensions"):
        runs.run(["sum"], {"x": np.ones((1, 3), np.float32), "w": np.ones(2, np.float32)})


def test_without_a_gpu_nothing_is_bound(tmp_path: Path) -> None:
    options = OnnxOptions(1, (CUDA, CPU), 0, {"cuda": {"graph": True}})
    model = OnnxModel(times(tmp_path / "model.onnx", 3), "m", options)
    assert (model._bound is None) == (CUDA not in model.providers)


# with a GPU ------------------------------------------------------------------------------------------------------------------------

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not has_cuda, reason="no GPU: this onnxruntime has no CUDA")]


class TestOnGpu:
    pytestmark = needs_gpu

    @pytest.mark.parametrize("graph", [False, True])
    def test_cuda_runs_it_and_says_so(self, tmp_path: Path, graph: bool) -> None:
        options = OnnxOptions(1, (CUDA, CPU), 0, {"cuda": {"graph": graph}})
        model = OnnxModel(times(tmp_path / "model.onnx", 3), "m", options)
        assert model.providers == (CUDA,) and model._bound is not None
        for count in (1, 4, 1, 1, 1, 4):
            x = np.full((count, 2), count, np.float32)
            assert model.run({"x": x}, ["y"])[0].tolist() == (3 * x).tolist()

    def test_a_gpu_that_is_not_there_fails_the_load_or_leaves_the_cpu(self, tmp_path: Path) -> None:
        try:
            model = OnnxModel(times(tmp_path / "model.onnx", 3), "m", OnnxOptions(1, (CUDA, CPU), 1000))
        except ServingError as error:
            assert error.code is Code.INVALID_MODEL
        else:
            assert model.providers == (CPU,)
