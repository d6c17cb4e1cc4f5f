"""The files that pages are made of: each has its content's hash in its address, and is kept by browsers for good."""

import functools
import hashlib
from pathlib import Path

from flask import Blueprint, abort, request, send_from_directory
from werkzeug.wrappers import Response

FOLDER = Path(__file__).resolve().parent.parent / "static"
blueprint = Blueprint("pages_assets", __name__)
_KEPT = "public, max-age=31536000, immutable"


@functools.cache
def version(name: str) -> str:
    """The first characters of a file's SHA-256. Raises OSError where it is not there."""
    return hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()[:12]


def asset(name: str) -> str:
    """The address of a file."""
    return f"/ui/static/{name}?v={version(name)}"


@blueprint.get("/ui/static/<path:name>")
def read(name: str) -> Response:
    answer = send_from_directory(FOLDER, name, etag=True)
    answer.headers["X-Content-Type-Options"] = "nosniff"
    try:
        fits = request.args.get("v") == version(name)
    except OSError:
        abort(404)
    answer.headers["Cache-Control"] = _KEPT if fits else "no-cache"
    return answer
