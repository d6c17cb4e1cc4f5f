"""Rows of models, versions, scripts and deployments, for tests of what stands on them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.clock import to_text
from gateway.storage import Storage
from gateway.storage.audit import Doer
from gateway.storage.deployments import DeploymentRecord
from gateway.storage.model_records import FileRecord, NewVersion
from gateway.types import Principal, Role

NOW = datetime(2026, 11, 21, tzinfo=UTC)
DOER = Doer(None, "test")
"""Nobody in particular."""


def user(storage: Storage, name: str, role: Role = Role.USER) -> Principal:
    made = storage.users.create(name, None, "x", role, NOW)
    return Principal(made.id, made.name, role)


def model(storage: Storage, owner: Principal, name: str, *files: Path, declared: str = "") -> tuple[int, list[int]]:
    """The ids of a model and of its versions, one for each ONNX file; `declared`: the `model.toml` of all."""
    versions = [_version(storage, file, declared) for file in files]
    made = storage.models.create(owner.user_id, {"name": name}, (), versions[0], doer(owner), NOW, 100)
    for version in versions[1:]:
        storage.models.add_version(made.id, version, doer(owner), NOW)
    return made.id, [version.id for version in reversed(storage.models.versions(made.id))]


def _version(storage: Storage, file: Path, declared: str) -> NewVersion:
    sha256, size = storage.blobs.put([file.read_bytes()], NOW)
    files = []
    if declared:
        files = [FileRecord("model.toml", *storage.blobs.put([declared.encode()], NOW), False)]
    facts = {"archive": False, "placed": "model.onnx", "model_file": "model.onnx", "own": 0}
    return NewVersion("onnx", sha256, size, "model.onnx", {"inputs": [], "outputs": []}, facts, {}, files)


def doer(owner: Principal) -> Doer:
    return Doer(owner.user_id, owner.name)


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
