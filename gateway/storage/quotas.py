"""How much of each thing a user has, and may have."""

import json
from collections.abc import Mapping

from sqlite_utils import Database as SqliteDatabase

from gateway.storage.database import Database

KINDS = ("models", "bytes", "deployments", "instances", "tasks")
"""Models, bytes of their files, deployments that are not deleted, processes that those which are to run may have, and tasks that have not ended."""
_BYTES = "coalesce(sum(v.size + (select coalesce(sum(f.size), 0) from version_files f where f.version_id = v.id)), 0)"
_USED = {
    "models": "select count(*) from models where owner_id = ? and deleted_at is null",
    "bytes": f"select {_BYTES} from model_versions v join models m on m.id = v.model_id"
    " where m.owner_id = ? and m.deleted_at is null and v.deleted_at is null",
    "deployments": "select count(*) from deployments where owner_id = ? and deleted_at is null",
    "instances": "select coalesce(sum(max(instances, coalesce(max_instances, 0))), 0) from deployments"
    " where owner_id = ? and deleted_at is null and desired_state = 'running'",
    "tasks": "select coalesce((select queued + running + paused from queues where user_id = ?), 0)",
}


class Quotas:
    """`defaults`: what a user may have about whom nothing else is said; a kind that is not there, and 0, is without a limit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.defaults: Mapping[str, int] = {}

    def used(self, user_id: int, kind: str) -> int:
        with self._database.read() as db:
            return used(db, user_id, kind)

    def kept(self, user_id: int) -> int:
        """Bytes of models, those included that were deleted and can be restored, and of uploads that are open, as announced."""
        with self._database.read() as db:
            models = f"select {_BYTES} from model_versions v join models m on m.id = v.model_id where m.owner_id = ?"
            uploads = "select coalesce(sum(size), 0) from uploads where user_id = ?"
            return sum(int(db.execute(each, [user_id]).fetchone()[0]) for each in (models, uploads))

    def limit(self, user_id: int, kind: str) -> int:
        """0: none."""
        with self._database.read() as db:
            return self.limit_in(db, user_id, kind)

    def limit_in(self, db: SqliteDatabase, user_id: int, kind: str) -> int:
        """The same inside of a transaction."""
        row = db.execute("select quota from users where id = ?", [user_id]).fetchone()
        own = json.loads(row["quota"]) if row else {}
        return int(own.get(kind, self.defaults.get(kind, 0)))


def used(db: SqliteDatabase, user_id: int, kind: str) -> int:
    """How much the user has of a kind."""
    return int(db.execute(_USED[kind], [user_id]).fetchone()[0])
