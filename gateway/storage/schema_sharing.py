"""Migrations: teams, what was done by whom, and requests that may be repeated."""

from sqlite_utils import Database as SqliteDatabase


def m005_teams(db: SqliteDatabase) -> None:
    """A team's name stays taken when it is deleted, as a user's does."""
    db.execute(
        """create table teams (
            id integer primary key,
            name text not null collate nocase unique,
            revision integer not null default 1,
            created_at text not null,
            updated_at text not null,
            deleted_at text
        ) strict"""
    )
    db.execute(
        """create table team_members (
            team_id integer not null references teams (id),
            user_id integer not null references users (id),
            role text not null check (role in ('owner', 'editor', 'viewer')),
            added_at text not null,
            primary key (team_id, user_id)
        ) strict, without rowid"""
    )
    db.execute("create index team_members_user on team_members (user_id)")


def m006_audit(db: SqliteDatabase) -> None:
    """Append-only: nothing may change or remove a row, whoever asks. `detail` is JSON; the actor's name as it was then."""
    db.execute(
        """create table audit (
            id integer primary key autoincrement,
            at text not null,
            actor_id integer references users (id),
            actor text not null,
            action text not null,
            subject text not null,
            detail text not null default '{}',
            address text not null default '',
            request_id text not null default ''
        ) strict"""
    )
    db.execute("create index audit_actor on audit (actor_id, id)")
    db.execute("create index audit_name on audit (actor collate nocase, id)")
    db.execute("create index audit_subject on audit (subject collate nocase, id)")
    for verb in ("update", "delete"):
        db.execute(f"create trigger audit_no_{verb} before {verb} on audit begin select raise(abort, 'the audit log is append-only'); end")


def m007_idempotency(db: SqliteDatabase) -> None:
    """Answers to requests that came with an Idempotency-Key; `status` null: the first of them has not ended."""
    db.execute(
        """create table idempotency (
            user_id integer not null references users (id),
            key text not null,
            fingerprint text not null,
            status integer,
            headers text,
            body text,
            created_at text not null,
            primary key (user_id, key)
        ) strict, without rowid"""
    )
    db.execute("create index idempotency_age on idempotency (created_at)")


STEPS = (m005_teams, m006_audit, m007_idempotency)
