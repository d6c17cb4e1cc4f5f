"""Scripts that are only looked at: each is compiled and loaded in a box of its own, of which nothing is left afterwards."""

import threading

from idl.messages import ScriptReport
from inference_server import errors
from inference_server.backends.script import BoxEnded, Limits, Unfit, checked
from inference_server.executors.script_box import ScriptBox, unusable
from inference_server.model_settings import SCRIPT_MEMORY, SCRIPT_TIMEOUT_S

MOST = 2
"""At once; a box is there in a third of a second."""
RETRY_MS = 500
_LIMITS = Limits(SCRIPT_TIMEOUT_S, SCRIPT_MEMORY, 1 << 20)


class ScriptChecks:
    """Thread-safe."""

    def __init__(self) -> None:
        self._free = threading.Semaphore(MOST)

    def check(self, source: bytes) -> ScriptReport:
        """Of a script alone: what may lie beside it is not there. Raises invalid_input with what is wrong with it; overloaded, unsupported,
        not_ready.
        """
        if why := unusable():
            raise errors.unsupported(f"scripts only run in a sandbox, and there is none here: {why}")
        if not self._free.acquire(blocking=False):
            raise errors.overloaded(f"{MOST} scripts are looked at already", RETRY_MS)
        box = ScriptBox(None, _LIMITS)
        try:
            found = checked(source, box, _LIMITS)
        except Unfit as error:
            raise errors.invalid_input(str(error)) from error
        except BoxEnded as error:
            raise errors.not_ready(f"the script could not be looked at: {error}") from error
        finally:
            box.close()
            self._free.release()
        return ScriptReport(found.functions, found.load_ms)
