"""The OpenAPI document against the application: requests made from it, right and wrong ones, through nginx and uWSGI with a model host and a
task worker behind. No answer is a 500, and each has a status, a content type and a shape that the document has.

CI sends a few for each operation, always the same; `--openapi-examples 60` sends so many.
"""

import json
import random
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from tests.eventually import eventually
from tests.needs import needs
from tests.onnx_models import identity, times
from tests.processes import descendants, start_up, wait_until_gone

pytestmark = needs("nginx")
PASSWORD = "correct horse battery"
ANN, BOB, ADMIN = "ann", "bob", "admin"
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
FIXED = settings(
    database=None,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
CALLERS = (ANN, ANN, ADMIN, ADMIN, "")
"""Of whom one sends a request; "": nobody."""
_INPUTS = {"inputs": {"x": [[1, 2]]}}
_TENSORS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
_WAYS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
GOOD: dict[str, Any] = {
    "/v1/deployments/{name}/predictions": _INPUTS,
    "/v1/deployments/{name}/golden": _INPUTS,
    "/v1/models/{name}/test": _INPUTS,
    "/v1/models/{model}/predictions": _INPUTS,
    **{f"{way}/infer": _TENSORS for way in _WAYS},
    **{f"{way}/{verb}": {"x": [[1, 2]]} for way in _WAYS for verb in ("generate", "generate_stream")},
    "/v1/deployments": {"name": "e", "model": "m", "desired_state": "paused"},
    "/v1/batches": {"deployment": "d", "upload": "none"},
}
"""Bodies that lead further than what is made at random."""
FORMS: dict[str, dict[str, Any]] = {
    "/v1/models": {"name": "n", "model": b""},
    "/v1/models/{name}/versions": {"model": b""},
    "/v1/batches": {"deployment": "d", "file": b'{"x": [1, 2]}\n', "format": "jsonl"},
    "/uploadmodel": {"modelname": "n", "modeltype": "", "description": "", "model": b""},
    **{path: {"input": '{"x": [[1, 2]]}', "filetype": "none"} for path in ("/predict", "/submit", "/testmodel")},
}
"""The same of forms; a model without bytes gets some."""
BEST = 1
"""The luck of the first request of each operation: about something that is there, with a good body."""
LAST = ("/v1/me", "/v1/tokens")
"""Their DELETE ends what the other requests are sent with."""


@dataclass
class Everything:
    """A running stack, who calls it, and what there is in it, by the name that it has in a path."""

    url: str
    database: Path
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    known: dict[str, list[str]] = field(default_factory=dict)
    model: bytes = b""

    def ask(self, method: str, path: str, who: str = ANN, **more: Any) -> Any:
        answer = requests.request(method, self.url + path, headers=self.headers.get(who, {}), timeout=120, **more)
        assert answer.ok, (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def sign_in(self, name: str) -> None:
        tokens = self.ask("POST", "/v1/tokens", "", json={"username": name, "password": PASSWORD})
        self.headers[name] = {"Authorization": f"Bearer {tokens['access_token']}"}

    def forget_attempts(self) -> None:
        """Rates are tested elsewhere; here they would keep most requests from being looked at."""
        with sqlite3.connect(self.database, timeout=30) as database:
            database.execute("delete from attempts")
        database.close()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everything]:
    folder = tmp_path_factory.mktemp("openapi")
    models = folder / "models"
    times(models / "triple" / "1" / "model.onnx", 3)
    times(models / "spare" / "1" / "model.onnx", 3)
    identity(models / "text" / "1" / "model.onnx", 8)
    up = start_up(
        folder / "data",
        "--no-demo",
        "--models",
        str(models),
        OUTBOARD_ADMIN_PASSWORD=PASSWORD,
        OUTBOARD_GATEWAY_WEBHOOK_ADDRESSES="any",
        OUTBOARD_GATEWAY_WEBHOOK_ATTEMPTS="1",
    )
    (database,) = (path for path in (folder / "data").rglob("*") if path.suffix in (".db", ".sqlite", ".sqlite3"))
    made = Everything(up["http"], database)
    try:
        made.model = times(folder / "model.onnx", 2).read_bytes()
        _fill(made, made.model)
        yield made
    finally:
        below = descendants(up.process.pid)
        code = up.stop()
    assert code == 0, up.log.read_text()
    assert not wait_until_gone(below), "processes left over"


def _fill(made: Everything, model: bytes) -> None:
    """One of everything, ann's; bob is whom administrators change."""
    for name in (ANN, BOB):
        made.ask("POST", "/v1/users", "", json={"username": name, "password": PASSWORD})
    made.sign_in(ANN)
    made.sign_in(ADMIN)
    made.ask("POST", "/v1/models", data={"name": "m", "description": "doubles"}, files={"model": ("m.onnx", model)})
    made.ask("POST", "/v1/models/m/versions", files={"model": ("m.onnx", times_anew(model))})
    made.ask("POST", "/v1/deployments", json={"name": "d", "model": "m"})

    def running() -> bool:
        return bool(made.ask("GET", "/v1/deployments/d")["state"] == "running")

    eventually(running, "the deployment runs", 60, 0.05)
    made.ask("POST", "/v1/deployments/d/golden", params={"name": "g"}, json={"inputs": {"x": [[1, 2]]}})
    task = made.ask("POST", "/v1/deployments/d/predictions", json={"inputs": {"x": [[1, 2]]}})
    assert task["outputs"]
    tasks = []
    for _ in range(3):
        prefer = {**made.headers[ANN], "Prefer": "respond-async"}
        answer = requests.post(f"{made.url}/v1/deployments/d/predictions", json={"inputs": {"x": [[1, 2]]}}, headers=prefer, timeout=60)
        assert answer.status_code == 202, answer.text
        tasks.append(answer.json()["id"])
    for task_id in tasks:
        assert made.ask("GET", f"/v1/tasks/{task_id}", params={"wait": 30})["state"] == "succeeded"
    batch = made.ask("POST", "/v1/batches", data={"deployment": "d"}, files={"file": ("rows.jsonl", b'{"x": [1, 2]}\n' * 3)})["id"]
    assert made.ask("GET", f"/v1/batches/{batch}", params={"wait": 30})["finished_at"]
    hook = made.ask("POST", "/v1/webhooks", json={"url": "http://127.0.0.1:1/hook"})["id"]
    key = made.ask("POST", "/v1/api-keys", json={"name": "k", "scopes": ["read"]})
    made.ask("POST", "/v1/teams", json={"name": "t"})
    upload = made.ask("POST", "/v1/uploads", json={"file_name": "a.onnx", "size": 10})["id"]
    made.known = {
        "name": ["m", "d"],
        "model": ["text", "triple", "ann.d"],
        "version": ["2", "1"],
        "request_name": ["g"],
        "team": ["t"],
        "username": [BOB],
        "task_id": tasks,
        "batch_id": [batch],
        "webhook_id": [hook],
        "key_id": [key["id"]],
        "upload": [upload],
        "region": ["r"],
        "delivery_id": ["x"],
    }


def times_anew(model: bytes) -> bytes:
    """Another file of the same model: a version of its own."""
    import onnx

    loaded = onnx.load_from_string(model)
    loaded.doc_string = "another"
    return bytes(loaded.SerializeToString())


@dataclass
class Found:
    """What was sent, and what was wrong with the answers."""

    sent: int = 0
    statuses: dict[str, dict[int, int]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def test_requests_made_from_the_document(everything: Everything, pytestconfig: pytest.Config) -> None:
    count = int(pytestconfig.getoption("--openapi-examples"))
    document = everything.ask("GET", "/openapi.json")
    schema = schemathesis.openapi.from_dict(document)
    operations = sorted((result.ok() for result in schema.get_all_operations()), key=_order)
    found = Found()
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            everything.forget_attempts()
            _send(everything, operation, mode, max(1, count // 2), found)
    wrong = "\n".join(f"{what}\n    {reason}" for what, reason in sorted(found.failures.items()))
    print(f"{found.sent} requests over {len(operations)} operations, {len(found.failures)} findings; answers by status:")
    for name, statuses in found.statuses.items():
        print(f"{name:75} {dict(sorted(statuses.items()))}")
    assert not found.failures, f"{found.sent} requests, {len(found.failures)} findings:\n{wrong}"
    succeeded = [name for name, statuses in found.statuses.items() if any(status < 300 for status in statuses)]
    assert len(succeeded) > len(operations) / 2, "most requests got no further than the door"


def _order(operation: Any) -> tuple[int, str, str]:
    method, path = operation.method.upper(), operation.path
    rank = {"GET": 0, "POST": 1, "PUT": 1, "PATCH": 2, "DELETE": 3}[method]
    if path.endswith(("predictions", "/test", "infer", "generate", "generate_stream", "/predict", "/submit", "/testmodel")):
        rank = 0
    return (4 if rank == 3 and path in LAST else rank, path, method)


def _send(everything: Everything, operation: Any, mode: GenerationMode, count: int, found: Found) -> None:
    """`count` requests."""
    try:
        strategy = operation.as_strategy(generation_mode=mode)
    except Exception as error:  # noqa: BLE001 - nothing of an operation without parameters can be wrong
        if mode is GenerationMode.POSITIVE:
            found.failures[operation.label] = f"no requests can be made of it: {error}"
        return

    @settings(FIXED, max_examples=count)
    @given(case=strategy)
    def send(case: Case) -> None:
        chance = random.Random(found.sent)
        first = mode is GenerationMode.POSITIVE and not found.statuses.get(operation.label)
        _meet(everything, case, BEST if first else chance.randrange(1000))
        _judge(everything, case, _entitled(operation.path) if first else chance.choice(CALLERS), found)

    try:
        send()
    except Exception as error:  # noqa: BLE001
        if mode is GenerationMode.POSITIVE or "Unsatisfiable" not in type(error).__name__:
            found.failures[f"{operation.label} ({mode.value})"] = f"{type(error).__name__}: {str(error)[:500]}"


def _entitled(path: str) -> str:
    return ADMIN if path.startswith(("/v1/admin", "/v2/repository")) else ANN


def _meet(everything: Everything, case: Case, luck: int) -> None:
    """Three of four requests are about something that is there; addresses that a webhook is to call stay on this machine."""
    path = case.operation.path
    if luck % 4:
        for name in case.path_parameters or {}:
            known = everything.known[name]
            if path.startswith("/v1/admin/users") or "avatar" in path:
                known = [BOB]
            elif name == "name":
                known = ["d", "ann.d"] if "deployments" in path else ["m", "ann.m"]
            elif name == "model" and path.startswith("/v2/repository"):
                known = ["spare"]
            case.path_parameters[name] = known[luck % len(known)]
    signs = {"user": ANN, "password": PASSWORD}
    if "form API" in (case.operation.definition.raw.get("tags") or ()) and luck % 8:
        known_fields = signs | ({"modelname": "m", "deployment": "d", "taskid": everything.known["task_id"][0]} if luck % 3 else {})
        if path in ("/register",):
            known_fields = {}
        for given_fields in (case.query, case.body):
            if isinstance(given_fields, dict):
                given_fields.update({name: value for name, value in known_fields.items() if name in given_fields})
    if luck % 3 == 1 and path in GOOD and case.media_type == "application/json":
        case.body = json.loads(json.dumps(GOOD[path]))
    if luck % 3 == 1 and path in FORMS and case.media_type == "multipart/form-data" and isinstance(case.body, dict):
        case.body |= {name: value or (everything.model if name == "model" else value) for name, value in FORMS[path].items()}
    if isinstance(case.body, dict) and isinstance(case.body.get("url"), str) and "://" in case.body["url"]:
        case.body["url"] = "http://127.0.0.1:1/hook"


def _judge(everything: Everything, case: Case, who: str, found: Found) -> None:
    started = time.monotonic()
    try:
        answer = case.call(base_url=everything.url, headers=everything.headers.get(who, {}), timeout=60)
    except requests.exceptions.InvalidHeader:
        return
    label = case.operation.label
    found.sent += 1
    of = found.statuses.setdefault(label, {})
    of[answer.status_code] = of.get(answer.status_code, 0) + 1
    problems = []
    if answer.status_code == 500:
        problems.append("500")
    if time.monotonic() - started > 40:
        problems.append("took over 40 seconds")
    try:
        case.validate_response(answer, checks=CHECKS)
    except Exception as error:  # noqa: BLE001 - told below
        problems.append(str(getattr(error, "exceptions", (error,))[0])[:600])
    for problem in problems:
        key = f"{label} {answer.status_code} {problem[:60]!r}"
        body = str(case.body)[:300]
        found.failures.setdefault(
            key,
            f"{problem}\n    as {who or 'nobody'}: {case.method} {case.formatted_path} query={case.query} headers={dict(case.headers or {})} "
            f"body={body}\n    answer: {answer.headers.get('content-type')} {answer.text[:400]}",
        )
