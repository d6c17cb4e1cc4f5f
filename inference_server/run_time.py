"""What callers may set while the server runs, besides models: shared memory, trace and log settings."""

from dataclasses import dataclass, field

from inference_server.log_settings import LogSettings
from inference_server.shared_memory import SharedMemory
from inference_server.trace_settings import TraceSettings


@dataclass(frozen=True, slots=True)
class RunTime:
    """One of each for a server; every one is thread-safe."""

    memory: SharedMemory = field(default_factory=lambda: SharedMemory(enabled=False))
    traces: TraceSettings = field(default_factory=TraceSettings)
    logs: LogSettings = field(default_factory=LogSettings)

    def extensions(self) -> tuple[str, ...]:
        """Those of the protocol's extensions that are there because of how the server was started."""
        shared = ("system_shared_memory",) if self.memory.enabled else ()
        return (*shared, "trace") if self.traces.available else shared
