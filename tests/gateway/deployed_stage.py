"""Two people, a model with three versions, and a gateway with its worker over a real model host: the stage of tests of deployments."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from gateway import create_app
from gateway.types import Principal, Role
from gateway.worker import deploying
from gateway.worker.process import Worker
from tests.gateway.conftest import PASSWORD
from tests.gateway.deployed_host import Deployed, deployed, users_host, within  # noqa: F401
from tests.gateway.deployed_rows import model
from tests.onnx_models import times


@dataclass
class Person:
    """A client with somebody's token."""

    http: FlaskClient
    headers: dict[str, str]
    principal: Principal

    def __call__(self, method: str, path: str, body: Any = None, **named: Any) -> TestResponse:
        headers = {**self.headers, **named.pop("headers", {})}
        return self.http.open(path, method=method, json=body, headers=headers, **named)

    def made(self, path: str, body: Any, status: int = 201) -> Any:
        answer = self("POST", path, body)
        assert answer.status_code == status, answer.get_data(as_text=True)
        return answer.get_json()


@dataclass
class Stage:
    over: Deployed
    ann: Person
    bob: Person
    nobody: Person
    files: list[Path]

    def until(self, name: str, state: str = "running", who: Person | None = None) -> Any:
        """The deployment once it has that state and all is carried out."""

        def seen() -> Any:
            found = (who or self.ann)("GET", f"/v1/deployments/{name}").get_json()
            return found if found.get("state") == state and found["settled"] else None

        return within(20, seen)

    def deploy(self, name: str = "d", **more: Any) -> Any:
        self.ann.made("/v1/deployments", {"name": name, "model": "m", "version": 1, **more})
        return self.until(name)


@pytest.fixture(params=["hot", "Flask"])
def stage(request: pytest.FixtureRequest, deployed: Deployed, tmp_path: Path) -> Iterator[Stage]:  # noqa: F811
    yield from staged(deployed, tmp_path, hot=request.param == "hot")


@pytest.fixture
def plain(deployed: Deployed, tmp_path: Path) -> Iterator[Stage]:  # noqa: F811
    yield from staged(deployed, tmp_path, hot=True)


def staged(over: Deployed, tmp_path: Path, *, hot: bool) -> Iterator[Stage]:
    services = over.services
    http = create_app(services.settings, services=services, hot=hot).test_client()
    people = [person(over, http, name) for name in ("ann", "bob")]
    files = [times(tmp_path / f"{factor}.onnx", factor) for factor in (2, 2.0001, 5)]
    model(over.storage, people[0].principal, "m", *files)
    services.settings.run_dir.mkdir(parents=True, exist_ok=True)
    worker = Worker(services, 1, deploying.parts)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield Stage(over, *people, Person(http, {}, people[1].principal), files)
    finally:
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()


def person(over: Deployed, http: FlaskClient, name: str) -> Person:
    made = over.services.users.register(name, PASSWORD)
    issued = over.services.tokens.sign_in(name, PASSWORD, "127.0.0.1")
    return Person(http, {"Authorization": f"Bearer {issued.access_token}"}, Principal(made.id, made.name, Role.USER))


def predict(who: Person, name: str = "d", value: float = 2, **more: Any) -> Any:
    answer = who("POST", f"/v1/deployments/{name}/predictions", {"inputs": {"x": [[value, 0]]}, **more})
    return answer.get_json() if answer.status_code == 200 else (answer.status_code, answer.get_json()["code"])


def infer(who: Person, name: str = "ann.d") -> Any:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [2, 0]}]}
    answer = who("POST", f"/v2/models/{name}/infer", body)
    return answer.get_json()["outputs"][0]["data"][0] if answer.status_code == 200 else (answer.status_code, answer.get_json()["error"])
