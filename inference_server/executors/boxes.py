"""Whether a model's code runs in a box: what its owner says, what the server demands, and what this host can."""

import logging
from dataclasses import dataclass

from inference_server import errors
from inference_server.executors import sandbox, thread_limit
from inference_server.model_settings import SCRIPT, ModelSettings

log = logging.getLogger("outboard.server")

OF_CODE = frozenset({"python", "pmml", "pytorch"})
"""Backends whose processes run an owner's code, or libraries that need a process of their own."""
AUTO, REQUIRED, OFF = "auto", "required", "off"


@dataclass(frozen=True, slots=True)
class Box:
    """`said`: for the model's metadata, "" for what has no code; `threads`: how many its process may have, where somebody has to count them."""

    boxed: bool = False
    said: str = ""
    threads: int = 0


def of_model(name: str, settings: ModelSettings, backend: str, demanded: str) -> Box:
    """`demanded`: of the server, AUTO or REQUIRED. Raises unsupported where the code must be boxed and cannot."""
    if backend == SCRIPT:
        return Box(said="on")  # its own, or it is not loaded
    if backend not in OF_CODE:
        return Box()
    wanted = settings.python.get("sandbox", AUTO)
    must = REQUIRED in (wanted, demanded)
    if settings.executor == "thread":
        return _without(name, "it runs in the server's own process (executor)", must)
    if wanted == OFF:
        return _without(name, "its settings say so (python.sandbox)", must)
    if not (why := sandbox.unusable()):
        return Box(boxed=True, said="on", threads=thread_limit.to_watch())
    if must:
        raise errors.unsupported(f"model {name!r}: its code may only run in a sandbox, and there is none here: {why}")
    log.warning("no sandbox: its code can do what the server can", extra={"fields": {"model": name, "reason": why}})
    return Box(said=f"off: {why}")


def _without(name: str, why: str, must: bool) -> Box:
    if must:
        raise errors.unsupported(f"model {name!r}: its code may only run in a sandbox, and {why}")
    return Box(said=f"off: {why}")
