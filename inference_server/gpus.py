"""The host's NVIDIA GPUs, by NVML (the library that comes with their driver). Without it there is nothing to say, and nothing is said.

Asked at each scrape, in the process; `nvidia-smi` would cost a process and up to a second each time. Calls as in NVIDIA's "NVML API
Reference Guide": each returns 0, or why it has no answer; a figure that a GPU does not have is left out.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

LIBRARY = "libnvidia-ml.so.1"
_NAME_BYTES = 96
_CORE_TEMPERATURE = 0


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@dataclass(frozen=True, slots=True)
class Gpu:
    """One of them now; None for what it does not tell. `utilization`: 0 to 1, the share of the last second in which something ran."""

    index: int
    name: str
    utilization: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_watts: float | None
    temperature_celsius: float | None


class Gpus:
    """A handle on NVML, opened at the first question. Thread-safe. `library`: its name, or a stand-in with the same functions."""

    def __init__(self, library: Any = LIBRARY) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._nvml: Any = None
        self._tried = False

    def read(self) -> list[Gpu]:
        """Empty where there is no GPU, or no driver."""
        with self._lock:
            nvml = self._open()
            if nvml is None:
                return []
            count = ctypes.c_uint()
            if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
                return []
            return [gpu for index in range(count.value) if (gpu := _read(nvml, index)) is not None]

    def _open(self) -> Any:
        if not self._tried:
            self._tried = True
            with suppress(OSError, AttributeError):
                nvml = ctypes.CDLL(self._library) if isinstance(self._library, str) else self._library
                self._nvml = nvml if nvml.nvmlInit_v2() == 0 else None
        return self._nvml

    def collect(self) -> Iterator[Metric]:
        """Families for Prometheus; those of figures are without samples where there is no GPU."""
        found = self.read()
        yield GaugeMetricFamily("outboard_gpus", "GPUs whose driver answers", value=len(found))
        for name, text, of in _FAMILIES:
            family = GaugeMetricFamily(name, text, labels=("gpu", "name"))
            for gpu in found:
                if (value := of(gpu)) is not None:
                    family.add_metric((str(gpu.index), gpu.name), value)
            yield family


_FAMILIES: tuple[tuple[str, str, Callable[[Gpu], float | None]], ...] = (
    ("outboard_gpu_utilization_ratio", "Share of the last second in which the GPU ran something", lambda gpu: gpu.utilization),
    ("outboard_gpu_memory_used_bytes", "Memory of the GPU that is taken, by whomever", lambda gpu: gpu.memory_used_bytes),
    ("outboard_gpu_memory_total_bytes", "Memory of the GPU", lambda gpu: gpu.memory_total_bytes),
    ("outboard_gpu_power_watts", "Power that the GPU draws", lambda gpu: gpu.power_watts),
    ("outboard_gpu_temperature_celsius", "Temperature of the GPU's core", lambda gpu: gpu.temperature_celsius),
)


def _read(nvml: Any, index: int) -> Gpu | None:
    handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(_NAME_BYTES)
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)):
        return None
    nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(_NAME_BYTES))
    use, memory, milliwatts, degrees = _Utilization(), _Memory(), ctypes.c_uint(), ctypes.c_uint()
    has_use = nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(use)) == 0
    has_memory = nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
    has_power = nvml.nvmlDeviceGetPowerUsage(handle, ctypes.byref(milliwatts)) == 0
    has_temperature = nvml.nvmlDeviceGetTemperature(handle, ctypes.c_uint(_CORE_TEMPERATURE), ctypes.byref(degrees)) == 0
    return Gpu(
        index,
        name.value.decode(errors="replace"),
        use.gpu / 100 if has_use else None,
        memory.used if has_memory else None,
        memory.total if has_memory else None,
        milliwatts.value / 1000 if has_power else None,
        float(degrees.value) if has_temperature else None,
    )
