"""A site that has been used for a long time: very many models, deployments and tasks, made from one of each by SQLite itself."""

from typing import Any

from sqlite_utils import Database

from gateway.storage import Storage

MODELS, DEPLOYMENTS, TASKS = 1_000, 100, 100_000


def fill(storage: Storage, owner: str, model: str = "m", deployment: str = "d") -> None:
    """Gives `owner` the others of MODELS, DEPLOYMENTS (paused) and TASKS, like the ones that are there: a model, a deployment, and a task."""
    with storage.database.write() as db:
        known = {"owner": owner, "model": model, "deployment": deployment}
        source = _one(db, "select m.id from models m join users u on u.id = m.owner_id where u.name = :owner and m.name = :model", known)
        before = _one(db, "select max(id) from models", {})
        more(db, "models", f"s.id = {source}", MODELS - 1, id="null", name="s.name || '-' || n")
        copied = f"s.model_id = {source} and n > {before}"
        more(db, "model_versions", copied, before + MODELS - 1, id="null", model_id="n")
        found = _one(
            db, "select d.id from deployments d join users u on u.id = d.owner_id where u.name = :owner and d.name = :deployment", known
        )
        states = {"desired_state": "'paused'", "state": "'paused'", "observed_generation": "s.generation"}
        more(db, "deployments", f"s.id = {found}", DEPLOYMENTS - 1, id="null", name="s.name || '-' || n", **states)
        task = _one(db, f"select rowid from tasks where deployment_id = {found} and kind = 'prediction' order by rowid limit 1", {})
        moment = "strftime('%Y-%m-%dT%H:%M:%fZ', s.created_at, printf('-%d seconds', 7 * n))"
        moments = {"created_at": moment, "queued_at": moment, "id": "substr(s.id, 1, 8) || printf('%024x', n)"}
        state = "case n % 50 when 0 then 'failed' when 1 then 'cancelled' else 'succeeded' end"
        # no bodies: what they hold is counted for each blob
        more(db, "tasks", f"s.rowid = {task}", TASKS - 1, state=state, input_sha256="null", result_sha256="null", **moments)
        db.execute("analyze")


def more(db: Database, table: str, which: str, count: int, **changed: str) -> None:
    """`count` copies of each row `s` of a table for which `which` holds; `changed`: columns as SQL, `n` counts from 1."""
    columns = [column.name for column in db.table(table).columns]
    values = ", ".join(changed.get(column, f"s.{column}") for column in columns)
    db.execute(
        f"with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < {count}) "
        f"insert into {table} ({', '.join(columns)}) select {values} from {table} s, numbers where {which}"
    )


def _one(db: Database, sql: str, values: dict[str, Any]) -> int:
    found = db.execute(sql, values).fetchone()
    return int(found[0])
