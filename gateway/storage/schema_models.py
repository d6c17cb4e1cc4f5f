"""Migrations: files by their content, and the models of users."""

from sqlite_utils import Database as SqliteDatabase


def m008_blobs(db: SqliteDatabase) -> None:
    """Files on the disk under their SHA-256; what no row names is removed some time after. An upload's bytes are a file beside: how many came
    is how long that is."""
    db.execute(
        """create table blobs (
            sha256 text primary key check (length(sha256) = 64),
            size integer not null,
            created_at text not null
        ) strict, without rowid"""
    )
    db.execute(
        """create table uploads (
            id text primary key,
            user_id integer not null references users (id),
            file_name text not null,
            size integer not null,
            sha256 text,
            created_at text not null,
            expires_at text not null
        ) strict, without rowid"""
    )
    db.execute("create index uploads_expiry on uploads (expires_at)")
    db.execute("create index uploads_user on uploads (user_id)")


def m009_models(db: SqliteDatabase) -> None:
    """A model is a name with versions, of which `versions` were made in all; a version's files never change. JSON in `signature`, `facts` and `measured`. `version_files`: what a
    version has besides its own file: its weights, its `model.toml`, its labels; `beside` those that lie beside the versions. `test_loads`:
    what is loaded on the model hosts to be tried."""
    db.execute(
        """create table models (
            id integer primary key,
            owner_id integer not null references users (id),
            name text not null collate nocase,
            type text not null default '',
            description text not null default '',
            card text not null default '',
            visibility text not null default 'private' check (visibility in ('private', 'team', 'public')),
            team_id integer references teams (id),
            versions integer not null default 0,
            revision integer not null default 1,
            created_at text not null,
            updated_at text not null,
            deleted_at text
        ) strict"""
    )
    db.execute("create unique index models_name on models (owner_id, name) where deleted_at is null")
    db.execute("create index models_team on models (team_id) where team_id is not null")
    db.execute("create index models_public on models (id) where visibility = 'public' and deleted_at is null")
    db.execute(
        """create table model_tags (
            model_id integer not null references models (id) on delete cascade,
            tag text not null collate nocase,
            primary key (model_id, tag)
        ) strict, without rowid"""
    )
    _versions(db)


def _versions(db: SqliteDatabase) -> None:
    db.execute(
        """create table model_versions (
            id integer primary key,
            model_id integer not null references models (id) on delete cascade,
            number integer not null,
            format text not null,
            sha256 text not null references blobs (sha256),
            size integer not null,
            file_name text not null,
            signature text not null,
            facts text not null,
            measured text not null,
            created_by integer not null references users (id),
            created_at text not null,
            deleted_at text,
            unique (model_id, number)
        ) strict"""
    )
    db.execute("create index model_versions_blob on model_versions (sha256)")
    db.execute(
        """create table version_files (
            version_id integer not null references model_versions (id) on delete cascade,
            name text not null,
            sha256 text not null references blobs (sha256),
            size integer not null,
            beside integer not null,
            primary key (version_id, name)
        ) strict, without rowid"""
    )
    db.execute("create index version_files_blob on version_files (sha256)")
    db.execute(
        """create table test_loads (
            name text primary key,
            version_id integer not null,
            number integer not null,
            memory integer not null,
            ready integer not null default 0,
            used_at real not null
        ) strict, without rowid"""
    )


def m018_names(db: SqliteDatabase) -> None:
    """Lists of models are by name, whoever may see them; what a user has besides, deleted and all, is asked at each upload."""
    db.execute("create index models_list on models (name, id) where deleted_at is null")
    db.execute("create index models_owner on models (owner_id)")


STEPS = (m008_blobs, m009_models, m018_names)
