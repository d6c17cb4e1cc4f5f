"""The last errors of deployments: noted where a call fails, written a moment later by a thread of their own.

A call that succeeds pays nothing, one that fails does not wait for the disk, and of a storm only the last of each half second are kept:
how many there were is told by the statistics.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType

from gateway import clock
from gateway.storage import Storage
from gateway.storage.deployment_errors import CallError
from idl.codes import Code, ServingError

V1, V2, FORM, TASK = "/v1", "/v2", "form", "task"
"""The ways to call a deployment."""
_EVERY_S = 0.5
_MOST_AT_ONCE = 20
_MOST_TEXT = 500
_UNTOLD = frozenset({Code.UNAUTHENTICATED, Code.FORBIDDEN, Code.CANCELLED})
"""Whoever may not call it has not called it, and whoever has gone has given up."""
_log = logging.getLogger(__name__)


class DeploymentErrors:
    """Of one process. Thread-safe; `close` writes what is left and may be called again."""

    def __init__(self, storage: Storage, now: clock.Clock = clock.now) -> None:
        self._storage = storage
        self._now = now
        self._lock = threading.Lock()
        self._noted: dict[int, deque[CallError]] = {}
        self._timer: threading.Timer | None = None
        self._closed = False

    def note(self, deployment_id: int, request_id: str, way: str, error: BaseException) -> None:
        """A call of the deployment has failed. Waits for nothing; raises nothing."""
        code, message = (error.code, error.message) if isinstance(error, ServingError) else (Code.INTERNAL, "the server made a mistake")
        if code in _UNTOLD:
            return
        one = CallError(clock.to_text(self._now()), request_id, way, code.value, message[:_MOST_TEXT])
        with self._lock:
            if self._closed:
                return
            self._noted.setdefault(deployment_id, deque(maxlen=_MOST_AT_ONCE)).append(one)
            if self._timer is None:
                self._timer = threading.Timer(_EVERY_S, self._write)
                self._timer.daemon = True
                self._timer.start()

    def noting(self, deployment_id: int, request_id: str, way: str) -> "Noting":
        """What is raised within it is noted."""
        return Noting(self, deployment_id, request_id, way)

    def last(self, deployment_id: int, limit: int) -> Sequence[CallError]:
        """Newest first, of all processes, within a second."""
        return self._storage.deployment_errors.last(deployment_id, limit)

    def close(self) -> None:
        with self._lock:
            timer, self._closed = self._timer, True
        if timer is not None:
            timer.cancel()
            timer.join()
            self._write()

    def _write(self) -> None:
        with self._lock:
            noted, self._noted, self._timer = self._noted, {}, None
        if noted:
            try:
                self._storage.deployment_errors.add(noted)
            except ServingError as error:  # the callers were told; this is for those who look later
                _log.warning("errors_not_kept", extra={"reason": error.message})


class Noting:
    """A context manager; its own class, for calls pass through it that are to be quick."""

    __slots__ = ("_deployment_id", "_errors", "_request_id", "_way")

    def __init__(self, errors: DeploymentErrors, deployment_id: int, request_id: str, way: str) -> None:
        self._errors = errors
        self._deployment_id = deployment_id
        self._request_id = request_id
        self._way = way

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self._errors.note(self._deployment_id, self._request_id, self._way, error)
