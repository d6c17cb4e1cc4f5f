"""Execution providers: which of onnxruntime's a model gets, and what `[onnxruntime.cuda]`, `.tensorrt` and `.openvino` of `model.toml` say
to them. Only what is named here can be said: several options of theirs are paths that they load or write.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inference_server.setting_checks import Reader, boolean, byte_size, one_of, table, whole

CPU, CUDA, TENSORRT, OPENVINO = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider", "OpenVINOExecutionProvider"


class _Option(NamedTuple):
    """`name`: onnxruntime's. `words`: our value -> its, where they differ."""

    reader: Reader
    name: str
    words: Mapping[str, str] = {}


_TABLES: dict[str, tuple[str, dict[str, _Option]]] = {
    "cuda": (
        CUDA,
        {
            "memory": _Option(byte_size, "gpu_mem_limit"),
            "arena": _Option(
                one_of("doubling", "exact"), "arena_extend_strategy", {"doubling": "kNextPowerOfTwo", "exact": "kSameAsRequested"}
            ),
            "convolutions": _Option(
                one_of("exhaustive", "heuristic", "default"),
                "cudnn_conv_algo_search",
                {"exhaustive": "EXHAUSTIVE", "heuristic": "HEURISTIC", "default": "DEFAULT"},
            ),
            "tf32": _Option(boolean, "use_tf32"),
            "graph": _Option(boolean, "enable_cuda_graph"),
        },
    ),
    "tensorrt": (
        TENSORRT,
        {
            "workspace": _Option(byte_size, "trt_max_workspace_size"),
            "fp16": _Option(boolean, "trt_fp16_enable"),
            "int8": _Option(boolean, "trt_int8_enable"),
            "optimization": _Option(whole(0, 5), "trt_builder_optimization_level"),
            "min_subgraph": _Option(whole(1, 100_000), "trt_min_subgraph_size"),
        },
    ),
    "openvino": (
        OPENVINO,
        {
            "device": _Option(one_of("CPU", "GPU", "NPU", "AUTO"), "device_type"),
            "threads": _Option(whole(1, 1024), "num_of_threads"),
            "streams": _Option(whole(1, 255), "num_streams"),
            "precision": _Option(one_of("FP32", "FP16", "ACCURACY"), "precision"),
        },
    ),
}
"""Table of `[onnxruntime]` -> (the provider, its keys). Source: onnxruntime, "Execution Providers", options of each."""


def _reader(name: str) -> Reader:
    readers = {key: option.reader for key, option in _TABLES[name][1].items()}

    def reader(key: str, value: Any, folder: Path) -> dict[str, Any]:
        return table(key, value, readers, folder)

    return reader


READERS: dict[str, Reader] = {name: _reader(name) for name in _TABLES}
"""Keys of `[onnxruntime]` that are tables of a provider."""

KEYS: tuple[str, ...] = tuple(f"{name}.{key}" for name, (_, options) in _TABLES.items() for key in options)
"""`cuda.memory` and so on: all that can be said."""


def chosen(wanted: Sequence[str], available: Sequence[str], said: Mapping[str, Any], device_id: int) -> list[tuple[str, dict[str, str]]]:
    """(provider, its options) for a session, the preferred one first: of `wanted` those that this onnxruntime has, and the CPU's at the end.

    `said`: what `[onnxruntime]` holds; `device_id`: which GPU.
    """
    names = [name for name in dict.fromkeys(wanted) if name in available and name != CPU]
    return [*((name, _options(name, said, device_id)) for name in names), (CPU, {})]


def _options(provider: str, said: Mapping[str, Any], device_id: int) -> dict[str, str]:
    made = {"device_id": str(device_id)} if provider in (CUDA, TENSORRT) else {}
    for name, (owner, options) in _TABLES.items():
        if owner == provider:
            for key, value in said.get(name, {}).items():
                option = options[key]
                made[option.name] = option.words.get(value, _text(value)) if isinstance(value, str) else _text(value)
    return made


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def not_used(wanted: Sequence[str], used: Sequence[str]) -> tuple[str, ...]:
    """Of the providers that a model was to have, those that run nothing of it."""
    return tuple(name for name in wanted if name != CPU and name not in used)
