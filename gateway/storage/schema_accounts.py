"""Migrations: what accounts have besides a name and a password."""

from sqlite_utils import Database as SqliteDatabase


def m015_accounts(db: SqliteDatabase) -> None:
    """`pending_email`: an address that its code has not confirmed yet. `quota`: JSON, what differs from the settings."""
    for column in ("email_verified_at text", "pending_email text", "avatar_sha256 text", "disabled_at text", "quota text"):
        db.execute(f"alter table users add column {column}")
    db.execute(
        """create table codes (
            id integer primary key,
            user_id integer not null references users (id),
            purpose text not null check (purpose in ('verify', 'reset', 'address')),
            address text not null collate nocase,
            code_hash text not null,
            tries_left integer not null,
            created_at text not null,
            expires_at text not null,
            used_at text
        ) strict"""
    )
    db.execute("create index codes_user on codes (user_id, purpose)")
    db.execute("create index codes_expiry on codes (expires_at)")
    db.execute(
        """create table outbox (
            id integer primary key,
            address text not null,
            subject text not null,
            body text not null,
            created_at text not null,
            sent_at text,
            attempts integer not null default 0,
            next_at real not null default 0,
            error text
        ) strict"""
    )
    db.execute("create index outbox_due on outbox (next_at) where sent_at is null")
    db.execute(
        """create table api_keys (
            id text primary key,
            user_id integer not null references users (id),
            name text not null,
            secret_hash text not null,
            scopes text not null,
            created_at text not null,
            expires_at text,
            last_used_at text,
            revoked_at text
        ) strict"""
    )
    db.execute("create index api_keys_user on api_keys (user_id)")
    db.execute(
        """create table identities (
            issuer text not null,
            subject text not null,
            user_id integer not null references users (id),
            created_at text not null,
            primary key (issuer, subject)
        ) strict, without rowid"""
    )


STEPS = (m015_accounts,)
