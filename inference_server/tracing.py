"""Where the processes of one server tell of traces, what was set for them, and where they note how many spans they have told of."""

from functools import partial
from pathlib import Path

from idl import trace_control, trace_export
from idl.traces import Tracer

FOLDER = "spans"
SERVICE = "outboard-server"


def tracer(run_dir: Path, process: str, endpoint: str, rate: float) -> Tracer | None:
    """Of the process that is named so; None where nothing is traced. Raises ValueError for an odd endpoint, OSError."""
    if not endpoint:
        return None
    folder = run_dir / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    counts = folder / f"{process}{trace_export.SUFFIX}"
    return trace_export.make_tracer(endpoint, rate, SERVICE, trace_export.version(), counts, trace_control.Followed(run_dir))


def published(run_dir: Path, endpoint: str) -> trace_control.Published | None:
    """Where this server says what is set for its traces; None where nothing is traced, and then nothing is there of an earlier server.
    Raises OSError."""
    trace_control.forget(run_dir)
    return trace_control.Published(run_dir) if endpoint else None


def counts(run_dir: Path) -> partial[tuple[int, int]]:
    """Gives (exported, dropped) of all its processes when it is asked."""
    return partial(trace_export.counted, run_dir / FOLDER)
