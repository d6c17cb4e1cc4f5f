"""What every resource of `/v1` has in common: one description of each route, which checks the request and stands in the OpenAPI document.

A route is a function that gets an `Asked` and the path's names, and returns a `Reply`. Around it, in this order: who asks, and with which
scope; the rate limit; the query string and the body by their shapes; If-Match; the Idempotency-Key of a POST that creates.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from urllib.parse import quote

from flask import Blueprint, request
from werkzeug.wrappers import Response

from gateway.blueprints import json_body
from gateway.blueprints.asker import Asker
from gateway.context import client_address, principal, request_id, required_principal, services
from gateway.errors import InvalidFields
from gateway.shapes import Field, Items, Object, OrNull, Reasons, Shape, Text, Whole, optional, required, texts_of
from gateway.storage.audit import Doer
from gateway.types import Principal, Role, Scope
from idl.codes import Code, ServingError

WHOEVER, ANYBODY, SIGNED_IN, OPERATOR, ADMINISTRATOR = "whoever", "anybody", "signed in", "operator", "administrator"
"""WHOEVER: nobody looks at who asks, and a token that is not valid any more does no harm."""
_RANK = {ANYBODY: (), SIGNED_IN: tuple(Role), OPERATOR: (Role.OPERATOR, Role.ADMINISTRATOR), ADMINISTRATOR: (Role.ADMINISTRATOR,)}
_MARGIN_S = 60.0
"""Beyond the longest time that a request may take: then its process was killed."""
PAGE = {
    "limit": optional(Whole(1, 200), "most entries of the answer; 50 by default"),
    "cursor": optional(Text(1, 500), "where to go on: `next` of the answer before"),
}
"""The fields of a query string that asks for a page."""


@dataclass(frozen=True, slots=True)
class Asked(Asker):
    """A request that was checked. `revision`: what If-Match names, None without it."""

    query: Mapping[str, Any]
    body: Mapping[str, Any]
    revision: int | None

    @property
    def origin(self) -> Doer:
        """The same where nobody need be signed in: whoever it is done to."""
        return Doer(None, "", client_address(), request_id())

    @property
    def limit(self) -> int:
        return int(self.query.get("limit", 50))

    @property
    def after(self) -> list[Any] | None:
        """The key of the last entry of the page before; None for the first page. Raises invalid_input for a cursor that is not ours."""
        return read_cursor(self.query["cursor"]) if "cursor" in self.query else None

    def key(self, *kinds: type) -> tuple[Any, ...] | None:
        """The same for a key of parts of these kinds."""
        after = self.after
        if after is None:
            return None
        if [type(part) for part in after] != list(kinds):
            raise InvalidFields({"cursor": "is none that an answer gave"})
        return tuple(after)


@dataclass(frozen=True, slots=True)
class Reply:
    """`value` None: an empty body. `revision` becomes the ETag."""

    value: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a route in the document. `shape` None: no body; `types`: content types where it is not JSON."""

    text: str
    shape: Shape | None = None
    types: tuple[str, ...] = ("application/json",)


@dataclass(frozen=True, slots=True)
class Operation:
    """A route as the document tells it. `raw`: of a body that the route reads itself, its content types with their JSON Schema, {} for
    bytes; `headers`: those of the request that it reads; `errors`: besides those that every route of its kind can give."""

    method: str
    path: str
    name: str
    tag: str
    summary: str
    who: str
    scope: Scope
    query: Object
    body: Object | None
    raw: Mapping[str, Mapping[str, Any]]
    headers: Mapping[str, Field]
    answers: Mapping[int, Answer]
    errors: tuple[Code, ...]
    creates: bool
    matches: bool


OPERATIONS: list[Operation] = []
"""Every route that was described, in the order of import."""


class Rest:
    """Adds described routes to a blueprint. `tag`: the heading that they stand under in the document."""

    def __init__(self, blueprint: Blueprint, tag: str) -> None:
        self._blueprint = blueprint
        self._tag = tag

    def route(
        self,
        method: str,
        path: str,
        summary: str,
        answers: Mapping[int, Answer],
        *,
        who: str = SIGNED_IN,
        scope: Scope = Scope.READ,
        query: Mapping[str, Field] | None = None,
        body: Object | None = None,
        raw: Mapping[str, Mapping[str, Any]] | Sequence[str] = (),
        headers: Mapping[str, Field] | None = None,
        errors: Sequence[Code] = (),
        creates: bool = False,
        matches: bool = False,
        rate: tuple[str, int, float] | None = None,
    ) -> Callable[[Callable[..., Reply | Response]], Callable[..., Reply | Response]]:
        """`raw`, `headers`: as `Operation` has them; a list of types: bytes, or text. `creates`: a POST that takes an Idempotency-Key.
        `matches`: If-Match is looked at, by the route, as `Asked.revision`.

        `rate`: (name, burst, seconds until one more is allowed), of one user, or of one address where nobody is signed in.
        """

        def describe(function: Callable[..., Reply | Response]) -> Callable[..., Reply | Response]:
            operation = Operation(
                method,
                path,
                function.__name__,
                self._tag,
                summary,
                who,
                scope,
                Object(query or {}),
                body,
                raw if isinstance(raw, Mapping) else {kind: {} for kind in raw},
                headers or {},
                answers,
                tuple(errors),
                creates,
                matches,
            )
            OPERATIONS.append(operation)

            @wraps(function)
            def answer(**names: str) -> Response:
                return _answer(operation, rate, function, names)

            self._blueprint.add_url_rule(path, function.__name__, answer, methods=[method])
            return function

        return describe


def _answer(
    operation: Operation, rate: tuple[str, int, float] | None, function: Callable[..., Reply | Response], names: Mapping[str, str]
) -> Response:
    caller = _caller(operation)
    if rate is not None:
        take(rate, caller)
    reasons: Reasons = {}
    query = texts_of(operation.query, list(request.args.items(multi=True)), "", reasons)
    body: Mapping[str, Any] = {}
    if operation.body is not None:
        body = operation.body.check(json_body.read_object(), "", reasons)
    if reasons:
        raise InvalidFields(reasons)
    asked = Asked(caller, query, body, _revision() if operation.matches else None)
    key = request.headers.get("Idempotency-Key") if operation.creates else None
    if key is None or caller is None:
        return _spelled(function(asked, **names))
    settings = services().settings
    longest_s = settings.upload_timeout_s if operation.raw else settings.request_timeout_s
    return once(caller, key, longest_s + _MARGIN_S, lambda: _spelled(function(asked, **names)))


def _caller(operation: Operation) -> Principal | None:
    if operation.who == WHOEVER:
        return None
    caller = principal() if operation.who == ANYBODY else required_principal()
    if caller is None:
        return None
    if operation.who != ANYBODY and caller.role not in _RANK[operation.who]:
        raise ServingError(Code.FORBIDDEN, f"this needs the role {' or '.join(_RANK[operation.who])}")
    if operation.scope not in caller.scopes:
        raise ServingError(Code.FORBIDDEN, f"this needs an API key with the scope {operation.scope.value!r}")
    return caller


def take(rate: tuple[str, int, float], caller: Principal | None) -> None:
    """Counts one, as `Rest.route` has rates. Raises overloaded."""
    name, burst, interval_s = rate
    whose = f"user {caller.user_id}" if caller else f"address {client_address()}"
    owned = services()
    now = owned.now().timestamp()
    wait_s = owned.storage.attempts.take(f"rate {name} {whose}", now, burst=burst, interval_s=interval_s)
    if wait_s > 0:
        raise ServingError(Code.OVERLOADED, f"too many requests of this kind ({name})", retry_after_ms=max(1, round(wait_s * 1000)))


def _revision() -> int | None:
    """Raises invalid_input for an If-Match that is no single entity tag of ours.

    A proxy that compresses an answer makes its tag a weak one, as nginx does; it is of the same revision, whatever the bytes.
    """
    header = request.headers.get("If-Match")
    if header is None or header.strip() == "*":
        return None
    text = header.strip().removeprefix("W/")
    if not (text.startswith('"') and text.endswith('"') and text[1:-1].isascii() and text[1:-1].isdigit() and len(text) < 20):
        raise InvalidFields({"If-Match": 'must be one entity tag as ETag gave it, such as "3"'})
    return int(text[1:-1])


def _spelled(reply: Reply | Response) -> Response:
    if isinstance(reply, Response):
        return reply
    headers = dict(reply.headers)
    if reply.revision is not None:
        headers["ETag"] = f'"{reply.revision}"'
        if request.method == "GET" and request.if_none_match.contains_weak(str(reply.revision)):
            return Response(b"", 304, headers)
    headers.setdefault("Cache-Control", "no-store")
    if reply.value is None:
        return Response(b"", reply.status if reply.status != 200 else 204, headers)
    return Response(json.dumps(reply.value, allow_nan=False), reply.status, headers, content_type="application/json")


def once(caller: Principal, key: str, longest_s: float, make: Callable[[], Response], content: bytes | None = None) -> Response:
    """What `make` answers, or has answered under this Idempotency-Key. `content`: the request's, where it was read already."""
    fingerprint = _fingerprint(content)
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise InvalidFields({"Idempotency-Key": "must have 1 to 255 printable ASCII characters"})
    owned = services()
    store = owned.storage.idempotency
    known = store.begin(caller.user_id, key, fingerprint, owned.now(), longest_s)
    if known is not None:
        if known.fingerprint != fingerprint:
            raise InvalidFields({"Idempotency-Key": "was used for another request"})
        if not known.status:
            raise ServingError(Code.CONFLICT, "the first request with this Idempotency-Key has not ended", retry_after_ms=1000)
        return Response(known.body, known.status, {**known.headers, "Idempotent-Replayed": "true"})
    try:
        made = make()
    except BaseException:
        store.forget(caller.user_id, key)
        raise
    headers = {name: value for name, value in made.headers.items() if name in ("Content-Type", "Location", "ETag", "Cache-Control")}
    store.end(caller.user_id, key, made.status_code, headers, made.get_data(as_text=True))
    return made


def _fingerprint(content: bytes | None) -> str:
    """Of the request: its address and its body, of a file the announced length."""
    if content is None:
        content = request.get_data(cache=True) if request.is_json else str(request.content_length).encode()
    parts = (request.method.encode(), request.full_path.encode(), (request.content_type or "").partition(";")[0].encode(), content)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def page(entries: Sequence[Any], key: Callable[[Any], Sequence[Any]], body: Callable[[Any], Any], limit: int) -> Reply:
    """`{"items", "next"}` of at most `limit` of the entries, of which the caller asked for one more; `key`: what the next page begins after."""
    shown = entries[:limit]
    following = write_cursor(key(shown[-1])) if len(entries) > limit else None
    headers = {}
    if following is not None:
        arguments = {**request.args, "cursor": following}
        query = "&".join(f"{quote(name, safe='')}={quote(str(value), safe='')}" for name, value in arguments.items())
        headers["Link"] = f'<{request.path}?{query}>; rel="next"'
    return Reply({"items": [body(entry) for entry in shown], "next": following}, headers=headers)


def page_of(name: str, entry: Shape) -> Object:
    """The shape of such an answer."""
    return Object({"items": required(Items(entry, 200)), "next": required(OrNull(Text()), "the cursor of the next page, null: none")}, name)


def write_cursor(key: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(list(key)).encode()).decode().rstrip("=")


def read_cursor(text: str) -> list[Any]:
    try:
        key = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if isinstance(key, list) and all(map(_is_part, key)):
            return key
    except (ValueError, RecursionError):
        pass
    raise InvalidFields({"cursor": "is none that an answer gave"})


def _is_part(part: Any) -> bool:
    """Whether a database can hold it: no half of a surrogate pair, no number beyond 64 bits."""
    if isinstance(part, str):
        return not any(0xD800 <= ord(character) < 0xE000 for character in part)
    return type(part) is int and abs(part) < 1 << 63
