"""What lists of somebody with very many tasks, and notices of a receiver that is away, cost: SQLite's own steps, as in `test_many_rows`."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.clock import to_text
from gateway.operations import task_notices
from gateway.storage import Storage
from gateway.types import Role
from tests.gateway.sqlite_steps import steps_of

NOW = datetime(2026, 11, 21, tzinfo=UTC)
ROWS = 20_000
MOST = 6_000


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    made = Storage(tmp_path_factory.mktemp("many") / "state")
    for name in ("ann", "bob"):
        made.users.create(name, None, "x", Role.USER, NOW)
    at = to_text(NOW - timedelta(hours=1))
    tasks = "id, user_id, model, kind, state, turn, created_at, queued_at, started_at, finished_at"
    with made.database.write() as db:
        db.conn.executemany(
            f"insert into tasks ({tasks}) values (?, 1, 'm', ?, ?, 0.0, ?, ?, ?, ?)",
            [(f"{n:032x}", "batch" if n < 3 else "prediction", "failed" if n < 5 else "succeeded", at, at, at, at) for n in range(ROWS)],
        )
        for user_id in (1, 2):
            db.execute(
                "insert into webhooks (id, user_id, url, secret, created_at, updated_at) values (?, ?, 'http://x', 'whsec_', ?, ?)",
                [f"wh_{user_id}", user_id, at, at],
            )
        db.conn.executemany(
            "insert into deliveries (id, webhook_id, task_id, event, payload, state, next_at, created_at) values (?, ?, ?, 'task.failed', '{}', ?, 0, ?)",
            [(f"msg_{n:032x}", f"wh_{1 + n % 2}", str(n), "pending" if n % 2 else "delivered", at) for n in range(ROWS)],
        )
    yield made
    made.close()


CALLS: dict[str, Callable[[Storage], Any]] = {
    "one's tasks": lambda s: s.tasks.page({"user_id": 1}, None, 50),
    "one's batches": lambda s: s.tasks.page({"user_id": 1, "kind": "batch"}, None, 50),
    "one's tasks that failed": lambda s: s.tasks.page({"user_id": 1, "state": "failed"}, None, 50),
    "one's tasks that run": lambda s: s.tasks.page({"user_id": 1, "state": "running"}, None, 50),
    "one's tasks of a model": lambda s: s.tasks.page({"user_id": 1, "model": "other"}, None, 50),
    "everybody's batches": lambda s: s.tasks.page({"kind": "batch"}, None, 50),
    "everybody's tasks that expired": lambda s: s.tasks.page({"state": "expired"}, None, 50),
    "one's tasks of a day": lambda s: s.tasks.page({"user_id": 1}, f"{ROWS // 2:032x}", 50, f"{ROWS // 2 - 100:032x}"),
    "notices of a task": lambda s: s.webhooks.of_task(1, "2"),
    "what waited too long": lambda s: s.tasks.expire(NOW, 3600.0, 60.0, task_notices.notice),
    "what nobody holds": lambda s: s.task_queue.reap(NOW, 3, lambda _: 1.0, 60.0, task_notices.notice),
    "the next tasks": lambda s: s.task_queue.settle((), (), NOW, 60.0, task_notices.notice, {"prediction": 16, "batch": 2}, 1, 60.0),
    "notices that are due": lambda s: s.webhooks.claim(NOW, 60.0, 32),
    "notices that failed": lambda s: s.webhooks.deliveries("wh_1", "failed", None, 50),
}


@pytest.mark.parametrize("what", CALLS)
def test_nothing_is_looked_through(storage: Storage, what: str) -> None:
    steps = steps_of(storage, CALLS[what])
    assert steps < MOST, f"{what}: {steps} steps"
