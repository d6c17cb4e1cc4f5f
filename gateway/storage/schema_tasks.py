"""Migrations: tasks, batches, and the notices of their ends."""

from sqlite_utils import Database as SqliteDatabase

_COUNTED = ("queued", "running", "paused")


def m013_tasks(db: SqliteDatabase) -> None:
    """A task is held by whoever claimed it until `lease_until` (seconds since the epoch); `fence` counts the claims, and whoever writes
    says which one is his. `turn` orders the queue fairly over users; `delayed`: not to be begun before `not_before`. `attempts` counts the
    runs that may have begun, `waits` those that were refused before. `asked`: what a running one is to do instead."""
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
            retry_of text,
            turn real not null,
            attempts integer not null default 0,
            waits integer not null default 0,
            fence integer not null default 0,
            worker integer not null default 0,
            lease_until real not null default 0,
            delayed integer not null default 0,
            not_before real not null default 0,
            asked text not null default '' check (asked in ('', 'cancel', 'pause')),
            progress real not null default 0,
            result_sha256 text references blobs (sha256),
            result_type text not null default '',
            error_code text,
            error_message text,
            created_at text not null,
            queued_at text not null,
            started_at text,
            finished_at text,
            expires_at text
        ) strict"""
    )
    db.execute("create index tasks_queue on tasks (kind, turn, id) where state = 'queued' and delayed = 0")
    db.execute("create index tasks_delayed on tasks (not_before) where state = 'queued' and delayed = 1")
    db.execute("create index tasks_waiting on tasks (queued_at) where state = 'queued'")
    db.execute("create index tasks_running on tasks (lease_until) where state = 'running'")
    db.execute("create index tasks_asked on tasks (worker) where state = 'running' and asked <> ''")
    db.execute("create index tasks_user on tasks (user_id, id)")
    db.execute("create index tasks_deployment on tasks (deployment_id, id) where deployment_id is not null")
    db.execute("create index tasks_expiry on tasks (expires_at) where expires_at is not null")
    db.execute("create index tasks_age on tasks (finished_at) where finished_at is not null")
    for column in ("input_sha256", "result_sha256"):
        db.execute(f"create index tasks_{column} on tasks ({column}) where {column} is not null")
    _bodies_and_events(db)
    _batches(db)
    _queues(db)


def _bodies_and_events(db: SqliteDatabase) -> None:
    db.execute(
        """create table task_bodies (
            task_id text not null references tasks (id) on delete cascade,
            part text not null check (part in ('input', 'result')),
            body blob not null,
            primary key (task_id, part)
        ) strict"""
    )
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


def _batches(db: SqliteDatabase) -> None:
    db.execute(
        """create table batches (
            task_id text primary key references tasks (id) on delete cascade,
            format text not null,
            result_format text not null,
            file_name text not null default '',
            size integer not null default 0,
            rows_total integer,
            rows_done integer not null default 0,
            rows_failed integer not null default 0,
            input_offset integer not null default 0,
            result_offset integer not null default 0
        ) strict, without rowid"""
    )


def _queues(db: SqliteDatabase) -> None:
    """How many tasks of each user have not ended, kept by triggers, so that no limit needs counting; the row of user 0 is for all of them.
    `turn`: of a user's last task; of user 0: of the last one that was begun."""
    db.execute(
        """create table queues (
            user_id integer primary key,
            queued integer not null default 0,
            running integer not null default 0,
            paused integer not null default 0,
            turn real not null default 0
        ) strict"""
    )
    added = ", ".join(f"{state} = {state} + (new.state = '{state}')" for state in _COUNTED)
    moved = ", ".join(f"{state} = {state} + (new.state = '{state}') - (old.state = '{state}')" for state in _COUNTED)
    gone = ", ".join(f"{state} = {state} - (old.state = '{state}')" for state in _COUNTED)
    db.execute(
        "create trigger tasks_counted_in after insert on tasks begin"
        " insert or ignore into queues (user_id) values (0), (new.user_id);"
        f" update queues set {added} where user_id in (0, new.user_id); end"
    )
    db.execute(
        "create trigger tasks_counted_over after update of state on tasks when old.state <> new.state begin"
        f" update queues set {moved} where user_id in (0, new.user_id); end"
    )
    db.execute(
        f"create trigger tasks_counted_out after delete on tasks begin update queues set {gone} where user_id in (0, old.user_id); end"
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
            description text not null default '',
            enabled integer not null default 1,
            failures integer not null default 0,
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
    db.execute("create index deliveries_webhook on deliveries (webhook_id, id)")
    db.execute("create index deliveries_age on deliveries (finished_at) where finished_at is not null")


def m017_lists(db: SqliteDatabase) -> None:
    """Filtered lists of who has a million tasks, and notices that are due, without looking at all of them. Nearly all tasks have succeeded, and
    nearly all notices were delivered: the indexes have the others."""
    db.execute("create index tasks_user_state on tasks (user_id, state, id) where state <> 'succeeded'")
    db.execute("create index tasks_state on tasks (state, id) where state <> 'succeeded'")
    db.execute("create index tasks_user_batches on tasks (user_id, id) where kind = 'batch'")
    db.execute("create index tasks_batches on tasks (id) where kind = 'batch'")
    db.execute("create index tasks_user_model on tasks (user_id, model, id)")
    db.execute("drop index deliveries_due")
    db.execute("create index deliveries_due on deliveries (webhook_id, next_at) where state = 'pending'")
    db.execute("create index deliveries_open on deliveries (webhook_id, state, id) where state <> 'delivered'")


STEPS = (m013_tasks, m014_webhooks, m017_lists)
