"""Shared memory, trace and log settings over Thrift: decode, call, encode."""

import json
from typing import Any

from idl.messages import SharedRegion
from idl.thrift_schema import schema
from inference_server.errors import invalid_input
from inference_server.run_time import RunTime
from inference_server.types import Inference


class RunTimeVerbs:
    """The methods in the order of the IDL."""

    def __init__(self, inference: Inference, run_time: RunTime) -> None:
        self._inference = inference
        self._run_time = run_time

    def system_shared_memory_status(self, request: Any) -> Any:
        return schema.SystemSharedMemoryStatusResponse(
            regions=[
                schema.SharedRegion(name=region.name, key=region.key, offset=region.offset, byte_size=region.byte_size)
                for region in self._run_time.memory.status(request.name or "")
            ]
        )

    def system_shared_memory_register(self, request: Any) -> Any:
        said = request.region
        if said is None:
            raise invalid_input("SystemSharedMemoryRegister has no region")
        self._run_time.memory.register(SharedRegion(said.name or "", said.key or "", said.offset or 0, said.byte_size or 0))
        return schema.SystemSharedMemoryRegisterResponse()

    def system_shared_memory_unregister(self, request: Any) -> Any:
        self._run_time.memory.unregister(request.name or "")
        return schema.SystemSharedMemoryUnregisterResponse()

    def trace_setting(self, request: Any) -> Any:
        if request.model_name:
            self._inference.model_metadata(request.model_name, "")  # raises where there is none
        return schema.TraceSettingResponse(settings=self._run_time.traces.change(request.model_name or "", request.settings or {}))

    def log_settings(self, request: Any) -> Any:
        told = self._run_time.logs.change({name: _value(name, text) for name, text in (request.settings or {}).items()})
        return schema.LogSettingsResponse(settings={name: json.dumps(value) for name, value in told.items()})


def _value(name: str, text: str) -> bool | int | str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, (bool, int, str)):
        raise invalid_input(f"the log setting {name[:40]!r} is not true, false, a whole number or a text, as JSON spells them")
    return value
