"""Making a script's model, as a load message describes it: its source, its box, and where what it prints goes."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inference_server import errors, logs
from inference_server.backends.script import MOST_SOURCE, Limits, ScriptModel
from inference_server.executors.script_box import ScriptBox

log = logging.getLogger("outboard.server")


def boxed_script(asked: Mapping[str, Any]) -> ScriptModel:
    """The script that a load message describes (see `loading.load`), in a box of its own: `script` are the limits of a call, `limit` bytes of its
    answer. What it prints is in the log where that is at debug. Raises invalid_model, unsupported, not_ready.
    """
    file, name = Path(asked["path"]), asked["name"]
    try:
        with file.open("rb") as opened:
            source = opened.read(MOST_SOURCE + 1)
    except OSError as error:
        raise errors.invalid_model(name, f"{file.name} cannot be read: {error.strerror}") from error
    logs.configure(asked["log_level"])
    follower = logs.Follower(Path(asked["run_dir"]))

    def printed() -> Callable[[int, str], None] | None:
        follower.look()
        if not log.isEnabledFor(logging.DEBUG):
            return None
        told = {"model": name, "version": asked["version"]}
        return lambda size, text: log.debug("script printed", extra={"fields": told | {"bytes": size, "text": text}})

    limits = Limits(asked["script"]["timeout_s"], asked["script"]["memory"], asked["limit"])
    box = ScriptBox(file.parent.resolve(), limits, printed)
    try:
        return ScriptModel(name, source, box, limits)
    except BaseException:
        box.close()
        raise
