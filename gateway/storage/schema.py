"""The migrations, in order. A migration that was released is never changed: a new one follows it."""

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils.migrations import Migrations

from gateway.storage import schema_accounts, schema_deployments, schema_models, schema_sharing, schema_tasks


def m001_users(db: SqliteDatabase) -> None:
    """Names are unique whatever their case, and stay taken when an account is deleted: a restore needs them, and nobody may inherit
    what was shared with a name. Addresses are free again."""
    db.execute(
        """create table users (
            id integer primary key,
            name text not null collate nocase unique,
            email text collate nocase,
            password_hash text not null,
            role text not null check (role in ('user', 'operator', 'administrator')),
            created_at text not null,
            updated_at text not null,
            deleted_at text
        ) strict"""
    )
    db.execute("create unique index users_email on users (email) where deleted_at is null")


def m002_sessions(db: SqliteDatabase) -> None:
    """A session is one sign-in: the family of refresh tokens that follow each other."""
    db.execute(
        """create table sessions (
            id text primary key,
            user_id integer not null references users (id),
            created_at text not null,
            expires_at text not null,
            revoked_at text
        ) strict"""
    )
    db.execute("create index sessions_user on sessions (user_id)")
    db.execute("create index sessions_expiry on sessions (expires_at)")
    db.execute(
        """create table refresh_tokens (
            id integer primary key,
            session_id text not null references sessions (id) on delete cascade,
            token_hash text not null unique,
            created_at text not null,
            expires_at text not null,
            replaced_by integer references refresh_tokens (id)
        ) strict"""
    )
    db.execute("create index refresh_tokens_session on refresh_tokens (session_id)")
    db.execute("create index refresh_tokens_successor on refresh_tokens (replaced_by)")


def m003_signups(db: SqliteDatabase) -> None:
    """One-time invitations to make an account with a role."""
    db.execute(
        """create table signups (
            token_hash text primary key,
            role text not null check (role in ('user', 'operator', 'administrator')),
            created_at text not null,
            expires_at text not null,
            used_by integer references users (id)
        ) strict"""
    )


def m004_attempts(db: SqliteDatabase) -> None:
    """`clear_at`: seconds since the epoch at which everything counted under the key is forgiven."""
    db.execute("create table attempts (key text primary key, clear_at real not null) strict, without rowid")
    db.execute("create index attempts_clear on attempts (clear_at)")


migrations = Migrations("gateway")
_MODEL_SERVICE = (schema_sharing, schema_models, schema_deployments, schema_tasks, schema_accounts)
for _step in (m001_users, m002_sessions, m003_signups, m004_attempts, *(step for part in _MODEL_SERVICE for step in part.STEPS)):
    migrations()(_step)
