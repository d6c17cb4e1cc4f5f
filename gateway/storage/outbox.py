"""Letters that wait to be sent, were sent, or could not be."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.storage.database import Database

KEPT = timedelta(days=7)
_COLUMNS = "id, address, subject, body, state, attempts, until, error, created_at, finished_at"


@dataclass(frozen=True, slots=True)
class Letter:
    """Plain text to one address."""

    address: str
    subject: str
    body: str


@dataclass(frozen=True, slots=True)
class OutboxRecord:
    """`state` is waiting, sent or failed; `until` in seconds since the epoch: it is of no use to send it later. The body of one that was
    sent is not kept."""

    id: int
    address: str
    subject: str
    body: str
    state: str
    attempts: int
    until: float
    error: str
    created_at: str
    finished_at: str | None


class Outbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, now: datetime, lease_s: float) -> OutboxRecord | None:
        """The next letter that is due, which nobody else gets for `lease_s`: whoever is killed meanwhile has it sent again then."""
        with self._database.read() as db:  # most of the time there is none: no need to hold the write lock
            if db.execute("select 1 from outbox where state = 'waiting' and next_at <= ? limit 1", [now.timestamp()]).fetchone() is None:
                return None
        with self._database.write() as db:
            row = db.execute(
                "update outbox set attempts = attempts + 1, next_at = ? where id ="
                " (select id from outbox where state = 'waiting' and next_at <= ? order by next_at, id limit 1)"
                f" returning {_COLUMNS}",
                [now.timestamp() + lease_s, now.timestamp()],
            ).fetchone()
        return None if row is None else OutboxRecord(**dict(row))

    def sent(self, number: int, now: datetime) -> None:
        with self._database.write() as db:
            db.execute("update outbox set state = 'sent', body = '', error = '', finished_at = ? where id = ?", [to_text(now), number])

    def failed(self, number: int, reason: str, now: datetime, again_at: float | None) -> None:
        """`again_at` (seconds since the epoch) None: for good."""
        with self._database.write() as db:
            if again_at is None:
                db.execute("update outbox set state = 'failed', error = ?, finished_at = ? where id = ?", [reason, to_text(now), number])
            else:
                db.execute("update outbox set error = ?, next_at = ? where id = ?", [reason, again_at, number])

    def again(self, number: int, now: datetime) -> bool:
        """Has one that waits or has failed sent at once; False where there is none, or it would be of no use any more."""
        with self._database.write() as db:
            row = db.execute(
                "update outbox set state = 'waiting', next_at = ?, finished_at = null where id = ? and state <> 'sent' and until > ? returning id",
                [now.timestamp(), number, now.timestamp()],
            ).fetchone()
        return row is not None

    def page(self, state: str, before: int | None, count: int) -> list[OutboxRecord]:
        """Newest first, before the one with the number `before`; `state` "" for all."""
        with self._database.read() as db:
            rows = db.execute(
                f"select {_COLUMNS} from outbox where (? = '' or state = ?) and (? is null or id < ?) order by id desc limit ?",
                [state, state, before, before, count],
            ).fetchall()
        return [OutboxRecord(**dict(row)) for row in rows]

    def forget(self, before: datetime) -> int:
        """Takes away what is older; how many."""
        with self._database.read() as db:
            if db.execute("select 1 from outbox where created_at < ? limit 1", [to_text(before)]).fetchone() is None:
                return 0
        with self._database.write() as db:
            return len(db.execute("delete from outbox where created_at < ? returning id", [to_text(before)]).fetchall())


def add(db: SqliteDatabase, letter: Letter, now: datetime, until: datetime) -> int:
    """Inside the transaction that it tells of."""
    row = db.execute(
        "insert into outbox (address, subject, body, next_at, until, created_at) values (?, ?, ?, ?, ?, ?) returning id",
        [letter.address, letter.subject, letter.body, now.timestamp(), until.timestamp(), to_text(now)],
    ).fetchone()
    return int(row["id"])
