"""The graph of a user's ONNX model, piece by piece, for static/graph_view.js."""

import json
from pathlib import Path
from typing import Any

from flask import make_response, request
from werkzeug.wrappers import Response

from gateway.context import services
from gateway.operations import onnx_graph
from gateway.operations.onnx_graph import Graph
from gateway.pages.frame import Pages, me
from gateway.pages.model_calls import wanted_version
from gateway.pages.model_places import called
from gateway.storage.model_records import VersionRecord
from idl.codes import Code, ServingError

_pages = Pages("model_graph")
blueprint = _pages.blueprint
SHOWN = 300
"""Operators drawn at once: what a browser lays out within a second, and a reader still sees through."""


@_pages.page("/ui/models/<owner>/<name>/graph")
def graph(owner: str, name: str) -> Response:
    """`?first=`: from which operator on; `?find=` with `after=`: those around the next one with that text. As JSON, with errors as JSON."""
    try:
        found = services().library.find(me(), called(owner, name))
        version = wanted_version(found)
        if version.format != "onnx":
            raise ServingError(Code.UNSUPPORTED, "graphs are drawn of ONNX models")
        piece = onnx_graph.window(graph_of(version), _number("first", 0), SHOWN, request.args.get("find", "")[:200], _number("after", -1))
    except ServingError as error:
        return _answer({"error": error.message}, 404 if error.code in (Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND) else 422)
    return _answer(piece)


def graph_of(version: VersionRecord) -> Graph:
    """Raises gone, invalid_model, too_large."""
    owned = services()
    if not version.facts["archive"]:
        with owned.storage.blobs.open(version.sha256) as file:
            return onnx_graph.read(Path(f"/proc/self/fd/{file.fileno()}"))
    with owned.library.placed(version) as files:
        model = next(file.path for file in files if file.version and file.name == version.facts["model_file"])
        return onnx_graph.read(model)


def _number(name: str, otherwise: int) -> int:
    text = request.args.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else otherwise


def _answer(value: dict[str, Any], status: int = 200) -> Response:
    """A version's files never change: its browser may keep what it has seen."""
    kept = "private, max-age=3600" if status == 200 and "version" in request.args else "no-store"
    return make_response(json.dumps(value), status, {"Content-Type": "application/json", "Cache-Control": kept})
