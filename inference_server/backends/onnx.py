"""ONNX models through onnxruntime. Runs inside an executor process; nothing here knows of processes, wires or queues."""

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from idl.codes import ServingError
from idl.messages import TensorSpec
from idl.tensors import Array
from inference_server import errors, provider_options
from inference_server.backends import onnx_files
from inference_server.backends.bound import BoundRuns
from inference_server.backends.runtime import onnxruntime as ort
from inference_server.types import Signature

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """`threads`: of one model run, 0 for as many as there are cores. `providers`: onnxruntime's names, the preferred one first.

    `device_id`: which GPU. `session`: what `[onnxruntime]` of `model.toml` holds. `host_memory`: bytes, 0 for no matter how many.
    """

    threads: int = 0
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    device_id: int = 0
    session: Mapping[str, Any] = field(default_factory=dict)
    host_memory: int = 0

    def session_options(self) -> Any:
        made, said = ort.SessionOptions(), self.session
        made.intra_op_num_threads = self.threads
        made.inter_op_num_threads = said.get("inter_op_threads", 1)
        made.execution_mode = _EXECUTION[said.get("execution_mode", "sequential")]
        made.graph_optimization_level = _OPTIMIZATION[said.get("graph_optimization", "all")]
        made.enable_cpu_mem_arena = said.get("memory_arena", True)
        made.enable_mem_pattern = said.get("memory_pattern", True)
        made.log_severity_level = 4  # what goes wrong is raised; said on standard error as well, one bad caller could fill a disk
        # idle worker threads that spin take the cores that the transports of this host need
        made.add_session_config_entry("session.intra_op.allow_spinning", "0")
        made.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if len(self.chosen()) > 1:
            made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return made

    def chosen(self) -> list[tuple[str, dict[str, str]]]:
        """The providers that this onnxruntime has, with their options."""
        return provider_options.chosen(self.providers, ort.get_available_providers(), self.session, self.device_id)


_EXECUTION = {"sequential": ort.ExecutionMode.ORT_SEQUENTIAL, "parallel": ort.ExecutionMode.ORT_PARALLEL}
_OPTIMIZATION = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class OnnxModel:
    """One session. `run` must not be called by two threads at once. Raises invalid_model from the constructor."""

    def __init__(self, path: Path, name: str, options: OnnxOptions) -> None:
        try:
            onnx_files.check(path, name, options.host_memory)
            self._session = ort.InferenceSession(str(path), options.session_options(), providers=options.chosen())
        except ServingError:
            raise
        except Exception as error:
            raise errors.invalid_model(name, _why_not_loaded(error, path)) from error
        self.providers = _used(self._session)
        self.signature = _signature(self._session, name)
        self._datatypes = {spec.name: spec.datatype for spec in self.signature.inputs}
        self._outputs = {spec.name: spec.datatype for spec in self.signature.outputs}
        self._texts = frozenset(spec.name for spec in self.signature.inputs if spec.datatype == "BYTES")
        # what `InferenceSession.run` calls after it has looked for missing inputs, which our callers have done: half of a small run's time
        self._run = getattr(self._session, "_sess", self._session).run
        self._bound = self._made_bound(options)
        self._bfloat = "BF16" in (*self._datatypes.values(), *self._outputs.values())

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """The wanted outputs, in that order. BF16 is uint16 bit patterns, BYTES object arrays of bytes (in) and text (out).

        Raises invalid_input where the model refuses the inputs, model_failed where it fails on them.
        """
        feed = {name: self._as_text(name, value) for name, value in inputs.items()} if self._texts else inputs
        try:
            if self._bound is not None:
                return self._bound.run(wanted, feed)
            return self._run_bound(feed, wanted) if self._bfloat else self._run(wanted, feed, None)
        except ort.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise errors.invalid_input(f"the model refuses its input: {_reason(error)}") from error
        except UnicodeDecodeError as error:
            raise errors.model_failed("the model gave a string that is not UTF-8") from error
        except Exception as error:
            raise errors.model_failed(f"the model failed: {_reason(error)}") from error

    def _made_bound(self, options: OnnxOptions) -> BoundRuns | None:
        """Where a part of it runs on an NVIDIA GPU, and every tensor has a type of numpy's."""
        named = {*self._datatypes.values(), *self._outputs.values()}
        if named & {"BYTES", "BF16"} or not {provider_options.CUDA, provider_options.TENSORRT}.intersection(self.providers):
            return None
        # a graph cannot hold what is left to the CPU (onnxruntime, "CUDA Execution Provider")
        graphs = bool(options.session.get("cuda", {}).get("graph")) and self.providers == (provider_options.CUDA,)
        return BoundRuns(self._session, "cuda", options.device_id, list(self._outputs), provider=provider_options.CUDA, graphs=graphs)

    def settle(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> None:
        """One run that gives back what larger ones before it took: onnxruntime's arena keeps all that it ever had. Raises nothing.

        Source: onnxruntime, "Arena memory shrinkage" (run option `memory.enable_memory_arena_shrinkage`).
        """
        if self._bound is not None:
            return
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        with suppress(Exception):
            feed = {name: self._as_text(name, value) for name, value in inputs.items()} if self._texts else inputs
            self._run(wanted, feed, options)
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc's own: what was freed goes back to the machine

    def _as_text(self, name: str, array: Array) -> Array:
        """onnxruntime's strings are text: anything else would reach the model as Python's spelling of the bytes."""
        if name not in self._texts:
            return array
        text = np.empty(array.size, object)
        for index, item in enumerate(array.ravel().tolist()):
            try:
                text[index] = item.decode()
            except UnicodeDecodeError:
                raise errors.invalid_input(f"tensor {name!r}: element {index} is not UTF-8, and the model takes text") from None
        return text.reshape(array.shape)

    def _run_bound(self, feed: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """BF16 has no numpy type, so its tensors pass as onnxruntime's own values and are read from their memory."""
        values = {name: self._value(name, array) for name, array in feed.items()}
        results = self._session.run_with_ort_values(list(wanted), values)
        return [
            _from_bfloat16(value) if self._outputs[name] == "BF16" else value.numpy() for name, value in zip(wanted, results, strict=True)
        ]

    def _value(self, name: str, array: Array) -> Any:
        if self._datatypes[name] == "BF16":
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.asarray(array, order="C"), _BFLOAT16)
        return ort.OrtValue.ortvalue_from_numpy(array)


def _used(session: Any) -> tuple[str, ...]:
    """The providers that nodes were given to, the preferred one first: one that is registered and got none is not what it runs on."""
    registered = tuple(session.get_providers())
    if len(registered) == 1:
        return registered
    got = {each.ep_name for each in session.get_provider_graph_assignment_info() if each.get_nodes()}
    return tuple(name for name in registered if name in got) or registered[-1:]


def _from_bfloat16(value: Any) -> Array:
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    data = ctypes.string_at(value.data_ptr(), 2 * count) if count else b""
    return np.frombuffer(data, np.uint16).reshape(shape)


def _signature(session: Any, name: str) -> Signature:
    inputs, outputs = tuple(_spec(node, name) for node in session.get_inputs()), tuple(_spec(node, name) for node in session.get_outputs())
    return Signature("onnxruntime_onnx", inputs, outputs, _batch_axis(inputs + outputs))


def _spec(node: Any, model: str) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        hint = "; convert it with zipmap turned off" if node.type.startswith(("seq(", "map(")) else ""
        raise errors.invalid_model(model, f"{node.name!r} is a {node.type}, which the protocol cannot carry{hint}")
    return TensorSpec(node.name, datatype, tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape))


def _batch_axis(specs: Sequence[TensorSpec]) -> int | None:
    return 0 if specs and all(spec.shape and spec.shape[0] == -1 for spec in specs) else None


def _why_not_loaded(error: Exception, path: Path) -> str:
    """What is plainly wrong with the file, before what onnxruntime says of it."""
    reason = _reason(error, path)
    with suppress(OSError):
        if path.stat().st_size == 0:
            return f"{path.name} is empty: it has 0 bytes"
    if isinstance(error, ort.capi.onnxruntime_pybind11_state.InvalidProtobuf):
        return f"{path.name} is not an ONNX file, or is cut off (onnxruntime: {reason})"
    return reason


def _reason(error: Exception, path: Path | None = None) -> str:
    """onnxruntime's words without its prefix and without paths of this host."""
    text = str(error).split(" : ", 2)[-1].strip()
    if path is not None:
        text = text.replace(str(path), path.name).replace(f"{path.parent}/", "")
    return text.splitlines()[0][:500] if text else type(error).__name__
