"""Rows of models, versions, scripts and deployments, for tests of what stands on them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.clock import to_text
from gateway.storage import Storage
from gateway.storage.audit import Doer
from gateway.storage.deployments import DeploymentRecord
from gateway.types import Principal, Role

NOW = datetime(2026, 11, 21, tzinfo=UTC)
DOER = Doer(None, "test")


def user(storage: Storage, name: str, role: Role = Role.USER) -> Principal:
    made = storage.users.create(name, None, "x", role, NOW)
    return Principal(made.id, made.name, role)


def model(storage: Storage, owner: Principal, name: str, *files: Path, declaration: str = "") -> tuple[int, list[int]]:
    """The ids of a model and of its versions, one for each ONNX file."""
    blobs = [storage.blobs.put([file.read_bytes()], NOW) for file in files]
    with storage.database.write() as db:
        moment = to_text(NOW)
        model_id = db.execute(
            "insert into models (owner_id, name, created_at, updated_at) values (?, ?, ?, ?) returning id",
            [owner.user_id, name, moment, moment],
        ).fetchone()["id"]
        versions = [
            db.execute(
                "insert into model_versions (model_id, number, format, sha256, size, file_name, declaration, signature, facts, measured,"
                " created_by, created_at) values (?, ?, 'onnx', ?, ?, 'model.onnx', ?, '{}', '{}', '{}', ?, ?) returning id",
                [model_id, number, sha256, size, declaration, owner.user_id, moment],
            ).fetchone()["id"]
            for number, (sha256, size) in enumerate(blobs, 1)
        ]
    return model_id, versions


def deployment(storage: Storage, owner: Principal, name: str, model_id: int, version_id: int, **values: Any) -> DeploymentRecord:
    given = {"owner_id": owner.user_id, "name": name, "model_id": model_id, "version_id": version_id}
    return storage.deployments.create(given | {"desired_state": "running", "state": "starting"} | values, DOER, NOW)


def script(storage: Storage, owner: Principal, name: str, source: str, *functions: str) -> int:
    """The id of a script's version."""
    sha256, _ = storage.blobs.put([source.encode()], NOW)
    with storage.database.write() as db:
        moment = to_text(NOW)
        script_id = db.execute(
            "insert into scripts (owner_id, name, created_at, updated_at) values (?, ?, ?, ?) returning id",
            [owner.user_id, name, moment, moment],
        ).fetchone()["id"]
        made = db.execute(
            "insert into script_versions (script_id, number, sha256, functions, created_by, created_at) values (?, 1, ?, ?, ?, ?) returning id",
            [script_id, sha256, json.dumps(functions), owner.user_id, moment],
        ).fetchone()
    return int(made["id"])
