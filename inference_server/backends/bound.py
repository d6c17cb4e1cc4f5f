"""Runs of an onnxruntime session whose tensors lie on a device: bound there, copied once each way, and, where asked, replayed as a CUDA graph.

Source: onnxruntime, "I/O Binding" and "CUDA Execution Provider: Using CUDA Graphs". A graph is captured for fixed shapes at fixed places, so
each set of shapes has buffers of its own, `MOST_GRAPHS` of them; further ones are run without.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from idl.tensors import Array
from inference_server.backends.runtime import onnxruntime as ort

MOST_GRAPHS = 32
_GRAPH_ID, _NO_GRAPH = "gpu_graph_id", "-1"

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(slots=True)
class _Graph:
    """`inputs`: name -> value on the device, written into for each run."""

    binding: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    options: Any


class BoundRuns:
    """Not thread-safe. `device`: onnxruntime's name, "cuda" or "cpu"; `graphs`: capture and replay.

    Host memory for the copies is pinned where the device's provider offers it.
    """

    def __init__(
        self, session: Any, device: str, device_id: int, outputs: Sequence[str], *, provider: str = "", graphs: bool = False
    ) -> None:
        self._session, self._device, self._device_id = session, device, device_id
        self._names = tuple(outputs)
        self._graphs: dict[Shapes, _Graph] | None = {} if graphs else None
        self._pinned = _pinned(provider)
        self._staged: dict[tuple[str, tuple[int, ...]], Any] = {}

    def run(self, wanted: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """The wanted outputs, in that order, as arrays of their own. Raises as onnxruntime's `run`."""
        if self._graphs is not None:
            shapes: Shapes = tuple((name, array.shape) for name, array in sorted(feed.items()))
            graph = self._graphs.get(shapes)
            if graph is None and len(self._graphs) < MOST_GRAPHS and all(array.size for array in feed.values()):
                graph = self._graphs[shapes] = self._captured(feed, len(self._graphs) + 1)
            if graph is not None:
                return self._replayed(graph, wanted, feed)
        return self._once(wanted, feed)

    def _once(self, wanted: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, self._staged_value(name, array))
        for name in wanted:
            binding.bind_output(name, self._device, self._device_id)
        self._session.run_with_iobinding(binding, _options(_NO_GRAPH))
        return list(binding.copy_outputs_to_cpu())

    def _staged_value(self, name: str, array: Array) -> Any:
        """On the device; or in pinned memory, from which onnxruntime copies it itself without waiting."""
        if self._pinned is None:
            return self._value(array)
        key = (name, array.shape)
        value = self._staged.get(key)
        if value is None:
            if len(self._staged) >= MOST_GRAPHS:
                self._staged.clear()
            value = self._staged[key] = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype, memory_info=self._pinned)
        np.copyto(value.numpy(), array)
        return value

    def _value(self, array: Array) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, self._device_id)

    def _captured(self, feed: Mapping[str, Array], number: int) -> _Graph:
        """Buffers for these shapes: a run without capture tells the sizes of the outputs."""
        first = self._once(self._names, feed)
        binding = self._session.io_binding()
        inputs = {name: self._value(array) for name, array in feed.items()}
        outputs = {name: self._value(array) for name, array in zip(self._names, first, strict=True)}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return _Graph(binding, inputs, outputs, _options(str(number)))

    def _replayed(self, graph: _Graph, wanted: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        for name, array in feed.items():
            graph.inputs[name].update_inplace(np.ascontiguousarray(array))
        self._session.run_with_iobinding(graph.binding, graph.options)
        return [np.array(graph.outputs[name].numpy()) for name in wanted]  # the next run writes over what is shared


def _options(graph: str) -> Any:
    made = ort.RunOptions()
    made.add_run_config_entry(_GRAPH_ID, graph)
    return made


def _pinned(provider: str) -> Any:
    """Memory of the host that a provider's device reads directly; None where there is none, or onnxruntime does not tell."""
    with suppress(Exception):
        for device in ort.get_ep_devices():
            if device.ep_name == provider:
                return device.memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
    return None
