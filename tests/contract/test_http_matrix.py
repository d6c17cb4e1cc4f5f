"""Who may do what: every route of `/v1` and `/v2` x everybody who could ask; and the form API, where everybody has what is theirs.

The tables name every route: a new one without a row fails. Letters, one for each of `WHO` (anonymous, other, viewer, editor, owner, operator,
administrator), about a thing that the owner shares with the team of viewer and editor:

    A  allowed: whatever comes of it, it is not refused because of who asks        U  401: sign in
    N  404: as if it were not there                                                F  403: it may be seen, and not this

Of the same thing where it is private, viewer and editor get what a stranger gets: that needs no table.
"""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from gateway.blueprints import openapi_forms, openapi_table, rest
from tests.contract.matrix_world import BATCH, TASK, WHO, World, made
from tests.gateway.conftest import PASSWORD

OWN = "UAAAAAA"
"""One's own account, keys, lists, new things: whoever is signed in."""
OPEN = "AAAAAAA"
SHARED = ("/v1/models/", "/v1/deployments")
"""What can be shared with a team, and then is the members' as well."""
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
MULTIPART = b'--b\r\nContent-Disposition: form-data; name="model"; filename="m.onnx"\r\n\r\nx\r\n--b--\r\n'
PYTHON = {"Content-Type": "text/x-python"}
TRIAL = {"script": "def preprocess(inputs):\n    return inputs\n", "request": {"inputs": {"x": [[1, 2]]}}}


class Row(NamedTuple):
    """`path`: with the world's names in braces, "" where it has none; `body`: JSON, or bytes; `headers`: besides who asks."""

    letters: str
    path: str = ""
    body: Any = None
    headers: dict[str, str] | None = None


ROWS: dict[str, Row] = {
    # admin
    "GET /v1/admin/hosts": Row("UFFFFAA"),
    "GET /v1/admin/models": Row("UFFFFFA"),
    "GET /v1/admin/deployments": Row("UFFFFFA"),
    "GET /v1/admin/tasks": Row("UFFFFFA"),
    "GET /v1/admin/storage": Row("UFFFFFA"),
    "POST /v1/admin/storage/clean": Row("UFFFFFA", "/v1/admin/storage/clean", {"dry_run": True}),
    "GET /v1/admin/users": Row("UFFFFFA"),
    "GET /v1/admin/users/<name>": Row("UFFFFFA", "/v1/admin/users/viewer"),
    "PATCH /v1/admin/users/<name>": Row("UFFFFFA", "/v1/admin/users/viewer", {"quota": {"models": 3}}),
    "DELETE /v1/admin/users/<name>": Row("UFFFFFA", "/v1/admin/users/viewer"),
    "POST /v1/admin/users/<name>/restore": Row("UFFFFFA", "/v1/admin/users/deleted/restore"),
    "POST /v1/admin/invitations": Row("UFFFFFA", "/v1/admin/invitations", {"role": "user"}),
    "GET /v1/admin/audit": Row("UFFFFFA"),
    "GET /v1/admin/outbox": Row("UFFFFFA"),
    # api-keys
    "POST /v1/api-keys": Row(OWN, "/v1/api-keys", {"name": "k", "scopes": ["read"]}),
    "GET /v1/api-keys": Row(OWN),
    "GET /v1/api-keys/<key_id>": Row("UNNNANN", "/v1/api-keys/{key}"),
    "DELETE /v1/api-keys/<key_id>": Row("UNNNANN", "/v1/api-keys/{key}"),
    # tasks
    "GET /v1/tasks": Row(OWN),
    "GET /v1/tasks/<task_id>": Row("UNNNANA", "/v1/tasks/a-task"),
    "GET /v1/tasks/<task_id>/result": Row("UNNNANA", "/v1/tasks/a-task/result"),
    "GET /v1/tasks/<task_id>/input": Row("UNNNANA", "/v1/tasks/a-task/input"),
    "GET /v1/tasks/<task_id>/events": Row("UNNNANA", "/v1/tasks/a-task/events"),
    "POST /v1/tasks/<task_id>/cancel": Row("UNNNANA", "/v1/tasks/a-task/cancel"),
    "POST /v1/tasks/<task_id>/retry": Row("UNNNANA", "/v1/tasks/a-task/retry"),
    "DELETE /v1/tasks/<task_id>": Row("UNNNANA", "/v1/tasks/a-task"),
    # batches
    "POST /v1/batches": Row(OWN),
    "GET /v1/batches": Row(OWN),
    "GET /v1/batches/<batch_id>": Row("UNNNANA", "/v1/batches/a-batch"),
    "GET /v1/batches/<batch_id>/result": Row("UNNNANA", "/v1/batches/a-batch/result"),
    "GET /v1/batches/<batch_id>/input": Row("UNNNANA", "/v1/batches/a-batch/input"),
    "GET /v1/batches/<batch_id>/failures": Row("UNNNANA", "/v1/batches/a-batch/failures"),
    "GET /v1/batches/<batch_id>/failures/file": Row("UNNNANA", "/v1/batches/a-batch/failures/file"),
    "GET /v1/batches/<batch_id>/summary": Row("UNNNANA", "/v1/batches/a-batch/summary"),
    "POST /v1/batches/<batch_id>/pause": Row("UNNNANA", "/v1/batches/a-batch/pause"),
    "POST /v1/batches/<batch_id>/resume": Row("UNNNANA", "/v1/batches/a-batch/resume"),
    "POST /v1/batches/<batch_id>/cancel": Row("UNNNANA", "/v1/batches/a-batch/cancel"),
    "DELETE /v1/batches/<batch_id>": Row("UNNNANA", "/v1/batches/a-batch"),
    # deployments
    "POST /v1/deployments/<name>/predictions": Row("UNAAAFA", "/v1/deployments/{deployment}/predictions", {"inputs": {"x": [[1, 2]]}}),
    "POST /v1/deployments": Row("UNFAAFA", "/v1/deployments", {"name": "new", "model": "owner.m"}),
    "GET /v1/deployments": Row(OWN),
    "GET /v1/deployments/<name>": Row("UNAAAAA", "/v1/deployments/{deployment}"),
    "PATCH /v1/deployments/<name>": Row("UNFAAFA", "/v1/deployments/{deployment}", {"instances": 2}),
    "POST /v1/deployments/<name>/promote": Row("UNFAAFA", "/v1/deployments/{deployment}/promote"),
    "POST /v1/deployments/<name>/rollback": Row("UNFAAFA", "/v1/deployments/{deployment}/rollback"),
    "DELETE /v1/deployments/<name>": Row("UNFFAFA", "/v1/deployments/{deployment}"),
    "GET /v1/deployments/<name>/stats": Row("UNAAAAA", "/v1/deployments/{deployment}/stats"),
    "GET /v1/deployments/<name>/errors": Row("UNFAAFA", "/v1/deployments/{deployment}/errors"),
    "POST /v1/deployments/<name>/script-trials": Row("UNFAAFA", "/v1/deployments/{deployment}/script-trials", TRIAL),
    # models
    "POST /v1/models": Row(OWN),
    "GET /v1/models": Row(OPEN),
    "GET /v1/models/<name>": Row("UNAAAAA", "/v1/models/{model}"),
    "PATCH /v1/models/<name>": Row("UNFAAFA", "/v1/models/{model}", {"description": "x"}),
    "DELETE /v1/models/<name>": Row("UNFFAFA", "/v1/models/{model}"),
    "POST /v1/models/<name>/restore": Row("UNFFAFA", "/v1/models/{gone}/restore"),
    "POST /v1/models/<name>/versions": Row("UNFAAFA", "/v1/models/{model}/versions", MULTIPART, FORM),
    "GET /v1/models/<name>/versions": Row("UNAAAAA", "/v1/models/{model}/versions"),
    "GET /v1/models/<name>/versions/<version>": Row("UNAAAAA", "/v1/models/{model}/versions/1"),
    "DELETE /v1/models/<name>/versions/<version>": Row("UNFAAFA", "/v1/models/{model}/versions/1"),
    "POST /v1/models/<name>/versions/<version>/restore": Row("UNFAAFA", "/v1/models/{model}/versions/3/restore"),
    "POST /v1/models/<name>/test": Row("UNFAAFA", "/v1/models/{model}/test", {"inputs": {"x": [[1, 2]]}}),
    # deployments
    "POST /v1/deployments/<name>/golden": Row("UNFAAFA", "/v1/deployments/{deployment}/golden?name=new", {"inputs": {"x": [[1, 2]]}}),
    "GET /v1/deployments/<name>/golden": Row("UNFAAFA", "/v1/deployments/{deployment}/golden"),
    "GET /v1/deployments/<name>/golden/<request_name>": Row("UNFAAFA", "/v1/deployments/{deployment}/golden/g"),
    "DELETE /v1/deployments/<name>/golden/<request_name>": Row("UNFAAFA", "/v1/deployments/{deployment}/golden/g"),
    # tokens
    "POST /v1/tokens": Row(OPEN, "/v1/tokens", {}),
    "POST /v1/tokens/refresh": Row(OPEN, "/v1/tokens/refresh", {}),
    "DELETE /v1/tokens": Row(OWN),
    # scripts
    "POST /v1/scripts": Row(OWN, "/v1/scripts?name=new", b"def preprocess(inputs):\n    return inputs\n", PYTHON),
    "POST /v1/script-checks": Row(OWN, "/v1/script-checks", b"def preprocess(inputs):\n    return inputs\n", PYTHON),
    "GET /v1/scripts": Row(OWN),
    "GET /v1/scripts/<name>": Row("UNNNANN", "/v1/scripts/s"),
    "PATCH /v1/scripts/<name>": Row("UNNNANN", "/v1/scripts/s", {"description": "x"}),
    "DELETE /v1/scripts/<name>": Row("UNNNANN", "/v1/scripts/s"),
    "POST /v1/scripts/<name>/versions": Row("UNNNANN", "/v1/scripts/s/versions", b"def preprocess(inputs):\n    return inputs\n", PYTHON),
    "GET /v1/scripts/<name>/versions": Row("UNNNANN", "/v1/scripts/s/versions"),
    "GET /v1/scripts/<name>/versions/<version>/source": Row("UNNNANN", "/v1/scripts/s/versions/1/source"),
    # teams
    "POST /v1/teams": Row(OWN, "/v1/teams", {"name": "new"}),
    "GET /v1/teams": Row(OWN),
    "GET /v1/teams/<team>": Row("UNAAANA", "/v1/teams/crew"),
    "PATCH /v1/teams/<team>": Row("UNFFANA", "/v1/teams/crew", {"name": "renamed"}),
    "DELETE /v1/teams/<team>": Row("UNFFANA", "/v1/teams/crew"),
    "GET /v1/teams/<team>/members": Row("UNAAANA", "/v1/teams/crew/members"),
    "PUT /v1/teams/<team>/members/<username>": Row("UNFFANA", "/v1/teams/crew/members/viewer", {"role": "viewer"}),
    "DELETE /v1/teams/<team>/members/<username>": Row("UNAFANA", "/v1/teams/crew/members/viewer"),
    # uploads
    "POST /v1/uploads": Row(OWN, "/v1/uploads", {"file_name": "x.onnx", "size": 3}),
    "GET /v1/uploads/<upload>": Row("UNNNANN", "/v1/uploads/{upload}"),
    "PATCH /v1/uploads/<upload>": Row(
        "UNNNANN", "/v1/uploads/{upload}", b"12345", {"Content-Type": "application/octet-stream", "Upload-Offset": "0"}
    ),
    "DELETE /v1/uploads/<upload>": Row("UNNNANN", "/v1/uploads/{upload}"),
    # users
    "POST /v1/users": Row(OPEN, "/v1/users", {"username": "new", "password": "long enough"}),
    "POST /v1/users/verify": Row(OPEN, "/v1/users/verify", {"email": "owner@example.org"}),
    # password-resets
    "POST /v1/password-resets": Row(OPEN, "/v1/password-resets", {"email": "owner@example.org"}),
    # me
    "GET /v1/me": Row(OWN),
    "PATCH /v1/me": Row("UFFFFFF", "/v1/me", {"current_password": "x", "email": None}),
    "DELETE /v1/me": Row(OWN),
    "GET /v1/me/quota": Row(OWN),
    "PUT /v1/me/avatar": Row(OWN),
    "DELETE /v1/me/avatar": Row(OWN),
    "GET /v1/me/avatar": Row(OWN),
    # users
    "GET /v1/users/<name>/avatar": Row(OWN, "/v1/users/viewer/avatar"),
    # webhooks
    "POST /v1/webhooks": Row(OWN, "/v1/webhooks", {"url": "https://h.example.org/"}),
    "GET /v1/webhooks": Row(OWN),
    "GET /v1/webhooks/<webhook_id>": Row("UNNNANN", "/v1/webhooks/{webhook}"),
    "PATCH /v1/webhooks/<webhook_id>": Row("UNNNANN", "/v1/webhooks/{webhook}", {"enabled": False}),
    "POST /v1/webhooks/<webhook_id>/secret": Row("UNNNANN", "/v1/webhooks/{webhook}/secret"),
    "DELETE /v1/webhooks/<webhook_id>": Row("UNNNANN", "/v1/webhooks/{webhook}"),
    "GET /v1/webhooks/<webhook_id>/deliveries": Row("UNNNANN", "/v1/webhooks/{webhook}/deliveries"),
    "POST /v1/webhooks/<webhook_id>/deliveries/<delivery_id>/retry": Row("UNNNANN", "/v1/webhooks/{webhook}/deliveries/a-delivery/retry"),
}


BY_OPERATORS = "UFFFFAA"
"""What is done to the model host itself."""
TENSORS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
REGION = {"key": "/k", "byte_size": 1}
OF_A_MODEL = {
    "GET": {"": "UNAAAFA", "/config": "UNAAAFA", "/stats": "UNAAAFA", "/ready": OPEN},
    "POST": {"/infer": "UNAAAFA", "/generate": "UNAAAFA", "/generate_stream": "UNAAAFA"},
}
"""Of a deployment, which is called `owner.d` there. Operators see that it is there, and start and pause it. `ready` asks the
host first: without one it says the same to everybody; with one, tests/gateway/test_deployments.py."""
OTHERS: dict[str, Row] = {
    "GET /v1/errors": Row(OPEN),
    "GET /livez": Row(OPEN),
    "GET /readyz": Row(OPEN),
    "GET /metrics": Row(OPEN),
    "GET /openapi.json": Row(OPEN),
    "GET /docs": Row(OPEN),
    "GET /v1/oidc/login": Row("NNNNNNN"),
    "GET /v1/oidc/callback": Row("NNNNNNN"),
    "POST /v1/models/<model>/predictions": Row("UNNNNFN", "/v1/models/owner.d/predictions", {"inputs": {"x": [[1, 2]]}}),
    "GET /v2": Row(OPEN),
    "GET /v2/health/live": Row(OPEN),
    "GET /v2/health/ready": Row(OPEN),
    "GET /v2/models/stats": Row(OPEN),
    "POST /v2/repository/index": Row(OPEN),
    **{
        f"{method} /v2/models/<model>{version}{verb}": Row(
            letters, f"/v2/models/owner.d{version.replace('<version>', '2')}{verb}", TENSORS if method == "POST" else None
        )
        for version in ("", "/versions/<version>")
        for method, verbs in OF_A_MODEL.items()
        for verb, letters in verbs.items()
    },
    "POST /v2/repository/models/<model>/load": Row(BY_OPERATORS, "/v2/repository/models/m/load", {}),
    "POST /v2/repository/models/<model>/unload": Row(BY_OPERATORS, "/v2/repository/models/m/unload", {}),
    "GET /v2/systemsharedmemory/status": Row(BY_OPERATORS),
    "GET /v2/systemsharedmemory/region/<region>/status": Row(BY_OPERATORS, "/v2/systemsharedmemory/region/r/status"),
    "POST /v2/systemsharedmemory/region/<region>/register": Row(BY_OPERATORS, "/v2/systemsharedmemory/region/r/register", REGION),
    "POST /v2/systemsharedmemory/unregister": Row(BY_OPERATORS),
    "POST /v2/systemsharedmemory/region/<region>/unregister": Row(BY_OPERATORS, "/v2/systemsharedmemory/region/r/unregister"),
    "GET /v2/cudasharedmemory/status": Row(OPEN),
    "GET /v2/cudasharedmemory/region/<region>/status": Row(OPEN, "/v2/cudasharedmemory/region/r/status"),
    "POST /v2/cudasharedmemory/region/<region>/register": Row(OPEN, "/v2/cudasharedmemory/region/r/register", REGION),
    "POST /v2/cudasharedmemory/unregister": Row(OPEN),
    "POST /v2/cudasharedmemory/region/<region>/unregister": Row(OPEN, "/v2/cudasharedmemory/region/r/unregister"),
    **{
        f"{method} /v2{where}/trace/setting": Row(BY_OPERATORS, f"/v2{where.replace('<model>', 'm')}/trace/setting", body)
        for where in ("", "/models/<model>")
        for method, body in (("GET", None), ("POST", {}))
    },
    "GET /v2/logging": Row(BY_OPERATORS),
    "POST /v2/logging": Row(BY_OPERATORS, "/v2/logging", {}),
}
"""Routes that do not describe themselves; without a model host behind them, so that what is allowed is mostly 503."""
LISTS = ("api-keys", "tasks", "batches", "deployments", "models", "scripts", "teams", "webhooks")
NO_PASSWORD = {"/login", "/register"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with made(tmp_path_factory.mktemp("shared"), "team") as world:
        yield world


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with made(tmp_path_factory.mktemp("private"), "private") as world:
        yield world


def test_every_described_route_has_a_row() -> None:
    described = {f"{operation.method} {operation.path}" for operation in rest.OPERATIONS}
    assert described - ROWS.keys() == set(), "new routes: say in ROWS who may do what with them"
    assert ROWS.keys() - described == set(), "rows of routes that are not there any more"


def test_every_other_route_has_a_row() -> None:
    told = {f"{operation.method} {operation.path}" for operation in openapi_table.TABLE}
    assert told - OTHERS.keys() == set(), "new routes: say in OTHERS who may do what with them"
    assert OTHERS.keys() - told == set(), "rows of routes that are not there any more"


def outcome(world: World, route: str, who: str) -> str:
    """A letter; the world is as before."""
    row = (ROWS | OTHERS)[route]
    method, template = route.split(" ")
    answer = world.ask(who, method, (row.path or template).format(**world.names), row.body, row.headers or {})
    assert answer.status_code != 500, (route, who, answer.get_json(silent=True))
    if method != "GET" and answer.status_code < 300:
        world.rewind()
    return {401: "U", 403: "F", 404: "N"}.get(answer.status_code, "A")


@pytest.mark.parametrize("route", ROWS)
def test_who_may_do_what(shared: World, route: str) -> None:
    found = {who: outcome(shared, route, who) for who in WHO}
    assert found == dict(zip(WHO, ROWS[route].letters, strict=True))


@pytest.mark.parametrize("route", [route for route in ROWS if route.split(" ")[1].startswith(SHARED)])
def test_what_is_private_is_not_there_for_anybody_else(private: World, route: str) -> None:
    letters = dict(zip(WHO, ROWS[route].letters, strict=True))
    expected = letters | {"viewer": letters["other"], "editor": letters["other"]}
    assert {who: outcome(private, route, who) for who in WHO} == expected


@pytest.mark.parametrize("route", OTHERS)
def test_who_may_do_what_beside_the_described_routes(shared: World, route: str) -> None:
    found = {who: outcome(shared, route, who) for who in WHO}
    assert found == dict(zip(WHO, OTHERS[route].letters, strict=True))


@pytest.mark.parametrize("route", [route for route in OTHERS if "<model>" in route and "UNA" in OTHERS[route].letters])
def test_what_is_private_is_not_there_by_another_name(private: World, route: str) -> None:
    letters = dict(zip(WHO, OTHERS[route].letters, strict=True))
    assert {who: outcome(private, route, who) for who in WHO} == letters | {"viewer": letters["other"], "editor": letters["other"]}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_hold_nothing_of_anybody_elses(shared: World, private: World, kind: str) -> None:
    def items(world: World, who: str, query: str = "") -> list[Any]:
        answer = world.ask(who, "GET", f"/v1/{kind}{query}", None, {})
        assert answer.status_code == 200, answer.get_json()
        return list(answer.get_json()["items"])

    assert items(shared, "owner") and items(private, "owner"), "there is something to be seen"
    queries = ("", "?shared=true") if kind == "deployments" else ("", "?deleted=true") if kind == "models" else ("",)
    for query in queries:
        assert items(shared, "other", query) == [] and items(private, "other", query) == []
        if kind != "teams":
            assert items(private, "viewer", query) == [] and items(private, "editor", query) == []


def test_by_the_form_api_everybody_has_what_is_theirs(private: World, shared: World) -> None:
    """There is no name for what is somebody else's: whoever asks, with their own password."""
    asked = 0
    for world in (private, shared):
        for who in WHO[1:]:
            if who == "owner":
                continue
            for path, methods in openapi_forms.paths().items():
                if path in NO_PASSWORD:
                    continue
                answer = _by_form(world, path, next(iter(methods)).upper(), who)
                if path in ("/getusermodel", "/gettasks"):
                    assert answer["status"] == "success" and not answer.get("model") and not answer.get("task"), (path, who, answer)
                elif path == "/getmodellist":
                    seen = (world is shared and who in ("viewer", "editor")) or who in ("operator", "administrator")
                    assert ("owner" in str(answer)) is seen, (path, who, answer)
                elif path == "/uploadmodel":
                    assert answer["status"] == "unavailable", (path, who, answer)  # a name that the owner has is free for others
                elif who == "administrator" and path in ("/gettaskstatus", "/gettaskresult"):
                    assert answer["status"] in ("success", "task failed"), (path, who, answer)  # as over /v1
                else:
                    assert answer["status"] in ("model not found", "deployment not found", "task not found"), (path, who, answer)
                asked += 1
            if who != "administrator":
                assert _by_form(world, "/gettaskresult", "GET", who, taskid=BATCH)["status"] == "task not found"
    assert asked == 200, "20 paths as five people in two worlds"


def _by_form(world: World, path: str, method: str, who: str, **more: Any) -> Any:
    given = {"user": who, "password": PASSWORD, "modelname": "m", "deployment": "d", "taskid": TASK, "input": '{"x": [[1, 2]]}'}
    given |= {"filetype": "none", "modeltype": "t", "description": "", "newname": "mine"} | more
    world.passwords()
    if method == "POST":
        files = {"script": (io.BytesIO(b"def preprocess(inputs):\n    return inputs\n"), "s.py")} if path == "/uploadscript" else {}
        files |= {"model": (io.BytesIO(b"x"), "m.onnx")} if path == "/uploadmodel" else {}
        answer = world.client.post(path, data=given | files)
    else:
        answer = world.client.open(path, method=method, query_string=given)
    return answer.get_json()
