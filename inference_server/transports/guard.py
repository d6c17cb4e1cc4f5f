"""What both transports check and do the same way: which verbs need no token, foreign exceptions, and the size of a request's lists."""

import logging
import uuid

from idl.codes import Code, ServingError

log = logging.getLogger("outboard.server")

MAX_TENSORS = 4096
"""Inputs or requested outputs in one request. An empty entry is two bytes on the wire and hundreds in memory."""
PUBLIC = frozenset({"ServerLive", "ServerReady", "ModelReady", "ServerMetadata"})
"""Verbs that need no token: what a load balancer and a client's start-up ask."""


def as_serving_error(error: Exception, method: str, request_id: str = "") -> ServingError:
    """`error` itself where it is one of ours, else an `internal` that names the log line which has the traceback."""
    if isinstance(error, ServingError):
        return error
    incident = uuid.uuid4().hex[:16]
    log.error("internal error", extra={"fields": {"incident": incident, "method": method, "request_id": request_id}}, exc_info=error)
    return ServingError(Code.INTERNAL, f"internal error; the server's log has it as {incident}", request_id=request_id)


def check_count(what: str, count: int) -> None:
    """Raises invalid_input where a request has more inputs or outputs than any model."""
    if count > MAX_TENSORS:
        raise ServingError(Code.INVALID_INPUT, f"the request has {count} {what}, at most {MAX_TENSORS} are allowed")
