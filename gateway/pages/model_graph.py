"""The graph of a user's ONNX model, piece by piece, for static/graph_view.js."""

import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from flask import make_response, request
from werkzeug.wrappers import Response

from gateway.blueprints.rest import take
from gateway.context import services
from gateway.operations import onnx_graph
from gateway.operations.onnx_graph import Graph
from gateway.pages.forms import whole
from gateway.pages.frame import Pages, me
from gateway.pages.model_calls import wanted_version
from gateway.pages.model_places import called
from gateway.storage.model_records import VersionRecord
from idl.codes import Code, ServingError

_pages = Pages("model_graph")
blueprint = _pages.blueprint
_STATUS = {Code.MODEL_NOT_FOUND: 404, Code.VERSION_NOT_FOUND: 404, Code.OVERLOADED: 429}
SHOWN = 300
"""Operators drawn at once: what a browser lays out within a second, and a reader still sees through."""

_RATE = ("graphs", 30, 2.0)
"""Of files that are read for somebody: it takes up to seconds each. What is kept is not counted."""


class Kept:
    """Graphs that were drawn last, of this process; of `most` bytes together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._left = most
        self._graphs: OrderedDict[tuple[str, str], tuple[Graph, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, str]) -> Graph | None:
        with self._lock:
            if key not in self._graphs:
                return None
            self._graphs.move_to_end(key)
            return self._graphs[key][0]

    def put(self, key: tuple[str, str], graph: Graph) -> None:
        """One that is larger than all may be is not kept."""
        size = onnx_graph.size(graph)
        with self._lock:
            if size > self._most or key in self._graphs:
                return
            self._graphs[key] = graph, size
            self._left -= size
            while self._left < 0:
                self._left += self._graphs.popitem(last=False)[1][1]


_kept = Kept(32 << 20)


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
        return _answer({"error": error.message}, _STATUS.get(error.code, 422))
    return _answer(piece)


def graph_of(version: VersionRecord) -> Graph:
    """Raises gone, invalid_model, too_large, overloaded."""
    key = version.sha256, version.facts["model_file"] if version.facts["archive"] else ""
    graph = _kept.get(key)
    if graph is None:
        take(_RATE, me())
        graph = _read(version)
        _kept.put(key, graph)
    return graph


def _read(version: VersionRecord) -> Graph:
    owned = services()
    if not version.facts["archive"]:
        with owned.storage.blobs.open(version.sha256) as file:
            return onnx_graph.read(Path(f"/proc/self/fd/{file.fileno()}"))
    with owned.library.placed(version) as files:
        model = next(file.path for file in files if file.version and file.name == version.facts["model_file"])
        return onnx_graph.read(model)


def _number(name: str, otherwise: int) -> int:
    number = whole(request.args.get(name, ""), 9)
    return otherwise if number is None else number


def _answer(value: dict[str, Any], status: int = 200) -> Response:
    """A version's files never change: its browser may keep what it has seen."""
    kept = "private, max-age=3600" if status == 200 and "version" in request.args else "no-store"
    return make_response(json.dumps(value), status, {"Content-Type": "application/json", "Cache-Control": kept})
