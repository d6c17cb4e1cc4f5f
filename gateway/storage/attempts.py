"""How often something was tried: a leaky bucket for each key, shared by every worker process.

A bucket is one number, the time at which it is empty again (the generic cell rate algorithm): an attempt moves it by `interval_s`,
and is refused where that would reach further ahead than `burst` attempts do.
"""

from gateway.storage.database import Database

_SWEEP = 100
_ROUNDING_S = 0.001
"""What adding up seconds since the epoch as floats may be wrong by."""


class Attempts:
    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, key: str, now: float, *, burst: int, interval_s: float) -> float:
        """Counts an attempt at `now` (seconds since the epoch). Returns 0.0, or the seconds to wait where it was refused."""
        with self._database.write() as db:
            db.execute("delete from attempts where key in (select key from attempts where clear_at <= ? limit ?)", [now, _SWEEP])
            row = db.execute("select clear_at from attempts where key = ?", [key]).fetchone()
            clear_at = max(now, row["clear_at"] if row else now) + interval_s
            ahead = clear_at - now - burst * interval_s
            if ahead > _ROUNDING_S:
                return float(ahead)
            db.execute(
                "insert into attempts (key, clear_at) values (?, ?) on conflict (key) do update set clear_at = excluded.clear_at",
                [key, clear_at],
            )
            return 0.0

    def give_back(self, key: str, interval_s: float) -> None:
        """Uncounts one attempt."""
        with self._database.write() as db:
            db.execute("update attempts set clear_at = clear_at - ? where key = ?", [interval_s, key])

    def forgive(self, key: str) -> None:
        """Uncounts all of them."""
        with self._database.write() as db:
            db.execute("delete from attempts where key = ?", [key])

    def hold(self, key: str, until: float) -> None:
        """Notes something that is true until then."""
        with self._database.write() as db:
            db.execute(
                "insert into attempts (key, clear_at) values (?, ?) on conflict (key) do update set clear_at = excluded.clear_at",
                [key, until],
            )

    def holds(self, key: str, now: float) -> bool:
        """Whether it still is."""
        with self._database.read() as db:
            return db.execute("select 1 from attempts where key = ? and clear_at > ?", [key, now]).fetchone() is not None
