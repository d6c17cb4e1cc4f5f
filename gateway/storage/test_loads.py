"""What is loaded on the model hosts to be tried, and when it was tried last."""

from dataclasses import dataclass

from gateway.storage.database import Database

_COLUMNS = "name, version_id, number, memory, ready, used_at"


@dataclass(frozen=True, slots=True)
class TestLoad:
    """`name` on the host; `memory` in bytes, as reckoned; `ready` False while it is loaded, or where that was broken off. `used_at` in
    seconds since the epoch."""

    name: str
    version_id: int
    number: int
    memory: int
    ready: bool
    used_at: float


class TestLoads:
    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, name: str) -> TestLoad | None:
        with self._database.read() as db:
            row = db.execute(f"select {_COLUMNS} from test_loads where name = ?", [name]).fetchone()
        return None if row is None else _record(row)

    def all(self) -> list[TestLoad]:
        """The longest unused first."""
        with self._database.read() as db:
            return [_record(row) for row in db.execute(f"select {_COLUMNS} from test_loads order by used_at, name").fetchall()]

    def begin(self, load: TestLoad, most: int) -> bool:
        """Reserves its memory. False where all of them together would then have more than `most`."""
        with self._database.write() as db:
            row = db.execute("select coalesce(sum(memory), 0) as n from test_loads where name <> ?", [load.name]).fetchone()
            if row["n"] + load.memory > most:
                return False
            db.execute(
                f"insert or replace into test_loads ({_COLUMNS}) values (?, ?, ?, ?, 0, ?)",
                [load.name, load.version_id, load.number, load.memory, load.used_at],
            )
        return True

    def ready(self, name: str, at: float) -> None:
        self._set(name, "ready = 1, used_at = ?", at)

    def used(self, name: str, at: float) -> None:
        self._set(name, "used_at = ?", at)

    def forget(self, name: str) -> None:
        with self._database.write() as db:
            db.execute("delete from test_loads where name = ?", [name])

    def _set(self, name: str, what: str, at: float) -> None:
        with self._database.write() as db:
            db.execute(f"update test_loads set {what} where name = ?", [at, name])


def _record(row: "dict[str, object]") -> TestLoad:
    return TestLoad(**{**dict(row), "ready": bool(row["ready"])})  # type: ignore[arg-type]
