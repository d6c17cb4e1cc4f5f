"""Migrations: deployments, scripts, pinned requests, what deployments did over time, and their last errors."""

from sqlite_utils import Database as SqliteDatabase


def m010_scripts(db: SqliteDatabase) -> None:
    db.execute(
        """create table scripts (
            id integer primary key,
            owner_id integer not null references users (id),
            name text not null collate nocase,
            description text not null default '',
            revision integer not null default 1,
            created_at text not null,
            updated_at text not null,
            deleted_at text
        ) strict"""
    )
    db.execute("create unique index scripts_name on scripts (owner_id, name) where deleted_at is null")
    db.execute(
        """create table script_versions (
            id integer primary key,
            script_id integer not null references scripts (id) on delete cascade,
            number integer not null,
            sha256 text not null references blobs (sha256),
            functions text not null,
            created_by integer not null references users (id),
            created_at text not null,
            unique (script_id, number)
        ) strict"""
    )
    db.execute("create index script_versions_blob on script_versions (sha256)")


def m011_deployments(db: SqliteDatabase) -> None:
    """`desired_state` is what the owner wants, `state` what the model host was last seen to do. `version_id` is the version that is wanted,
    `serving_version_id` the one that answers. `generation` counts changes of what is wanted, `observed_generation` is the last one that
    the reconciler carried out. A row that is being deleted (`state` deleting) may have `deleted_at` already: then its name is free again. `reason`: why it is in its
    state; `notice`: what became of the last change, until the next. `check_golden` 0: the wanted version has
    served before and is gone back to, at once."""
    db.execute(
        """create table deployments (
            id integer primary key,
            owner_id integer not null references users (id),
            name text not null collate nocase,
            model_id integer not null references models (id),
            version_id integer not null references model_versions (id),
            serving_version_id integer references model_versions (id),
            visibility text not null default 'private' check (visibility in ('private', 'team', 'public')),
            team_id integer references teams (id),
            desired_state text not null check (desired_state in ('running', 'paused', 'deleted')),
            state text not null
                check (state in ('starting', 'running', 'pausing', 'paused', 'sleeping', 'failed', 'deleting', 'deleted')),
            reason text not null default '',
            notice text not null default '',
            instances integer not null default 1,
            min_instances integer,
            max_instances integer,
            cpus real,
            memory integer,
            sleep_after_s integer,
            canary_version_id integer references model_versions (id),
            canary_percent integer not null default 0,
            previous_version_id integer references model_versions (id),
            check_golden integer not null default 1,
            script_version_id integer references script_versions (id),
            golden_tolerance real not null default 0.001,
            shown_time text not null default '',
            generation integer not null default 1,
            observed_generation integer not null default 0,
            retry_at real not null default 0,
            failures integer not null default 0,
            last_call_at text,
            revision integer not null default 1,
            created_at text not null,
            updated_at text not null,
            deleted_at text
        ) strict"""
    )
    db.execute("create unique index deployments_name on deployments (owner_id, name) where deleted_at is null")
    db.execute("create index deployments_model on deployments (model_id)")
    db.execute("create index deployments_team on deployments (team_id) where team_id is not null")
    db.execute("create index deployments_public on deployments (id) where visibility = 'public' and deleted_at is null")
    db.execute("create index deployments_alive on deployments (id) where state <> 'deleted'")
    _golden(db)


def _golden(db: SqliteDatabase) -> None:
    db.execute(
        """create table golden (
            id integer primary key,
            deployment_id integer not null references deployments (id) on delete cascade,
            name text not null,
            request_sha256 text not null references blobs (sha256),
            content_type text not null,
            answer_sha256 text not null references blobs (sha256),
            created_by integer not null references users (id),
            created_at text not null,
            unique (deployment_id, name)
        ) strict"""
    )


def m012_deployment_statistics(db: SqliteDatabase) -> None:
    """`span` 10, 60 or 3600 s; `begin` in seconds since the epoch, a multiple of it. `errors`: JSON, code -> count. `latency`: JSON, counts in
    the fixed buckets of the statistics. Sums in ns, memory in bytes at its highest. `deployment_counters`: what a host said last of a
    version, as JSON, so that the next look knows what is new; `epoch` is another number after each start of that host."""
    db.execute(
        """create table deployment_statistics (
            deployment_id integer not null references deployments (id) on delete cascade,
            span integer not null,
            begin integer not null,
            requests integer not null,
            errors text not null,
            latency text not null,
            total_ns integer not null,
            queue_ns integer not null,
            compute_ns integer not null,
            memory integer not null,
            primary key (deployment_id, span, begin)
        ) strict, without rowid"""
    )
    db.execute("create index deployment_statistics_age on deployment_statistics (span, begin)")
    db.execute(
        """create table deployment_counters (
            host text not null,
            model text not null,
            version text not null,
            epoch real not null,
            counts text not null,
            seen_at real not null,
            primary key (host, model, version)
        ) strict, without rowid"""
    )


def m019_golden_blobs(db: SqliteDatabase) -> None:
    """Which files are named is asked of each of them."""
    for column in ("request_sha256", "answer_sha256"):
        db.execute(f"create index golden_{column} on golden ({column})")


def m020_serving_scripts(db: SqliteDatabase) -> None:
    """`script_version_id` is the script that is wanted, `serving_script_id` the one around what serves."""
    db.execute("alter table deployments add column serving_script_id integer references script_versions (id)")
    db.execute("update deployments set serving_script_id = script_version_id where serving_version_id is not null")


def m021_deployment_errors(db: SqliteDatabase) -> None:
    db.execute(
        """create table deployment_errors (
            id integer primary key autoincrement,
            deployment_id integer not null references deployments (id) on delete cascade,
            at text not null,
            request_id text not null,
            way text not null,
            code text not null,
            message text not null
        ) strict"""
    )
    db.execute("create index deployment_errors_deployment on deployment_errors (deployment_id, id)")
    db.execute("create index deployment_errors_age on deployment_errors (at)")


STEPS = (
    *(m010_scripts, m011_deployments, m012_deployment_statistics, m019_golden_blobs, m020_serving_scripts),
    m021_deployment_errors,
)
