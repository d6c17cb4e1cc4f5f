"""Shared memory, trace and log settings over gRPC: decode, call, encode. Shared memory of GPUs is refused by its name."""

from typing import Any

from idl.codes import Code, ServingError
from idl.generated import inference_pb2 as pb
from idl.messages import SharedRegion
from inference_server.run_time import RunTime
from inference_server.transports import grpc_codec as codec
from inference_server.transports.grpc_calls import Call
from inference_server.types import Inference


class RunTimeVerbs:
    """The methods in the order of the IDL."""

    def __init__(self, inference: Inference, run_time: RunTime) -> None:
        self._inference = inference
        self._run_time = run_time

    def system_shared_memory_status(self, request: Any, call: Call) -> Any:
        kind = pb.SystemSharedMemoryStatusResponse
        regions = self._run_time.memory.status(request.name)
        return kind(
            regions={
                region.name: kind.RegionStatus(name=region.name, key=region.key, offset=region.offset, byte_size=region.byte_size)
                for region in regions
            }
        )

    def system_shared_memory_register(self, request: Any, call: Call) -> Any:
        self._run_time.memory.register(SharedRegion(request.name, request.key, request.offset, request.byte_size))
        return pb.SystemSharedMemoryRegisterResponse()

    def system_shared_memory_unregister(self, request: Any, call: Call) -> Any:
        self._run_time.memory.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def cuda_shared_memory_status(self, request: Any, call: Call) -> Any:
        raise _no_gpu_memory()

    def cuda_shared_memory_register(self, request: Any, call: Call) -> Any:
        raise _no_gpu_memory()

    def cuda_shared_memory_unregister(self, request: Any, call: Call) -> Any:
        raise _no_gpu_memory()

    def trace_setting(self, request: Any, call: Call) -> Any:
        if request.model_name:
            self._inference.model_metadata(request.model_name, "")  # raises where there is none
        told = self._run_time.traces.change(request.model_name, {name: tuple(entry.value) for name, entry in request.settings.items()})
        kind = pb.TraceSettingResponse
        return kind(settings={name: kind.SettingValue(value=values) for name, values in told.items()})

    def log_settings(self, request: Any, call: Call) -> Any:
        told = self._run_time.logs.change(codec.parameters(request.settings))
        message = pb.LogSettingsResponse()
        for name, value in told.items():
            if isinstance(value, bool):
                message.settings[name].bool_param = value
            elif isinstance(value, int):
                message.settings[name].uint32_param = value
            else:
                message.settings[name].string_param = value
        return message


def _no_gpu_memory() -> ServingError:
    return ServingError(Code.UNSUPPORTED, "CUDA shared memory is not supported by this server; system shared memory is")
