"""What an executor died of: a line in a file beside its socket, which the supervisor writes a moment after its death.

Who had a request inside learns of the death first, from the broken connection, and looks here for the reason.
"""

import contextlib
import time
from pathlib import Path

SUFFIX = ".why"
WAIT_S = 0.2
"""How long it is worth waiting for: the supervisor notices a death within a millisecond or two, unless the machine is busy."""
_PAUSE_S = 0.002


def write(lane: Path, why: str) -> None:
    """`why` may be empty: it is not known. Without room for it nobody learns why, and that is all."""
    part = lane.with_name(f".{lane.name}{SUFFIX}.part")
    with contextlib.suppress(OSError):
        part.write_text(why)
        part.replace(f"{lane}{SUFFIX}")


def read(lane: str) -> str | None:
    """None: nothing has been said yet."""
    try:
        return Path(f"{lane}{SUFFIX}").read_text()
    except OSError:
        return None


def wait(lane: str) -> str:
    """What is said within WAIT_S, "" where nothing is. Sleeps."""
    end = time.monotonic() + WAIT_S
    while (said := read(lane)) is None and time.monotonic() < end:
        time.sleep(_PAUSE_S)
    return said or ""


def forget(folder: Path, older_than_s: float) -> None:
    """Removes what everybody has read who wanted to."""
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()


def message(model: str, why: str) -> str:
    """What callers are told whose request was inside."""
    return f"the process of model {model!r} died while it had the request" + (f": it was {why}" if why else "")


def is_death(message: str) -> bool:
    """Whether a `model_failed` says that the process died, not that the model raised."""
    return "died while it had the request" in message
