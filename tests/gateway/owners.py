"""The application over a real model host with a users' repository, and two people who use it."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from gateway import create_app
from gateway.context import Services
from gateway.types import Principal
from tests.gateway.conftest import PASSWORD
from tests.gateway.deployed_host import Deployed
from tests.onnx_models import times


@dataclass
class Person:
    """Somebody who is signed in; "" is nobody."""

    client: FlaskClient
    name: str
    headers: Mapping[str, str]

    def __call__(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """(status, JSON)"""
        more["headers"] = {**self.headers, **more.get("headers", {})}
        answer = self.client.open(path, method=method, **more)
        return answer.status_code, answer.get_json(silent=True)

    def upload(self, path: Path, **fields: Any) -> tuple[int, Any]:
        """`POST /v1/models` with a form."""
        return self("POST", "/v1/models", data={**fields, "model": (io.BytesIO(path.read_bytes()), path.name)})

    def form(self, method: str, path: str, **fields: Any) -> tuple[int, Any]:
        """The form API, with name and password."""
        given = {"user": self.name, "password": PASSWORD, **fields}
        return self(method, path, **({"data": given} if method == "POST" else {"query_string": given}))


@dataclass
class Place:
    deployed: Deployed
    services: Services
    ann: Person
    bob: Person
    nobody: Person

    def kept(self) -> list[str]:
        """Every file of a model, an upload or something half done that lies on the gateway's disk."""
        state = self.services.settings.state_dir
        return sorted(path.name for folder in ("blobs", "uploads", "scratch") for path in (state / folder).rglob("*") if path.is_file())


@pytest.fixture
def place(deployed: Deployed) -> Place:
    return at(deployed)


def at(deployed: Deployed) -> Place:
    client = create_app(deployed.services.settings, services=deployed.services).test_client()

    def person(name: str) -> Person:
        deployed.services.users.register(name, PASSWORD)
        token = deployed.services.tokens.sign_in(name, PASSWORD, "127.0.0.1").access_token
        return Person(client, name, {"Authorization": f"Bearer {token}"})

    return Place(deployed, deployed.services, person("ann"), person("bob"), Person(client, "", {}))


@pytest.fixture(scope="session")
def triple(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x [batch, 2] -> y, three times that."""
    return times(tmp_path_factory.mktemp("m") / "triple.onnx", 3)


@pytest.fixture(scope="session")
def fivefold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return times(tmp_path_factory.mktemp("m") / "fivefold.onnx", 5)


def principal(services: Services, name: str) -> Principal:
    user = services.storage.users.by_name(name)
    assert user is not None
    return Principal(user.id, user.name, user.role)
