"""The form API: what all of its routes have in common, and `/login`.

Parameters are form fields, of GET and DELETE the query string's as well; every answer is JSON with `status`. A route describes which
statuses it documents, and from those the table here finds the one for an error: with HTTP 200, except `invalid parameter`, which is 400
unless the route never fails. The other files of the form API (`form_*.py`) add their routes with `FormRoutes`.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from flask import Blueprint, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from gateway.blueprints import forms, multipart
from gateway.blueprints.asker import Asker
from gateway.blueprints.calls import read_body
from gateway.blueprints.multipart import FORM_BYTES, Part
from gateway.context import client_address, request_id, services
from gateway.errors import InvalidFields, internal
from gateway.shapes import is_unicode
from gateway.storage.incoming import Incoming
from gateway.types import Principal
from idl.codes import Code, ServingError

blueprint = Blueprint("form_api", __name__)

SUCCESS = "success"
USER_NOT_FOUND, INVALID_PASSWORD = "user not found", "invalid password"
MODEL_NOT_FOUND, DEPLOYMENT_NOT_FOUND, TASK_NOT_FOUND = "model not found", "deployment not found", "task not found"
DUPLICATION, INVALID_MODEL, INVALID_INPUT, INVALID_SCRIPT = "duplication", "invalid model", "invalid input", "invalid script"
DEPLOYMENT_PAUSED, QUEUE_FULL, NO_CAPACITY = "deployment paused", "queue full", "insufficient capacity"
NOT_FINISHED, TASK_FAILED, TASK_CANCELLED, RESULT_EXPIRED = "not finished", "task failed", "task cancelled", "result expired"
TOO_MANY, OVERLOADED, UNAVAILABLE, INTERNAL = "too many attempts", "overloaded", "unavailable", "internal error"
INVALID_PARAMETER = "invalid parameter"

ALWAYS = frozenset({SUCCESS, TOO_MANY, OVERLOADED, UNAVAILABLE, INTERNAL, INVALID_PARAMETER})
"""What any route may answer."""
SIGNED_IN = (USER_NOT_FOUND, INVALID_PASSWORD)

_NOT_THERE = (DEPLOYMENT_NOT_FOUND, TASK_NOT_FOUND, MODEL_NOT_FOUND, UNAVAILABLE)
_INVALID = (INVALID_INPUT, INVALID_MODEL, INVALID_SCRIPT, INVALID_PARAMETER)
STATUSES: Mapping[Code, Sequence[str]] = {
    Code.INVALID_INPUT: (INVALID_INPUT, INVALID_SCRIPT, INVALID_PARAMETER),
    Code.UNAUTHENTICATED: (INVALID_PASSWORD, UNAVAILABLE),
    Code.FORBIDDEN: _NOT_THERE,
    Code.MODEL_NOT_FOUND: (MODEL_NOT_FOUND, DEPLOYMENT_NOT_FOUND, UNAVAILABLE),
    Code.VERSION_NOT_FOUND: (MODEL_NOT_FOUND, DEPLOYMENT_NOT_FOUND, UNAVAILABLE),
    Code.NOT_FOUND: _NOT_THERE,
    Code.ALREADY_EXISTS: (DUPLICATION, UNAVAILABLE),
    Code.CONFLICT: (NOT_FINISHED, UNAVAILABLE),
    Code.GONE: (RESULT_EXPIRED, UNAVAILABLE),
    Code.TOO_LARGE: _INVALID,
    Code.UNSUPPORTED_MEDIA: _INVALID,
    Code.UNSUPPORTED: (INVALID_MODEL, INVALID_SCRIPT, UNAVAILABLE),
    Code.DEPLOYMENT_PAUSED: (DEPLOYMENT_PAUSED, UNAVAILABLE),
    Code.INVALID_MODEL: (INVALID_MODEL, UNAVAILABLE),
    Code.CANCELLED: (TASK_CANCELLED, UNAVAILABLE),
    Code.OVERLOADED: (OVERLOADED,),
    Code.DEADLINE_EXCEEDED: (UNAVAILABLE,),
    Code.NOT_READY: (UNAVAILABLE,),
    Code.UNAVAILABLE: (UNAVAILABLE,),
    Code.INSUFFICIENT_CAPACITY: (NO_CAPACITY, UNAVAILABLE),
    Code.MODEL_FAILED: (INTERNAL,),
    Code.INTERNAL: (INTERNAL,),
}
"""THE table from error codes to statuses: the first of a code's that the route documents, else the last."""


class Refused(Exception):
    """A status that no error code stands for, such as `not finished`; `more`: what else the answer holds."""

    def __init__(self, status: str, message: str = "", **more: Any) -> None:
        super().__init__(status)
        self.status = status
        self.message = message
        self.more = more


@dataclass(frozen=True, slots=True)
class FormAsked(Asker):
    """A form request whose parameters are there. `files`: those in memory; `kept`: those that were streamed to the disk, by field name."""

    parameters: Mapping[str, str]
    fields: Sequence[tuple[str, str]]
    files: Sequence[Part] = ()
    kept: Mapping[str, Sequence[Incoming]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        return self.parameters[name]

    def get(self, name: str) -> str | None:
        """A parameter that may be left out."""
        return self.parameters.get(name)

    def file(self, name: str) -> Part | None:
        """The first file of that field."""
        return next((part for part in self.files if part.field == name), None)


@dataclass(frozen=True, slots=True)
class FormRoute:
    """A route as it was described."""

    method: str
    path: str
    required: Sequence[str]
    optional: Sequence[str]
    statuses: Collection[str]
    never_fails: bool


ROUTES: list[FormRoute] = []
"""Every route that was described, in the order of import."""


class FormRoutes:
    """Adds described routes to a blueprint."""

    def __init__(self, blueprint: Blueprint) -> None:
        self._blueprint = blueprint

    def route(
        self,
        method: str,
        path: str,
        required: Sequence[str] = (),
        *,
        optional: Sequence[str] = (),
        statuses: Collection[str] = (),
        keep: Collection[str] = (),
        signs_in: bool = True,
        never_fails: bool = False,
    ) -> Callable[[Callable[[FormAsked], Mapping[str, Any]]], Callable[[FormAsked], Mapping[str, Any]]]:
        """`required`, `optional`: text parameters besides user and password. `statuses`: the documented ones besides success and
        those of `signs_in`, which asks for user and password. `keep`: file fields that are streamed to the disk (large ones).

        The function returns what the answer holds besides `status`; it raises ServingError, or Refused.
        """
        told = FormRoute(method, path, required, optional, (*statuses, *(SIGNED_IN if signs_in else ())), never_fails)

        def describe(function: Callable[[FormAsked], Mapping[str, Any]]) -> Callable[[FormAsked], Mapping[str, Any]]:
            @wraps(function)
            def answer() -> Response:
                return _answer(told, signs_in, keep, function)

            ROUTES.append(told)
            # the function's own name may stand in several files
            self._blueprint.add_url_rule(path, f"{method} {path}".replace(".", "_"), answer, methods=[method])
            return function

        return describe


def _answer(route: FormRoute, signs_in: bool, keep: Collection[str], function: Callable[[FormAsked], Mapping[str, Any]]) -> Response:
    sent = multipart.Sent()
    try:
        try:
            sent = _sent(route, keep)
            given = _parameters(route, sent.fields, signs_in)
            caller = _sign_in(given["user"], given["password"]) if signs_in else None
            return spelled(SUCCESS, function(FormAsked(caller, given, sent.fields, sent.files, sent.kept)))
        finally:
            sent.discard()
    except Refused as refused:
        return spelled(refused.status, refused.more, refused.message, route.never_fails)
    except ServingError as error:
        g.error_code = error.code.value
        return spelled(status_of(error, route.statuses), {}, error.message, route.never_fails)
    except HTTPException as error:
        return spelled(INVALID_PARAMETER, {}, str(error.description or error.name), route.never_fails)
    except Exception as error:  # noqa: BLE001 - the caller is owed an answer of this kind
        internal(error, request.method, request.path, request_id())
        return spelled(INTERNAL, {}, f"the server made a mistake; its log names it {request_id()}")


def status_of(error: ServingError, documented: Collection[str]) -> str:
    """The status for an error in a route with these documented ones."""
    if isinstance(error, InvalidFields):
        return INVALID_PARAMETER
    statuses = STATUSES[error.code]
    return next((status for status in statuses if status in documented), statuses[-1])


def spelled(status: str, more: Mapping[str, Any], message: str = "", never_fails: bool = False) -> Response:
    """The answer."""
    body = {"status": status} | ({"message": message} if message else {}) | dict(more)
    http = 400 if status == INVALID_PARAMETER and not never_fails else 200
    return Response(json.dumps(body, allow_nan=False), http, {"Cache-Control": "no-store"}, content_type="application/json")


def _sent(route: FormRoute, keep: Collection[str]) -> multipart.Sent:
    """Form fields first, then those of the query string where it counts."""
    owned = services()
    if request.mimetype == forms.MULTIPART:
        memory = FORM_BYTES if keep else owned.settings.max_body_bytes
        limit = owned.settings.max_upload_bytes + FORM_BYTES if keep else owned.settings.max_body_bytes
        sent = multipart.Sent()
        receive = owned.storage.receive(owned.settings.max_upload_bytes)

        def begin(name: str) -> Incoming:
            # a stranger's file is not taken to the disk, where the password has come before it
            given = _first(sent.fields)
            if "user" in given and "password" in given:
                _sign_in(given["user"], given["password"])
            return receive(name)

        multipart.read(keep, begin, memory, limit, sent)
    elif request.mimetype == forms.URLENCODED:
        sent = multipart.Sent(forms.parse(read_body(), forms.URLENCODED)[0])
    else:
        sent = multipart.Sent()
    if route.method in ("GET", "DELETE"):
        sent.fields += request.args.items(multi=True)
    return sent


def _parameters(route: FormRoute, fields: Sequence[tuple[str, str]], signs_in: bool) -> dict[str, str]:
    """The first value of each known name. Raises invalid_input for one that is missing."""
    given = _first(fields)
    required = (*(("user", "password") if signs_in else ()), *route.required)
    if missing := {name: "is missing" for name in required if name not in given}:
        raise InvalidFields(missing)
    known = {*required, *route.optional}
    if wrong := {name: "holds a character that no text may have" for name in known & given.keys() if not _storable(given[name])}:
        raise InvalidFields(wrong)
    return {name: value for name, value in given.items() if name in known}


def _first(fields: Sequence[tuple[str, str]]) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in fields:
        given.setdefault("user" if name == "uesr" else name, value)
    return given


def _storable(text: str) -> bool:
    return is_unicode(text) and "\0" not in text


def _sign_in(user: str, password: str) -> Principal:
    owned = services()
    try:
        return owned.credentials.check(user, password, client_address())
    except ServingError as error:
        if error.code is Code.OVERLOADED:
            raise Refused(TOO_MANY, error.message) from None
        if error.code is Code.UNAUTHENTICATED and not owned.credentials.exists(user):
            raise Refused(USER_NOT_FOUND) from None
        raise


routes = FormRoutes(blueprint)


@routes.route("POST", "/login")
def login(asked: FormAsked) -> Mapping[str, Any]:
    """Whether the password is right."""
    return {}
