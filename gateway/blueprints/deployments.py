"""`/v1/deployments`: making, changing and deleting them, and what they did."""

from datetime import UTC, datetime, timedelta

from flask import Blueprint

from gateway import clock
from gateway.blueprints import deployment_bodies as bodies
from gateway.blueprints.rest import PAGE, Answer, Asked, Reply, Rest, page, page_of
from gateway.context import services
from gateway.errors import InvalidFields
from gateway.operations import deployment_statistics
from gateway.operations.access import Can
from gateway.operations.deployment_changes import Wanted
from gateway.operations.deployment_statistics import SPANS
from gateway.shapes import Flag, Text, Whole, optional
from gateway.storage.deployment_errors import KEPT
from gateway.storage.deployment_statistics import KEPT_S
from gateway.storage.deployments import DeploymentRecord
from gateway.types import Scope
from idl.codes import Code

blueprint = Blueprint("deployments", __name__)
_routes = Rest(blueprint, "deployments")
_ONE = {200: Answer("the deployment", bodies.DEPLOYMENT)}
_CHANGE_ERRORS = (Code.NOT_FOUND, Code.VERSION_NOT_FOUND, Code.CONFLICT)
_RATE = ("deployments", 60, 2.0)


def _reply(record: DeploymentRecord, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    # the tag is for If-Match alone: what becomes of a deployment changes without its revision, and "not modified" would not be true
    return Reply(bodies.deployment(record), status, {"ETag": f'"{record.revision}"', **(headers or {})})


@_routes.route(
    "POST",
    "/v1/deployments",
    "makes a deployment of a model, which starts",
    {201: Answer("the deployment; it starts while this is read", bodies.DEPLOYMENT)},
    scope=Scope.WRITE,
    body=bodies.CREATE,
    errors=(Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND, Code.ALREADY_EXISTS),
    creates=True,
    rate=_RATE,
)
def create_deployment(asked: Asked) -> Reply:
    made = services().deployments.create(asked.me, asked.body, asked.doer)
    return _reply(made, 201, {"Location": f"/v1/deployments/{made.name}"})


@_routes.route(
    "GET",
    "/v1/deployments",
    "lists the caller's deployments, oldest first",
    {200: Answer("a page", page_of("Deployments", bodies.DEPLOYMENT))},
    query={
        **PAGE,
        "model": optional(Text(1, 140), "of this model only"),
        "state": optional(Text(choices=bodies.STATES)),
        "shared": optional(Flag(), "besides one's own those of one's teams, and public ones; operators see all"),
    },
    errors=(Code.MODEL_NOT_FOUND,),
)
def list_deployments(asked: Asked) -> Reply:
    wanted = Wanted(asked.query.get("model", ""), asked.query.get("state", ""), asked.query.get("shared", False))
    found = services().deployments.listed(asked.me, wanted, _after(asked), asked.limit + 1)
    return page(found, lambda record: [record.id], bodies.deployment, asked.limit)


def _after(asked: Asked) -> int:
    key = asked.key(int)
    return 0 if key is None else int(key[0])


@_routes.route("GET", "/v1/deployments/<name>", "reads a deployment", _ONE, errors=(Code.NOT_FOUND,))
def read_deployment(asked: Asked, name: str) -> Reply:
    return _reply(services().deployments.find(asked.me, name))


@_routes.route(
    "PATCH",
    "/v1/deployments/<name>",
    "changes what is wanted of a deployment; calls go on meanwhile",
    _ONE,
    scope=Scope.WRITE,
    body=bodies.CHANGE,
    matches=True,
    errors=_CHANGE_ERRORS,
)
def change_deployment(asked: Asked, name: str) -> Reply:
    return _reply(services().deployments.change(asked.me, name, asked.body, asked.doer, asked.revision))


@_routes.route(
    "POST",
    "/v1/deployments/<name>/promote",
    "makes the canary's version the one that serves",
    _ONE,
    scope=Scope.WRITE,
    matches=True,
    errors=_CHANGE_ERRORS,
)
def promote_deployment(asked: Asked, name: str) -> Reply:
    return _reply(services().deployments.promote(asked.me, name, asked.doer, asked.revision))


@_routes.route(
    "POST",
    "/v1/deployments/<name>/rollback",
    "takes the canary back; without one goes back to the version before",
    _ONE,
    scope=Scope.WRITE,
    matches=True,
    errors=_CHANGE_ERRORS,
)
def roll_back_deployment(asked: Asked, name: str) -> Reply:
    return _reply(services().deployments.roll_back(asked.me, name, asked.doer, asked.revision))


@_routes.route(
    "DELETE",
    "/v1/deployments/<name>",
    "deletes a deployment",
    {204: Answer("it is on its way out, and its name is free")},
    scope=Scope.WRITE,
    matches=True,
    errors=_CHANGE_ERRORS,
)
def delete_deployment(asked: Asked, name: str) -> Reply:
    services().deployments.delete(asked.me, name, asked.doer, asked.revision)
    return Reply()


@_routes.route(
    "GET",
    "/v1/deployments/<name>/stats",
    "what a deployment did, over time",
    {200: Answer("the statistics", bodies.STATISTICS)},
    query={
        "span": optional(Text(choices=tuple(SPANS)), "minute by default, kept for a day; 10s: for an hour; hour: for 90 days"),
        "from": optional(Text(1, 40), "ISO 8601 with its offset from UTC; by default as far back as is kept"),
        "to": optional(Text(1, 40), "before this; by default now"),
    },
    errors=(Code.NOT_FOUND,),
)
def deployment_statistics_of(asked: Asked, name: str) -> Reply:
    owned = services()
    record = owned.deployments.find(asked.me, name)
    span = asked.query.get("span", "minute")
    now = owned.now()
    begin = _moment(asked, "from", now - timedelta(seconds=KEPT_S[SPANS[span]]))
    end = _moment(asked, "to", now + timedelta(seconds=SPANS[span]))
    owned.collector.freshen()
    points = deployment_statistics.points(owned.storage, record, span, int(begin.timestamp()), int(end.timestamp()))
    return Reply(
        {
            "span": span,
            "total": deployment_statistics.told(deployment_statistics.total(points)),
            "points": [
                {"begin": clock.to_text(datetime.fromtimestamp(point.begin, UTC)), **deployment_statistics.told(point.counts)}
                for point in points
            ],
        }
    )


@_routes.route(
    "GET",
    "/v1/deployments/<name>/errors",
    "the last calls of a deployment that failed, newest first",
    {200: Answer("at most 100, of the last 30 days", bodies.ERRORS)},
    query={"limit": optional(Whole(1, KEPT), f"{KEPT} by default")},
    errors=(Code.NOT_FOUND,),
)
def deployment_errors_of(asked: Asked, name: str) -> Reply:
    owned = services()
    record = owned.deployments.find(asked.me, name, Can.CHANGE)
    found = owned.deployed.errors.last(record.id, asked.query.get("limit", KEPT))
    return Reply({"items": [bodies.error(each) for each in found]})


def _moment(asked: Asked, field: str, default: datetime) -> datetime:
    if field not in asked.query:
        return default
    try:
        moment = datetime.fromisoformat(asked.query[field].replace(" ", "+"))
        if moment.tzinfo is not None and 1970 < moment.year < 3000:
            return moment
    except ValueError:
        pass
    raise InvalidFields({field: "is not a time such as 2026-11-21T04:05:06Z"})
