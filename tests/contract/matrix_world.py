"""People, and one thing of each kind that one of them owns and shares with a team; for the matrix of who may do what."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from gateway import build_services, create_app
from gateway.clock import to_text
from gateway.context import Services
from gateway.operations import passwords
from gateway.settings import Settings
from gateway.types import Principal, Role, Scope
from tests.gateway import accounts, deployed_rows
from tests.gateway.conftest import CLOSED, PASSWORD, SetClock, unreachable_models
from tests.onnx_models import times

WHO = ("anonymous", "other", "viewer", "editor", "owner", "operator", "administrator")
"""Columns of the table: nobody; somebody; members of the owner's team; who owns the thing; the two roles above users."""
TASK, BATCH, DELIVERY, GOLDEN = "a-task", "a-batch", "a-delivery", "g"


@dataclass
class World:
    """A gateway without a model host: what would go there is allowed, and then `unavailable`."""

    folder: Path
    headers: dict[str, dict[str, str]]
    names: dict[str, str]
    clock: SetClock
    services: Services
    client: FlaskClient
    _hash: str = ""

    def ask(self, who: str, method: str, path: str, body: Any, more: dict[str, str]) -> TestResponse:
        """`body`: JSON, or bytes with their content type in `more`."""
        sent: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
        return self.client.open(path, method=method, headers=self.headers[who] | more, **sent)

    def passwords(self) -> None:
        """Everybody has the same one, for the form API: made once, for it costs."""
        if not self._hash:
            self._hash = passwords.hash_password(PASSWORD)
        with self.services.storage.database.write() as db:
            changed = db.execute("update users set password_hash = ? where password_hash <> ? returning id", [self._hash] * 2).fetchall()
        if changed:
            self.services.storage.principals.change()

    def rewind(self) -> None:
        """As it was made."""
        state = self.services.settings.state_dir
        made_as = sqlite3.connect(self.folder / "kept" / "gateway" / "outboard.db")
        with closing(made_as) as kept, closing(sqlite3.connect(state / "outboard.db", timeout=10)) as db:
            kept.backup(db)
        shutil.copytree(self.folder / "kept" / "gateway" / "uploads", state / "uploads", dirs_exist_ok=True)
        self.services.storage.principals.change()
        self.services.storage.sharing.change()

    def _open(self, settings: Settings) -> None:
        self.services = build_services(settings, unreachable_models(settings), now=self.clock)
        self.client = create_app(settings, services=self.services).test_client()


@contextmanager
def made(folder: Path, visibility: str) -> Iterator[World]:
    """`visibility` of what the owner has: `team`, or `private`, and then the team is of no use to its members."""
    settings = Settings(
        data_dir=folder / "data",
        model_hosts=(CLOSED,),
        ready_timeout_s=0.5,
        request_timeout_s=1.0,
        webhook_addresses="any",
        code_requests=1000,
    )
    clock = SetClock()
    services = build_services(settings, unreachable_models(settings), now=clock)
    client = create_app(settings, services=services).test_client()
    roles = {"operator": Role.OPERATOR, "administrator": Role.ADMINISTRATOR}
    headers: dict[str, dict[str, str]] = {"anonymous": {}}
    for who in WHO[1:]:
        headers[who] = accounts.person(services, who, roles.get(who, Role.USER), f"{who}@example.org")
    accounts.person(services, "deleted")
    deleted = services.storage.users.by_name("deleted")
    assert deleted is not None
    services.storage.users.delete(deleted.id, clock())
    world = World(folder, headers, {}, clock, services, client)
    _fill(world, visibility)
    services.close()
    shutil.copytree(settings.data_dir, folder / "kept", symlinks=True)
    world._open(settings)
    yield world
    world.services.close()


def _fill(world: World, visibility: str) -> None:
    """What the owner has, made by requests where that is quick, and else as the requests would leave it."""
    person = _principal(world.services, "owner")
    _post(world, "/v1/teams", {"name": "crew"})
    for who in ("viewer", "editor"):
        path = f"/v1/teams/crew/members/{who}"
        assert world.client.put(path, json={"role": who}, headers=world.headers["owner"]).status_code == 201
    gone_id = _fill_models(world, person)
    empty, _ = world.services.storage.blobs.put([b"{}"], world.services.now())
    with world.services.storage.database.write() as db:
        team = db.execute("select id from teams where name = 'crew'").fetchone()["id"]
        for table in ("models", "deployments"):
            db.execute(f"update {table} set visibility = ?, team_id = ?", [visibility, None if visibility == "private" else team])
        db.execute("update models set deleted_at = ? where id = ?", [to_text(world.services.now()), gone_id])
        db.execute("update users set avatar_sha256 = ?", [empty])
    hook = _post(world, "/v1/webhooks", {"url": "https://hooks.example.org/"})["id"]
    _fill_tables(world, person, empty, hook)
    key = _post(world, "/v1/api-keys", {"name": "k", "scopes": [Scope.READ.value]})["id"]
    upload = _post(world, "/v1/uploads", {"file_name": "m.onnx", "size": 10})
    world.names |= {
        "model": "owner.m",
        "gone": "owner.gone",
        "deployment": "owner.d",
        "webhook": hook,
        "key": key,
        "upload": str(upload.get("id") or upload.get("upload")),
    }


def _post(world: World, path: str, body: Any) -> Any:
    """As the owner; what was made."""
    answer = world.client.post(path, json=body, headers=world.headers["owner"])
    assert answer.status_code == 201, (path, answer.get_json())
    return answer.get_json()


def _fill_models(world: World, person: Principal) -> int:
    """A model with two versions and one that is deleted, its deployment, a script, and a model that is deleted afterwards: the number of that one."""
    storage, path = world.services.storage, times(world.folder / "model.onnx", 3)
    others = (times(world.folder / f"{factor}.onnx", factor) for factor in (5, 7))
    model_id, (first, second, _) = deployed_rows.model(storage, person, "m", path, *others)
    storage.models.delete_version(model_id, 3, deployed_rows.doer(person), world.services.now())
    gone_id, _ = deployed_rows.model(storage, person, "gone", path)
    deployed_rows.deployment(
        storage,
        person,
        "d",
        model_id,
        second,
        state="running",
        previous_version_id=first,
        canary_version_id=first,
        canary_percent=5,
    )
    deployed_rows.script(storage, person, "s", "def preprocess(inputs):\n    return inputs\n", "preprocess")
    return gone_id


def _fill_tables(world: World, person: Principal, empty: str, hook: str) -> None:
    """What only a worker and a model host would write: tasks that have ended, a notice of one, a golden request, what a trial measured.

    `empty`: the SHA-256 of a blob.
    """
    at = to_text(world.services.now())
    with world.services.storage.database.write() as db:
        for number, kind in ((TASK, "prediction"), (BATCH, "batch")):
            _insert(db, "tasks", id=number, user_id=person.user_id, model="m", kind=kind, state="failed", turn=0, created_at=at)
        _insert(db, "batches", task_id=BATCH, format="csv")
        measured = {"memory_bytes": 1 << 20, "load_ms": 1.0, "proposed": {"cpus": 1.0, "memory": 1 << 26}, "latency": []}
        known = {"algorithm": "", "platform": "onnx", "producer": "", "opset": 17, "parameter_count": 1, "size_bytes": 99, "warnings": []}
        facts = known | {"archive": False, "placed": "model.onnx", "model_file": "model.onnx", "own": 0}
        db.execute("update model_versions set measured = ?, facts = ?", [json.dumps(measured), json.dumps(facts)])
        deployment_id = db.execute("select id from deployments").fetchone()["id"]
        pinned = {"request_sha256": empty, "answer_sha256": empty, "content_type": "application/json", "created_by": person.user_id}
        _insert(db, "golden", deployment_id=deployment_id, name=GOLDEN, created_at=at, **pinned)
        values = {"payload": json.dumps({}), "state": "failed", "next_at": 0, "created_at": at}
        _insert(db, "deliveries", id=DELIVERY, webhook_id=hook, task_id=TASK, event="task.failed", **values)


def _insert(db: Any, table: str, **values: Any) -> None:
    """With what the table needs besides, in its own type."""
    columns = {row["name"]: row for row in db.execute(f"pragma table_info({table})").fetchall()}
    for name, column in columns.items():
        if name not in values and column["notnull"] and column["dflt_value"] is None:
            values[name] = "t" if column["type"].lower() == "text" else 0
    names = ", ".join(values)
    db.execute(f"insert into {table} ({names}) values ({', '.join('?' * len(values))})", list(values.values()))


def _principal(services: Services, name: str) -> Principal:
    user = services.storage.users.by_name(name)
    assert user is not None
    return Principal(user.id, user.name, user.role)
