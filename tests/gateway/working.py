"""A gateway's application over a real model host, with a task worker in the same process, and people who use it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from gateway import build_services, create_app
from gateway.context import Services
from gateway.models_rpc import Models
from gateway.settings import Settings
from gateway.worker.process import Worker
from inference_client import Client
from tests.eventually import eventually
from tests.gateway.accounts import Headers, person
from tests.processes import Process

TERMINAL = ("succeeded", "failed", "cancelled", "expired")


@dataclass
class Working:
    """`ann` and `bob` are signed in."""

    app: Flask
    services: Services
    ann: Headers
    bob: Headers

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    @contextmanager
    def worker(self) -> Iterator[None]:
        """A worker runs inside of it."""
        self.services.settings.run_dir.mkdir(parents=True, exist_ok=True)
        made = Worker(self.services)
        thread = threading.Thread(target=made.run)
        thread.start()
        try:
            yield
        finally:
            made.stop()
            thread.join(30)
            assert not thread.is_alive()

    def submit(self, who: Headers, value: float = 1.0, model: str = "triple", prefer: str = "respond-async") -> Any:
        """An asynchronous prediction; the answer."""
        body = {"inputs": {"x": [value] if model == "slow" else [[value, value]]}}
        return self.client.post(f"/v1/models/{model}/predictions", json=body, headers={**who, "Prefer": prefer})

    def task(self, who: Headers, task_id: str, wait: float = 0) -> dict[str, Any]:
        answer = self.client.get(f"/v1/tasks/{task_id}", query_string={"wait": wait} if wait else {}, headers=who)
        assert answer.status_code == 200, answer.get_json()
        return dict(answer.get_json())

    def ended(self, who: Headers, task_id: str) -> dict[str, Any]:
        """The task at its end."""
        found: dict[str, Any] = {}

        def over() -> bool:
            found.update(self.task(who, task_id, 5))
            return found["state"] in TERMINAL

        eventually(over, "it has ended", 30)
        return found


@contextmanager
def working(host: Process, folder: Path, **settings: Any) -> Iterator[Working]:
    """`settings` beside the defaults."""
    made = Settings(data_dir=folder / "data", **settings)
    services = build_services(made, Models([f"thrift+unix://{host['socket']}"], Client))
    try:
        yield Working(create_app(made, services=services), services, person(services, "ann"), person(services, "bob"))
    finally:
        services.close()
