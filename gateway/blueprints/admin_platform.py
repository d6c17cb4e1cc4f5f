"""`/v1/admin`: hosts and capacity, everything that is on the platform, and the disk."""

from typing import Any

from flask import Blueprint

from gateway.blueprints.account_shapes import TIME
from gateway.blueprints.rest import ADMINISTRATOR, OPERATOR, PAGE, Answer, Asked, Reply, Rest, page, page_of
from gateway.context import services
from gateway.operations.administration import Administration
from gateway.shapes import Dictionary, Flag, Items, Number, Object, OrNull, Text, Whole, answer, optional, required
from gateway.types import Scope
from idl.codes import ServingError
from idl.messages import Capacity

blueprint = Blueprint("admin_platform", __name__)
_rest = Rest(blueprint, "administration")
_BY: dict[str, Any] = {"who": ADMINISTRATOR, "scope": Scope.ADMIN}
_OWNER = {"owner": optional(Text(1, 100), "the name of an account")}
_TEXT, _TIME = (Text(), ""), (TIME, "")
_TIME_OR_NULL = (OrNull(TIME), "")
HOST_MODEL = answer(
    "HostModel",
    {
        "name": _TEXT,
        "version": _TEXT,
        "state": _TEXT,
        "reason": _TEXT,
        "instances": (Whole(), ""),
        "in_flight": (Whole(), ""),
        "memory_bytes": (Whole(), "resident and private"),
        "cpus": (Number(0), "reserved"),
        "memory_reserved_bytes": (Whole(), ""),
    },
)
_NUMBERS = ("cpus", "cpus_reserved", "cpus_free")
_BYTES = ("memory_bytes", "memory_available_bytes", "memory_reserved_bytes", "memory_free_bytes", "disk_available_bytes")
CAPACITY = answer(
    "Capacity",
    {name: (Number(0), "") for name in _NUMBERS}
    | {name: (Whole(), "") for name in _BYTES}
    | {"execution_providers": (Items(Text()), ""), "models": (Items(HOST_MODEL, 100_000), "")},
)
HOST = answer(
    "Host", {"address": _TEXT, "reachable": (Flag(), ""), "reason": (Text(), "where it is not"), "capacity": (OrNull(CAPACITY), "")}
)
MODEL = answer(
    "PlatformModel",
    {
        "owner": _TEXT,
        "name": _TEXT,
        "type": _TEXT,
        "visibility": _TEXT,
        "versions": (Whole(), ""),
        "bytes": (Whole(), ""),
        "deployments": (Whole(), ""),
        "created_at": _TIME,
        "updated_at": _TIME,
        "deleted_at": _TIME_OR_NULL,
    },
)
DEPLOYMENT = answer(
    "PlatformDeployment",
    {
        "owner": _TEXT,
        "name": _TEXT,
        "model_owner": _TEXT,
        "model": _TEXT,
        "version": (Whole(), ""),
        "desired_state": _TEXT,
        "state": _TEXT,
        "reason": _TEXT,
        "instances": (Whole(), ""),
        "cpus": (OrNull(Number(0)), ""),
        "memory": (OrNull(Whole()), "bytes"),
        "visibility": _TEXT,
        "created_at": _TIME,
        "updated_at": _TIME,
        "last_call_at": _TIME_OR_NULL,
    },
)
TASK = answer(
    "PlatformTask",
    {
        "id": _TEXT,
        "owner": _TEXT,
        "kind": _TEXT,
        "model": _TEXT,
        "version": _TEXT,
        "state": _TEXT,
        "attempts": (Whole(), ""),
        "progress": (Number(0), ""),
        "error_code": (OrNull(Text()), ""),
        "error_message": (OrNull(Text()), ""),
        "created_at": _TIME,
        "started_at": _TIME_OR_NULL,
        "finished_at": _TIME_OR_NULL,
    },
)
TOTALS = answer(
    "Totals",
    {
        "users": (Whole(), ""),
        "teams": (Whole(), ""),
        "models": (Whole(), ""),
        "deployments": (Whole(), ""),
        "tasks": (Dictionary(Whole()), "by state"),
        "files": (Whole(), "of models, scripts, inputs, results and pictures"),
        "file_bytes": (Whole(), ""),
    },
)
CLEANED = answer("Cleaned", {"what": _TEXT, "count": (Whole(), ""), "bytes": (OrNull(Whole()), "null: not known")})


@_rest.route(
    "GET",
    "/v1/admin/hosts",
    "Every model host, what it has, and what is loaded there; for operators as well",
    {200: Answer("the hosts", Object({"items": required(Items(HOST))}, "Hosts"))},
    who=OPERATOR,
    scope=Scope.ADMIN,
)
def list_hosts(asked: Asked) -> Reply:
    owned = services()
    return Reply({"items": [_host(address, said) for address, said in owned.models.capacities(owned.settings.ready_timeout_s)]})


@_rest.route(
    "GET",
    "/v1/admin/models",
    "The models of every user",
    {200: Answer("a page", page_of("PlatformModels", MODEL))},
    query=PAGE | _OWNER | {"search": optional(Text(1, 100), "a part of the name"), "deleted": optional(Flag(), "those that were deleted")},
    **_BY,
)
def list_all_models(asked: Asked) -> Reply:
    (after,) = asked.key(int) or (0,)
    query = asked.query
    rows = services().storage.platform.models(
        query.get("owner", ""), query.get("search", ""), after, asked.limit + 1, deleted=query.get("deleted", False)
    )
    return page(rows, lambda row: (row["id"],), _without_id, asked.limit)


@_rest.route(
    "GET",
    "/v1/admin/deployments",
    "The deployments of every user",
    {200: Answer("a page", page_of("PlatformDeployments", DEPLOYMENT))},
    query=PAGE | _OWNER | {"state": optional(Text(1, 20))},
    **_BY,
)
def list_all_deployments(asked: Asked) -> Reply:
    (after,) = asked.key(int) or (0,)
    rows = services().storage.platform.deployments(asked.query.get("owner", ""), asked.query.get("state", ""), after, asked.limit + 1)
    return page(rows, lambda row: (row["id"],), _without_id, asked.limit)


@_rest.route(
    "GET",
    "/v1/admin/tasks",
    "The tasks of every user, newest first, without what goes in and comes out",
    {200: Answer("a page", page_of("PlatformTasks", TASK))},
    query=PAGE | _OWNER | {"state": optional(Text(1, 20))},
    **_BY,
)
def list_all_tasks(asked: Asked) -> Reply:
    (before,) = asked.key(str) or ("",)
    rows = services().storage.platform.tasks(asked.query.get("owner", ""), asked.query.get("state", ""), before, asked.limit + 1)
    return page(rows, lambda row: (row["id"],), dict, asked.limit)


@_rest.route("GET", "/v1/admin/storage", "How much there is of everything", {200: Answer("totals", TOTALS)}, **_BY)
def read_storage(asked: Asked) -> Reply:
    totals = services().storage.platform.totals()
    return Reply({**totals.counts, "tasks": dict(totals.tasks), "files": totals.blobs, "file_bytes": totals.blob_bytes})


@_rest.route(
    "POST",
    "/v1/admin/storage/clean",
    "Takes away files that nothing names and that are older than a day; with dry_run, says what that would be",
    {200: Answer("by kind", Object({"dry_run": required(Flag()), "items": required(Items(CLEANED))}, "CleanUp"))},
    body=Object({"dry_run": required(Flag())}, "CleanUpRequest"),
    **_BY,
)
def clean_storage(asked: Asked) -> Reply:
    owned, dry_run = services(), asked.body["dry_run"]
    cleaned = Administration(owned.storage, owned.now).clean(dry_run=dry_run, doer=asked.doer)
    return Reply({"dry_run": dry_run, "items": [{"what": each.what, "count": each.count, "bytes": each.bytes} for each in cleaned]})


def _host(address: str, said: Capacity | ServingError) -> dict[str, Any]:
    if isinstance(said, ServingError):
        return {"address": address, "reachable": False, "reason": said.message, "capacity": None}
    models = [{name: getattr(model, name) for name in HOST_MODEL.fields} for model in said.models]
    told = {name: getattr(said, name) for name in (*_NUMBERS, *_BYTES)}
    capacity = told | {"execution_providers": list(said.execution_providers), "models": models}
    return {"address": address, "reachable": True, "reason": "", "capacity": capacity}


def _without_id(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "id"}
