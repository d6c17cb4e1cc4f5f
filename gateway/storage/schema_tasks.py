"""Migrations: tasks, batches, and the notices of their ends."""

from sqlite_utils import Database as SqliteDatabase


def m013_tasks(db: SqliteDatabase) -> None:
    """A task is held by whoever claimed it until `lease_until` (seconds since the epoch); `fence` counts the claims, and whoever writes
    says which one is his. `turn` orders the queue fairly over users."""
    db.execute(
        """create table tasks (
            id text primary key,
            user_id integer not null references users (id),
            deployment_id integer references deployments (id),
            model text not null,
            version text not null default '',
            kind text not null check (kind in ('prediction', 'batch')),
            state text not null check (state in ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled', 'expired')),
            input_sha256 text references blobs (sha256),
            content_type text not null default '',
            options text not null default '{}',
            turn real not null,
            attempts integer not null default 0,
            fence integer not null default 0,
            lease_until real not null default 0,
            not_before real not null default 0,
            cancel_asked integer not null default 0,
            progress real not null default 0,
            result_sha256 text references blobs (sha256),
            result_type text not null default '',
            error_code text,
            error_message text,
            created_at text not null,
            started_at text,
            finished_at text,
            expires_at text
        ) strict"""
    )
    db.execute("create index tasks_queue on tasks (turn, created_at) where state = 'queued'")
    db.execute("create index tasks_running on tasks (lease_until) where state = 'running'")
    db.execute("create index tasks_user on tasks (user_id, created_at)")
    db.execute("create index tasks_deployment on tasks (deployment_id, created_at)")
    db.execute("create index tasks_expiry on tasks (expires_at) where expires_at is not null")
    db.execute(
        """create table task_events (
            id integer primary key autoincrement,
            task_id text not null references tasks (id) on delete cascade,
            at text not null,
            state text not null,
            progress real not null
        ) strict"""
    )
    db.execute("create index task_events_task on task_events (task_id, id)")
    db.execute(
        """create table batches (
            task_id text primary key references tasks (id) on delete cascade,
            format text not null,
            file_name text not null default '',
            rows_total integer,
            rows_done integer not null default 0,
            rows_failed integer not null default 0,
            input_offset integer not null default 0,
            result_offset integer not null default 0
        ) strict, without rowid"""
    )


def m014_webhooks(db: SqliteDatabase) -> None:
    """A delivery is written in the transaction that ends its task."""
    db.execute(
        """create table webhooks (
            id text primary key,
            user_id integer not null references users (id),
            url text not null,
            secret text not null,
            events text not null default '[]',
            enabled integer not null default 1,
            revision integer not null default 1,
            created_at text not null,
            updated_at text not null,
            deleted_at text
        ) strict"""
    )
    db.execute("create index webhooks_user on webhooks (user_id) where deleted_at is null")
    db.execute(
        """create table deliveries (
            id text primary key,
            webhook_id text not null references webhooks (id),
            task_id text not null,
            event text not null,
            payload text not null,
            state text not null check (state in ('pending', 'delivered', 'failed')),
            attempts integer not null default 0,
            next_at real not null,
            last_status integer,
            last_error text,
            created_at text not null,
            finished_at text,
            unique (webhook_id, task_id, event)
        ) strict"""
    )
    db.execute("create index deliveries_due on deliveries (next_at) where state = 'pending'")
    db.execute("create index deliveries_webhook on deliveries (webhook_id, created_at)")


STEPS = (m013_tasks, m014_webhooks)
