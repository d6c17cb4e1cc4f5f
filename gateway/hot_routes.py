"""Inference over HTTP without the web framework's dispatch, which costs more than everything else that the gateway does for it.

A WSGI middleware in front of Flask. It takes `/v2/.../infer` and predictions with a plain JSON body, and does exactly what the routes of
`gateway.blueprints` do, through the same operations. Whatever is unusual about a request it leaves to Flask, which has the same routes.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from gateway import observation, wsgi_request
from gateway.context import REQUEST_ID_HEADER, Services
from gateway.errors import internal, problem
from gateway.operations import deployment_calls, prediction_bodies, predictions, v2_inference
from gateway.operations.access import require_scope
from gateway.operations.browsers import SESSION
from gateway.operations.deployment_errors import V1 as BY_V1
from gateway.operations.inference import Call
from gateway.operations.v2_inference import Answer, Heads
from gateway.types import Scope
from idl.codes import ServingError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

INFER, INFER_VERSION = "/v2/models/<model>/infer", "/v2/models/<model>/versions/<version>/infer"
PREDICTIONS = "/v1/models/<model>/predictions"
DEPLOYED = "/v1/deployments/<name>/predictions"
GENERATE_STREAM, GENERATE_STREAM_VERSION = (f"/v2/models/<model>{version}/generate_stream" for version in ("", "/versions/<version>"))
"""The templates of the routes that are answered here, or by the front: their labels in the metrics."""
STREAMS = frozenset({GENERATE_STREAM, GENERATE_STREAM_VERSION})
_NAME = r"([A-Za-z0-9_.-]+)"
_INFER = re.compile(rf"/v2/models/{_NAME}(?:/versions/{_NAME})?/infer", re.ASCII)
_STREAM = re.compile(rf"/v2/models/{_NAME}(?:/versions/{_NAME})?/generate_stream", re.ASCII)
_PREDICT = re.compile(rf"/v1/(models|deployments)/{_NAME}/predictions", re.ASCII)
V1 = (PREDICTIONS, DEPLOYED)
_JSON = "application/json"
_JSON_HEADERS = (("Content-Type", _JSON),)
_UNSTORED = (*_JSON_HEADERS, ("Cache-Control", "no-store"))


class Target(NamedTuple):
    """What an address means. `version` "": the one that serves by default."""

    endpoint: str
    model: str
    version: str


@lru_cache(maxsize=1024)
def stream_target(path: str) -> Target | None:
    """The same for a stream of answers."""
    if found := _STREAM.fullmatch(path):
        model, version = found.groups()
        return Target(GENERATE_STREAM_VERSION if version else GENERATE_STREAM, model, version or "")
    return None


@lru_cache(maxsize=1024)
def target(path: str) -> Target | None:
    """None for what Flask alone answers."""
    if found := _INFER.fullmatch(path):
        model, version = found.groups()
        return Target(INFER_VERSION if version else INFER, model, version or "")
    if found := _PREDICT.fullmatch(path):
        return Target(PREDICTIONS if found[1] == "models" else DEPLOYED, found[2], "")
    return None


def _by_session(environ: "WSGIEnvironment") -> bool:
    """Whether a page's script asks, which has no token but its browser's cookie."""
    return "HTTP_COOKIE" in environ and "HTTP_AUTHORIZATION" not in environ and f"{SESSION}=" in environ["HTTP_COOKIE"]


class HotRoutes:
    """The middleware. Thread-safe."""

    def __init__(self, app: "WSGIApplication", services: Services) -> None:
        self._app = app
        self._services = services

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        found = target(environ["PATH_INFO"]) if environ["REQUEST_METHOD"] == "POST" and environ.get("CONTENT_LENGTH") else None
        if found is None or "HTTP_TRANSFER_ENCODING" in environ:
            return self._app(environ, start_response)
        if found.endpoint not in V1:
            return self._exchange(environ, start_response, found, self._infer)
        if _by_session(environ):  # of a page: its cookie and its form's token are looked at there
            return self._app(environ, start_response)
        if environ.get("CONTENT_TYPE") == _JSON and not environ.get("QUERY_STRING") and "HTTP_PREFER" not in environ:
            return self._exchange(environ, start_response, found, self._predict if found.endpoint is PREDICTIONS else self._deployed)
        return self._app(environ, start_response)

    def _exchange(
        self,
        environ: "WSGIEnvironment",
        start_response: "StartResponse",
        target: Target,
        run: "Callable[[WSGIEnvironment, Target, Call], Answer]",
    ) -> Iterable[bytes]:
        """What `blueprints.requests` and `blueprints.errors` do around a route."""
        owned, path, status = self._services, environ["PATH_INFO"], 500
        started = observation.begin(owned.metrics)
        request_id = wsgi_request.request_id(environ)
        trace = None if owned.tracer is None else owned.tracer.begin(environ.get("HTTP_TRACEPARENT", ""), target.model)
        code = ""
        try:
            try:
                caller = wsgi_request.principal(environ, owned.tokens)
                timeout_s = owned.settings.request_timeout_s
                traceparent = trace.header if trace else environ.get("HTTP_TRACEPARENT", "")
                call = wsgi_request.call(caller, request_id, timeout_s, traceparent, owned.connection(), owned.deployed)
                answer = run(environ, target, call)
                status = 200
            except ServingError as error:
                response, code = problem(error, path, request_id), error.code.value
            except Exception as error:  # noqa: BLE001 - the caller is owed an answer
                response = internal(error, "POST", path, request_id)
            if status == 200:
                size = ("Content-Length", str(len(answer.body)))
                start_response("200 OK", [*answer.headers, size, (REQUEST_ID_HEADER, request_id)])
                return [answer.body]
            status = response.status_code
            response.headers[REQUEST_ID_HEADER] = request_id
            return response(environ, start_response)
        finally:
            observation.end(owned.metrics, started, request_id, target.endpoint, "POST", path, status)
            if owned.tracer is not None and trace is not None:
                observation.tell(owned.tracer, trace, started, request_id, target.endpoint, "POST", path, status, code)

    def _infer(self, environ: "WSGIEnvironment", target: Target, call: Call) -> Answer:
        heads = Heads(environ.get("HTTP_INFERENCE_HEADER_CONTENT_LENGTH"), environ.get("HTTP_ACCEPT_ENCODING", ""))
        limit = self._services.settings.max_body_bytes
        return v2_inference.infer(
            self._services.models, call, target.model, target.version, lambda: wsgi_request.read_body(environ, limit), heads
        )

    def _predict(self, environ: "WSGIEnvironment", target: Target, call: Call) -> Answer:
        owned = self._services
        body = predictions.answer(
            owned.models,
            owned.settings,
            call,
            target.model,
            target.version,
            lambda: prediction_bodies.from_json(wsgi_request.read_body(environ, owned.settings.max_body_bytes)),
        )
        return Answer(body, _JSON_HEADERS)

    def _deployed(self, environ: "WSGIEnvironment", target: Target, call: Call) -> Answer:
        owned = self._services
        require_scope(call.principal, Scope.CALL)
        deployment = owned.deployed.target(call.principal, target.model)
        with owned.deployed.errors.noting(deployment.id, call.request_id, BY_V1):
            body = prediction_bodies.from_json(wsgi_request.read_body(environ, owned.settings.max_body_bytes))
            answer = deployment_calls.predict(owned.models, owned.settings, call, deployment, body)
        return Answer(predictions.spelled(answer), _UNSTORED)
