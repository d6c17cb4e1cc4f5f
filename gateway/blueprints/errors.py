"""Turns whatever a request ended in into an answer, and lists the codes at `GET /v1/errors`."""

from collections.abc import Callable

from flask import Blueprint, Flask, g, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect
from werkzeug.wrappers import Response

from gateway.context import request_id
from gateway.error_texts import TEXTS
from gateway.errors import STATUS, http_problem, internal, problem
from idl.codes import Code, ServingError

blueprint = Blueprint("errors", __name__)


def handle(app: Flask, page: Callable[[HTTPException], Response | None]) -> None:
    """Every exception of `app` is answered here, in one of the two shapes of `gateway.errors`; what the framework refused by `page`, where
    that has something for whoever asks."""

    def http_exception(error: HTTPException) -> Response | HTTPException:
        return page(error) or _http_exception(error)

    app.register_error_handler(ServingError, _serving_error)
    app.register_error_handler(HTTPException, http_exception)
    app.register_error_handler(Exception, _unexpected)


def _serving_error(error: ServingError) -> Response:
    g.error_code = error.code.value
    return problem(error, request.path, request_id())


def _http_exception(error: HTTPException) -> Response | HTTPException:
    if isinstance(error, RequestRedirect) or error.response is not None:
        return error
    return http_problem(error, request.path, request_id())


def _unexpected(error: Exception) -> Response:
    return internal(error, request.method, request.path, request_id())


@blueprint.get("/v1/errors")
def list_errors() -> ResponseReturnValue:
    """Every error code with its status, its meaning and what to do, in English and Chinese."""
    return {"errors": [_entry(code) for code in Code]}


def _entry(code: Code) -> dict[str, object]:
    text = TEXTS[code]
    return {
        "code": code.value,
        "status": STATUS[code],
        "title": {"en": text.title, "zh": text.title_zh},
        "description": {"en": text.description, "zh": text.description_zh},
        "hint": {"en": text.hint, "zh": text.hint_zh},
    }
