"""People of the tests: who they are, signed in, and what they ask."""

from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from gateway.context import Services
from gateway.operations import passwords
from gateway.types import Role, Scope
from tests.gateway.conftest import PASSWORD

Headers = dict[str, str]


def person(services: Services, name: str, role: Role = Role.USER, email: str | None = None) -> Headers:
    """A new account's headers. Without the cost of a password: nobody signs in with it."""
    now = services.now()
    user = services.storage.users.create(name, email, passwords.impossible_hash(), role, now)
    return bearer(services.tokens.begin(user).access_token)


def bearer(token: str) -> Headers:
    return {"Authorization": f"Bearer {token}"}


def key(client: FlaskClient, headers: Headers, *scopes: Scope, **more: Any) -> Headers:
    """An API key's headers."""
    answer = client.post("/v1/api-keys", json={"name": "a key", "scopes": [scope.value for scope in scopes], **more}, headers=headers)
    assert answer.status_code == 201, answer.get_json()
    return bearer(answer.get_json()["key"])


def register(client: FlaskClient, name: str = "ann", **fields: object) -> None:
    answer = client.post("/v1/users", json={"username": name, "password": PASSWORD, **fields})
    assert answer.status_code == 201, answer.get_json()


def signed_in(client: FlaskClient, name: str = "ann", password: str = PASSWORD) -> Headers:
    answer = client.post("/v1/tokens", json={"username": name, "password": password})
    assert answer.status_code == 200, answer.get_json()
    return bearer(answer.get_json()["access_token"])


def code_in_outbox(services: Services, email: str) -> str:
    """The newest code that was sent to an address."""
    letters = [letter for letter in services.storage.outbox.page("", None, 100) if letter.address == email]
    assert letters, f"no letter to {email}"
    return letters[0].body[:6]


def audited(services: Services, action: str) -> list[tuple[str, str]]:
    """(actor, subject) of each line, oldest first."""
    from gateway.storage.audit import AuditFilter

    lines = services.storage.audit.page(AuditFilter(action=action), None, 1000)
    return [(line.actor, line.subject) for line in reversed(lines)]


def status(answer: TestResponse) -> tuple[int, str]:
    """(HTTP status, code)."""
    body = answer.get_json(silent=True)
    return answer.status_code, body.get("code", "") if isinstance(body, dict) else ""
