"""Deployments: what their owners want, and what the reconciler has made of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlite_utils import Database as SqliteDatabase

from gateway.clock import to_text
from gateway.storage import audit
from gateway.storage.audit import Doer
from gateway.storage.database import Database
from gateway.storage.deployment_lists import Browsed, Key, clauses
from gateway.storage.marks import Mark
from gateway.storage.quotas import used
from idl.codes import Code, ServingError

RUNNING, PAUSED, DELETED = "running", "paused", "deleted"
"""What may be wanted of a deployment."""
STARTING, PAUSING, SLEEPING, FAILED, DELETING = "starting", "pausing", "sleeping", "failed", "deleting"
"""What it may be besides."""

_SELECT = """select d.id, d.owner_id, d.name, d.model_id, d.version_id, d.serving_version_id, d.previous_version_id, d.check_golden,
    d.canary_version_id, d.canary_percent, d.visibility, d.team_id, d.desired_state, d.state, d.reason, d.notice, d.instances, d.min_instances, d.max_instances, d.cpus,
    d.memory, d.sleep_after_s, d.script_version_id, d.serving_script_id, d.golden_tolerance, d.shown_time, d.generation, d.observed_generation, d.retry_at,
    d.failures, d.last_call_at, d.revision, d.created_at, d.updated_at, d.deleted_at,
    u.name as owner, u.deleted_at is null and u.disabled_at is null as owner_active, m.name as model, v.number as version,
    serving.number as serving_version, previous.number as previous_version, canary.number as canary_version,
    sv.number as script_version, sv.sha256 as script_sha256, sv.functions as script_functions, s.name as script,
    ss.functions as serving_functions, t.name as team, mu.name as model_owner, m.deleted_at is null as model_kept
    from deployments d join users u on u.id = d.owner_id join models m on m.id = d.model_id join users mu on mu.id = m.owner_id join model_versions v on v.id = d.version_id
    left join model_versions serving on serving.id = d.serving_version_id
    left join model_versions previous on previous.id = d.previous_version_id
    left join model_versions canary on canary.id = d.canary_version_id
    left join script_versions sv on sv.id = d.script_version_id left join scripts s on s.id = sv.script_id
    left join script_versions ss on ss.id = d.serving_script_id
    left join teams t on t.id = d.team_id"""


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    """A deployment. Versions are numbers of its model; `script_functions` and `serving_functions` are JSON text, None without a script. `memory` in
    bytes. `model_kept` 0: the model was deleted."""

    id: int
    owner_id: int
    name: str
    model_id: int
    version_id: int
    serving_version_id: int | None
    previous_version_id: int | None
    check_golden: int
    canary_version_id: int | None
    canary_percent: int
    visibility: str
    team_id: int | None
    desired_state: str
    state: str
    reason: str
    notice: str
    instances: int
    min_instances: int | None
    max_instances: int | None
    cpus: float | None
    memory: int | None
    sleep_after_s: int | None
    script_version_id: int | None
    serving_script_id: int | None
    golden_tolerance: float
    shown_time: str
    generation: int
    observed_generation: int
    retry_at: float
    failures: int
    last_call_at: str | None
    revision: int
    created_at: str
    updated_at: str
    deleted_at: str | None
    owner: str
    owner_active: int
    model: str
    version: int
    serving_version: int | None
    previous_version: int | None
    canary_version: int | None
    script_version: int | None
    script_sha256: str | None
    script_functions: str | None
    script: str | None
    serving_functions: str | None
    team: str | None
    model_owner: str
    model_kept: int

    @property
    def rpc_name(self) -> str:
        """What model hosts and `/v2` call it."""
        return f"{self.owner}.{self.name}"

    @property
    def wants_to_run(self) -> bool:
        """Whether its processes are to be there now."""
        return self.desired_state == RUNNING and self.state != SLEEPING and bool(self.owner_active)


class Deployments:
    """`sharing` is changed with everything that matters to who may call what, and whether it can be called."""

    def __init__(self, database: Database, sharing: Mark) -> None:
        self._database = database
        self._sharing = sharing

    # what owners do --------------------------------------------------------------------------------------------------------------

    def create(self, values: Mapping[str, Any], doer: Doer, now: datetime, most: int = 0, most_instances: int = 0) -> DeploymentRecord:
        """`values` by column. Raises already_exists for a name that the owner has, insufficient_capacity beyond `most` of one owner, or beyond
        `most_instances` of all of them (0: any number).

        One of that name that is on its way out makes room; its files go before the new one's come.
        """
        owner_id, name = values["owner_id"], values["name"]
        with self._database.write() as db:
            old = db.execute(
                "select id, state from deployments where owner_id = ? and name = ? and deleted_at is null", [owner_id, name]
            ).fetchone()
            if old is not None and old["state"] != DELETING:
                raise ServingError(Code.ALREADY_EXISTS, f"name: there is a deployment {name!r}")
            if old is not None:
                db.execute("update deployments set deleted_at = ? where id = ?", [to_text(now), old["id"]])
            if most:
                count = db.execute("select count(*) as n from deployments where owner_id = ? and deleted_at is null", [owner_id]).fetchone()
                if count["n"] >= most:
                    raise ServingError(Code.INSUFFICIENT_CAPACITY, f"there are {count['n']} deployments, {most} are allowed for each user")
            given = {**values, "created_at": to_text(now), "updated_at": to_text(now)}
            columns = ", ".join(given)
            row = db.execute(
                f"insert into deployments ({columns}) values ({', '.join('?' * len(given))}) returning id", list(given.values())
            ).fetchone()
            made = _record(db.execute(f"{_SELECT} where d.id = ?", [row["id"]]).fetchone())
            _refuse_instances(db, owner_id, 0, most_instances)
            audit.write(db, doer, "deployment.create", made.rpc_name, now, {"model": made.model, "version": made.version})
        self._sharing.change()
        return made

    def find(self, owner: str, name: str) -> DeploymentRecord | None:
        """By names; None also where the owner's account is gone."""
        return self._one("where u.name = ? and d.name = ? and d.deleted_at is null and u.deleted_at is null", [owner, name])

    def of_owner(self, owner_id: int, name: str) -> DeploymentRecord | None:
        return self._one("where d.owner_id = ? and d.name = ? and d.deleted_at is null", [owner_id, name])

    def by_id(self, deployment_id: int) -> DeploymentRecord | None:
        """Also one that is deleted."""
        return self._one("where d.id = ?", [deployment_id])

    def listed(
        self,
        owner_id: int,
        teams: Collection[int],
        *,
        shared: bool,
        everything: bool,
        model_id: int | None,
        state: str,
        after: int,
        limit: int,
    ) -> list[DeploymentRecord]:
        """By id, those after `after`. `shared`: besides the owner's own the public ones and those of his `teams`; `everything`: all."""
        where, arguments = ["d.deleted_at is null and d.id > ?"], [after]
        if not everything:
            seen, given = ["d.owner_id = ?"], [owner_id]
            if shared:
                seen.append("d.visibility = 'public'")
                if teams:
                    seen.append(f"(d.visibility = 'team' and d.team_id in ({', '.join('?' * len(teams))}))")
                    given += list(teams)
            where.append(f"({' or '.join(seen)})")
            arguments += given
        if model_id is not None:
            where.append("d.model_id = ?")
            arguments.append(model_id)
        if state:
            where.append("d.state = ?")
            arguments.append(state)  # type: ignore[arg-type]
        return self._many(f"where {' and '.join(where)} order by d.id limit ?", [*arguments, limit])

    def page(self, wanted: Browsed, key: Key | None, limit: int, *, backwards: bool = False) -> list[DeploymentRecord]:
        """In the order that is wanted, those after `key`; with `backwards` the last before it."""
        where, arguments = clauses(wanted, key, limit, backwards=backwards)
        found = self._many(where, arguments)
        return found[::-1] if backwards else found

    def change(
        self,
        deployment_id: int,
        changes: Mapping[str, Any],
        doer: Doer,
        now: datetime,
        *,
        revision: int | None = None,
        action: str = "deployment.change",
        detail: Mapping[str, Any] | None = None,
        most_instances: int = 0,
    ) -> DeploymentRecord | None:
        """Sets columns, counts revision and generation, and forgives failures. None where it is gone, or is another revision than asked. Raises
        insufficient_capacity for more than `most_instances` of its owner (0: any number), where there were fewer before."""
        sets = ", ".join(f"{column} = ?" for column in changes)
        asked = "" if revision is None else "and revision = ?"
        with self._database.write() as db:
            owner = db.execute("select owner_id from deployments where id = ?", [deployment_id]).fetchone()
            before = used(db, owner["owner_id"], "instances") if owner is not None else 0
            row = db.execute(
                f"update deployments set {sets}{', ' if sets else ''}revision = revision + 1, generation = generation + 1, retry_at = 0,"
                f" failures = 0, notice = '', updated_at = ? where id = ? and deleted_at is null and state <> 'deleting' {asked} returning id",
                [*changes.values(), to_text(now), deployment_id, *([] if revision is None else [revision])],
            ).fetchone()
            if row is None:
                return None
            made = _record(db.execute(f"{_SELECT} where d.id = ?", [deployment_id]).fetchone())
            _refuse_instances(db, made.owner_id, before, most_instances)
            audit.write(db, doer, action, made.rpc_name, now, detail if detail is not None else dict(changes))
        self._sharing.change()
        return made

    # what the reconciler does ----------------------------------------------------------------------------------------------------

    def states(self, owner_id: int) -> dict[str, int]:
        """State -> how many of somebody's are in it."""
        with self._database.read() as db:
            rows = db.execute(
                "select state, count(*) as n from deployments where owner_id = ? and deleted_at is null group by state", [owner_id]
            ).fetchall()
        return {row["state"]: row["n"] for row in rows}

    def alive(self) -> list[DeploymentRecord]:
        """All that a model host has something of, or should have: also those on their way out, whose names others may have by now."""
        return self._many("where d.state <> 'deleted' order by d.id", [])

    def settle(self, seen: DeploymentRecord, changes: Mapping[str, Any], now: datetime) -> bool:
        """Writes what came of carrying out what `seen` wants. False where something else is wanted by now: then nothing is written."""
        sets = "".join(f"{column} = ?, " for column in changes)
        with self._database.write() as db:
            row = db.execute(
                f"update deployments set {sets}updated_at = ? where id = ? and generation = ? returning id",
                [*changes.values(), to_text(now), seen.id, seen.generation],
            ).fetchone()
        self._sharing.change()
        return row is not None

    def wake(self, deployment_id: int, now: datetime) -> bool:
        """Somebody calls one that sleeps. False where it does not."""
        return self._turn(deployment_id, "state = 'sleeping' and desired_state = 'running'", "state = 'starting'", now)

    def lull(self, seen: DeploymentRecord, now: datetime) -> bool:
        """Nobody has called it for long. False where it is not running any more as it was seen."""
        where = f"state = 'running' and desired_state = 'running' and generation = {int(seen.generation)}"
        return self._turn(seen.id, where, "state = 'sleeping'", now)

    def scale(self, seen: DeploymentRecord, instances: int, now: datetime) -> bool:
        """Another number of instances, which its owner left to us."""
        where = f"state = 'running' and max_instances is not null and generation = {int(seen.generation)}"
        return self._turn(seen.id, where, f"instances = {int(instances)}", now)

    def removed(self, seen: DeploymentRecord, now: datetime) -> None:
        """No host has anything of it any more; neither is anything kept that was measured or pinned."""
        with self._database.write() as db:
            db.execute(
                "update deployments set state = 'deleted', reason = '', observed_generation = generation, deleted_at = coalesce(deleted_at, ?)"
                " where id = ? and state = 'deleting'",
                [to_text(now), seen.id],
            )
            for table in ("golden", "deployment_statistics", "deployment_errors"):
                db.execute(f"delete from {table} where deployment_id = ?", [seen.id])
        self._sharing.change()

    def called(self, at: Mapping[int, datetime]) -> None:
        """When each was called last."""
        with self._database.write() as db:
            for deployment_id, moment in at.items():
                db.execute("update deployments set last_call_at = ? where id = ?", [to_text(moment), deployment_id])

    def _turn(self, deployment_id: int, where: str, sets: str, now: datetime) -> bool:
        with self._database.write() as db:
            row = db.execute(
                f"update deployments set {sets}, generation = generation + 1, retry_at = 0, updated_at = ?"
                f" where id = ? and deleted_at is null and {where} returning id",
                [to_text(now), deployment_id],
            ).fetchone()
        if row is not None:
            self._sharing.change()
        return row is not None

    def _one(self, where: str, arguments: Sequence[Any]) -> DeploymentRecord | None:
        with self._database.read() as db:
            row = db.execute(f"{_SELECT} {where}", arguments).fetchone()
        return None if row is None else _record(row)

    def _many(self, where: str, arguments: Sequence[Any]) -> list[DeploymentRecord]:
        with self._database.read() as db:
            return [_record(row) for row in db.execute(f"{_SELECT} {where}", arguments).fetchall()]


def _refuse_instances(db: SqliteDatabase, owner_id: int, before: int, most: int) -> None:
    """The write lock is held, and the row is as it is to be."""
    count = used(db, owner_id, "instances")
    if most and count > most and count > before:
        raise ServingError(
            Code.INSUFFICIENT_CAPACITY, f"your deployments that are to run would have {count} instances, {most} are allowed for each user"
        )


def _record(row: Any) -> DeploymentRecord:
    return DeploymentRecord(**dict(row))
