"""What many rows cost: SQLite's own steps are counted, not seconds. What everybody asks for, and what holds the write lock, looks through no
table, however many rows are there."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.clock import to_text
from gateway.storage import Storage
from gateway.storage.audit import AuditFilter
from gateway.storage.outbox import Letter
from tests.gateway.sqlite_steps import steps_of

NOW = datetime(2026, 11, 21, tzinfo=UTC)
ROWS = 20_000
MOST = 6_000
"""Steps of a statement's program: some tens for each row of a page. Looking through the rows of one table takes 100,000 and more."""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    made = Storage(tmp_path_factory.mktemp("many") / "state")
    with made.database.write() as db:
        _fill(db)
    yield made
    made.close()


def _fill(db: Any) -> None:
    """ann, the first user, has most; the other users have one of each."""

    def rows(table: str, columns: str, make: Callable[[int], tuple[Any, ...]], count: int = ROWS) -> None:
        marks = ", ".join("?" * len(columns.split(",")))
        db.conn.executemany(f"insert into {table} ({columns}) values ({marks})", map(make, range(1, count + 1)))

    def at(number: int) -> str:
        return to_text(NOW - timedelta(hours=30) + timedelta(seconds=number))

    ann = 1
    account = "name, email, password_hash, role, created_at, updated_at"
    rows("users", account, lambda n: (f"u{n}", f"u{n}@example.org", "x", "user", at(n), at(n)))
    rows("teams", "name, created_at, updated_at", lambda n: (f"t{n}", at(n), at(n)))
    rows("team_members", "team_id, user_id, role, added_at", lambda n: (n, n, "owner", at(n)))
    rows("sessions", "id, user_id, created_at, expires_at", lambda n: (f"s{n}", n, at(n), "9999"))
    rows("refresh_tokens", "session_id, token_hash, created_at, expires_at", lambda n: (f"s{n}", f"h{n}", at(n), "9999"))
    rows("attempts", "key, clear_at", lambda n: (f"k{n}", NOW.timestamp() + n))
    rows(
        "codes",
        "user_id, purpose, address, code_hash, tries_left, created_at, expires_at",
        lambda n: (n, "reset", f"u{n}@example.org", "h", 5, at(n), "9999"),
    )
    rows(
        "outbox",
        "address, subject, body, state, next_at, until, created_at",
        lambda n: (f"u{n}@example.org", "s", "b", "sent", 0.0, 0.0, at(n)),
    )
    rows("api_keys", "id, user_id, name, secret_hash, scopes, created_at", lambda n: (f"k{n}", n, "k", "h", json.dumps(["read"]), at(n)))
    old = to_text(NOW - timedelta(hours=25))
    rows(
        "idempotency",
        "user_id, key, fingerprint, status, created_at",
        lambda n: (ann, f"k{n}", "f", 200, old if n <= 100 else to_text(NOW)),
    )
    rows("audit", "at, actor_id, actor, action, subject", lambda n: (at(n), n, f"u{n}", "user.create", f"u{n}"))
    rows("models", "owner_id, name, created_at, updated_at", lambda n: (n, f"m{n}", at(n), at(n)))
    rows(
        "tasks",
        "id, user_id, model, kind, state, turn, created_at, queued_at",
        lambda n: (f"{n:032x}", n, "m", "prediction", "succeeded", 0.0, at(n), at(n)),
    )


def _letter(storage: Storage) -> None:
    storage.codes.issue("verify", 7, Letter("u7@example.org", "s", "b"), "h", NOW, NOW + timedelta(minutes=10), 5)


CALLS: dict[str, Callable[[Storage], Any]] = {
    "an account by its name": lambda s: s.users.by_name("U777"),
    "an account by its address": lambda s: s.users.by_email("U777@example.org"),
    "a sign-in": lambda s: s.sessions.begin("new", 7, "hash", NOW, NOW + timedelta(days=1)),
    "a refresh": lambda s: s.sessions.rotate("h9", "next", NOW, NOW + timedelta(days=1)),
    "who a session stands for": lambda s: s.sessions.principal("s777"),
    "who a key stands for": lambda s: s.api_keys.holder("k777"),
    "a new password": lambda s: s.users.change_own(8, NOW, password_hash="y"),
    "a new address": lambda s: s.users.change_own(8, NOW, email="new@example.org"),
    "a new code": _letter,
    "a code that is tried": lambda s: s.codes.redeem(("reset",), "u9@example.org", lambda record: True, lambda db, record: True, NOW),
    "letters that are due": lambda s: s.outbox.claim(NOW, 1.0),
    "an attempt": lambda s: s.attempts.take("k777", NOW.timestamp(), burst=5, interval_s=1.0),
    "a request that may come again": lambda s: s.idempotency.begin(1, "new", "f", NOW, 60.0),
    "one's teams": lambda s: s.teams.page(777, 0, 50),
    "one's role in a team": lambda s: s.teams.role(777, 777),
    "a new team": lambda s: s.teams.create("new", 777, NOW),
    "one's keys": lambda s: s.api_keys.page(777, None, 50),
    "what one has": lambda s: [s.quotas.used(777, kind) for kind in ("models", "bytes", "deployments", "tasks")],
    "a page of accounts": lambda s: s.users.page(_everybody(), 100, 50),
    "a page of everybody's models": lambda s: s.platform.models("", "", 100, 50),
    "a page of one's models, for an administrator": lambda s: s.platform.models("u777", "", 0, 50),
    "a page of everybody's tasks": lambda s: s.platform.tasks("", "", "", 50),
    "a page of one's tasks, for an administrator": lambda s: s.platform.tasks("u777", "", "", 50),
    "the audit log": lambda s: s.audit.page(AuditFilter(), None, 50),
    "what one did": lambda s: s.audit.page(AuditFilter(actor="u777"), None, 50),
    "what was done to one": lambda s: s.audit.page(AuditFilter(subject="u777"), None, 50),
}


def _everybody() -> Any:
    from gateway.storage.users import UserFilter

    return UserFilter()


@pytest.mark.parametrize("what", CALLS)
def test_nothing_is_looked_through(storage: Storage, what: str) -> None:
    steps = steps_of(storage, CALLS[what])
    assert steps < MOST, f"{what}: {steps} steps with {ROWS} rows"


def test_the_count_sees_a_table_that_is_looked_through(storage: Storage) -> None:
    with pytest.raises(AssertionError, match="steps with"):
        CALLS["a scan"] = lambda s: s.users.page(_nobody(), 0, 50)
        try:
            test_nothing_is_looked_through(storage, "a scan")
        finally:
            del CALLS["a scan"]


def _nobody() -> Any:
    from gateway.storage.users import UserFilter

    return UserFilter(search="nobody is called so")
