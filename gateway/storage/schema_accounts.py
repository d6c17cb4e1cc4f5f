"""Migrations: what accounts have besides a name and a password."""

from sqlite_utils import Database as SqliteDatabase


def m015_accounts(db: SqliteDatabase) -> None:
    """`pending_email`: an address that its code has not confirmed yet, beside one that was. `quota`: JSON, what differs from the settings."""
    for column in (
        "email_verified_at text",
        "pending_email text collate nocase",
        "avatar_sha256 text references blobs (sha256)",
        "disabled_at text",
        "quota text not null default '{}'",
        "revision integer not null default 1",
    ):
        db.execute(f"alter table users add column {column}")
    db.execute("create index users_avatar on users (avatar_sha256) where avatar_sha256 is not null")
    _codes(db)
    _keys(db)


def _codes(db: SqliteDatabase) -> None:
    """A code of an address that no account has, `user_id` null, fits nothing: it is there so that asking for it looks like any other.

    A letter may be sent until `until` (seconds since the epoch); one that is being sent is not due again before `next_at`.
    """
    db.execute(
        """create table codes (
            id integer primary key,
            user_id integer references users (id),
            purpose text not null check (purpose in ('verify', 'reset', 'address')),
            address text not null collate nocase,
            code_hash text not null,
            tries_left integer not null,
            created_at text not null,
            expires_at text not null
        ) strict"""
    )
    db.execute("create index codes_address on codes (address, purpose)")
    db.execute("create index codes_expiry on codes (expires_at)")
    db.execute(
        """create table outbox (
            id integer primary key autoincrement,
            address text not null,
            subject text not null,
            body text not null,
            state text not null default 'waiting' check (state in ('waiting', 'sent', 'failed')),
            attempts integer not null default 0,
            next_at real not null,
            until real not null,
            error text not null default '',
            created_at text not null,
            finished_at text
        ) strict"""
    )
    db.execute("create index outbox_due on outbox (next_at) where state = 'waiting'")
    db.execute("create index outbox_age on outbox (created_at)")


def _keys(db: SqliteDatabase) -> None:
    """`scopes`: JSON. A sign-in at a provider of identities that has begun is a row of `oidc_attempts`; its end takes the row away."""
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
        ) strict, without rowid"""
    )
    db.execute("create index api_keys_user on api_keys (user_id, created_at)")
    db.execute(
        """create table identities (
            issuer text not null,
            subject text not null,
            user_id integer not null references users (id),
            created_at text not null,
            primary key (issuer, subject)
        ) strict, without rowid"""
    )
    db.execute("create index identities_user on identities (user_id)")
    db.execute(
        """create table oidc_attempts (
            state_hash text primary key,
            browser_hash text not null,
            nonce text not null,
            verifier text not null,
            expires_at text not null
        ) strict, without rowid"""
    )
    db.execute("create index oidc_attempts_expiry on oidc_attempts (expires_at)")


def m016_makers(db: SqliteDatabase) -> None:
    """Who made a team, null where that was before anybody asked."""
    db.execute("alter table teams add column made_by integer references users (id)")
    db.execute("create index teams_maker on teams (made_by) where made_by is not null and deleted_at is null")


def m021_places(db: SqliteDatabase) -> None:
    """Where somebody signed in: the address, and what the browser calls itself; "" where that was before anybody noted it."""
    for column in ("address", "agent"):
        db.execute(f"alter table sessions add column {column} text not null default ''")


STEPS = (m015_accounts, m016_makers, m021_places)
