"""Models of users: taking them in, finding them, changing them, and forgetting them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from gateway import clock
from gateway.errors import ChangedMeanwhile, InvalidFields
from gateway.models_rpc import Models
from gateway.operations import model_files, names, quotas
from gateway.operations.access import Access, Can, Shared
from gateway.operations.model_files import Placed, SentFile
from gateway.operations.uploads import Uploads
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.audit import Doer
from gateway.storage.model_records import ModelRecord, NewVersion, VersionEntry, VersionRecord, Wanted
from gateway.types import Principal, Role
from idl.codes import Code, ServingError

VISIBILITIES = ("private", "team", "public")
_OWNERS = ("name", "visibility", "team")
"""What its owner alone may change: whose it is to see, and what it is called in his name."""
_HOUSEKEEPER = Doer(None, "housekeeping")
_YOUNG = timedelta(hours=1)
"""Files that nothing names are left alone so long: somebody may be about to name them."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model as somebody sees it. `version` None: it has none any more."""

    model: ModelRecord
    version: VersionRecord | None
    can: Can


class Library:
    """The verbs on models. Thread-safe. `principal` None: nobody is signed in."""

    def __init__(self, storage: Storage, models: Models, access: Access, settings: Settings, now: clock.Clock = clock.now) -> None:
        self._storage = storage
        self._rows = storage.models
        self._models = models
        self._access = access
        self._settings = settings
        self._now = now
        self.uploads = Uploads(storage, settings, now)

    # finding -------------------------------------------------------------------------------------------------------------------------

    def find(self, principal: Principal | None, name: str, wanted: Can = Can.READ) -> Found:
        """The model that `name` means in a path of `/v1`, with its newest version: a plain name is the caller's own.

        Raises model_not_found, also for what may not be seen; unauthenticated, forbidden.
        """
        return self._found(principal, self.named(principal, name), name, wanted)

    def named(self, principal: Principal | None, name: str) -> ModelRecord | None:
        """The same, whoever may see it."""
        asked = names.addressed(name)
        if asked.owner:
            return self._rows.find(asked.owner, asked.name)
        return self._rows.of_owner(principal.user_id, asked.name) if principal is not None else None

    def version(self, found: Found, number: int | None) -> VersionRecord:
        """None: the newest. Raises version_not_found."""
        version = found.version if number is None else self._rows.version(found.model.id, number)
        if version is None:
            which = "a version" if number is None else f"version {number}"
            raise ServingError(Code.VERSION_NOT_FOUND, f"model {found.model.name!r} does not have {which}")
        return version

    def versions(self, found: Found, after: int | None, limit: int) -> list[VersionRecord]:
        """Newest first."""
        return self._rows.versions(found.model.id, after, limit)

    def history(self, found: Found, after: int | None, limit: int) -> list[VersionEntry]:
        """The same, with who sent each, and for whoever may change the model those that can be restored and the deployments that use each."""
        may = Can.CHANGE in found.can
        entries = self._rows.history(found.model.id, after, limit, deleted=may)
        return entries if may else [replace(entry, used_by=()) for entry in entries]

    def listed(self, principal: Principal | None, wanted: Wanted, after: Sequence[Any] | None, limit: int) -> list[Found]:
        """What the caller may see of what is `wanted`, in its order. Of `wanted` only the filters count."""
        if wanted.deleted and principal is None:
            return []
        everything = principal is not None and principal.role is not Role.USER
        user_id = None if principal is None else principal.user_id
        teams = () if user_id is None else self._storage.teams.roles_of(user_id).keys()
        records = self._rows.listed(replace(wanted, user_id=user_id, teams=teams, everything=everything), after, limit)
        newest = self._rows.latest([record.id for record in records])
        return [Found(record, newest.get(record.id), self._access.of(principal, _shared(record))) for record in records]

    def placed(self, version: VersionRecord) -> AbstractContextManager[Sequence[Placed]]:
        """Everything that a model host needs of a version, while the block lasts: see `model_files.placed`."""
        return model_files.placed(self._storage, version)

    # taking in -----------------------------------------------------------------------------------------------------------------------

    def create(self, principal: Principal, values: Mapping[str, Any], files: Sequence[SentFile], doer: Doer) -> Found:
        """A model with its first version. `values`: name and what `change` takes; the first of the files is the model.

        Raises invalid_input by field, already_exists, what `Client.validate` raises (invalid_model: it cannot be served), and
        insufficient_capacity for a quota or a full disk. A refused one leaves nothing behind.
        """
        columns, tags = self._columns(principal, values, None)
        self._refuse_quota(principal.user_id, files, new=True)
        if self._rows.of_owner(principal.user_id, columns["name"]) is not None:  # before the costly part; the store asks again
            raise ServingError(Code.ALREADY_EXISTS, f"name: there is a model {columns['name']!r}")
        version = self._accepted(files)
        most = self._storage.quotas.limit(principal.user_id, "models")
        made = self._rows.create(principal.user_id, columns, tags or (), version, doer, self._now(), most or 1 << 62)
        return self._again(principal, made)

    def add_version(self, principal: Principal, name: str, files: Sequence[SentFile], doer: Doer) -> Found:
        """A new version, which is then the newest. Raises as `create`."""
        found = self.find(principal, name, Can.CHANGE)
        self._refuse_quota(found.model.owner_id, files, new=False)
        made, _ = self._rows.add_version(found.model.id, self._accepted(files), doer, self._now())
        return self._again(principal, made)

    # changing ------------------------------------------------------------------------------------------------------------------------

    def change(
        self,
        principal: Principal,
        name: str,
        values: Mapping[str, Any],
        doer: Doer,
        revision: int | None = None,
        files: Sequence[SentFile] = (),
    ) -> Found:
        """`values`: name, type, description, card, tags, visibility, team (a name or None). `files`: of a new version.

        Raises conflict (ChangedMeanwhile) where it is another revision than asked, already_exists, and as `create`.
        """
        found = self.find(principal, name, Can.OWN if any(field in values for field in _OWNERS) else Can.CHANGE)
        columns, tags = self._columns(principal, values, found.model)
        if revision not in (None, found.model.revision):
            raise ChangedMeanwhile
        version = None
        if files:
            self._refuse_quota(found.model.owner_id, files, new=False)
            version = self._accepted(files)
        made = self._rows.change(found.model.id, columns, tags, doer, self._now(), revision, version)
        if made is None:
            raise ChangedMeanwhile
        return self._again(principal, made)

    def delete(self, principal: Principal, name: str, doer: Doer, revision: int | None = None, *, used: bool = False) -> None:
        """It can be restored for a while. Raises conflict while deployments use it; with `used` those go on, and it is kept for them."""
        found = self.find(principal, name, Can.OWN)
        if not self._rows.delete(found.model.id, doer, self._now(), revision, used=used):
            raise ChangedMeanwhile

    def deleted(self, principal: Principal, name: str) -> Found:
        """The one of that name that was deleted last. Raises model_not_found."""
        asked = names.addressed(name)
        owner_id: int | None = principal.user_id
        if asked.owner and asked.owner.lower() != principal.name.lower():
            owner = self._storage.users.by_name(asked.owner)
            owner_id = owner.id if owner is not None else None
        record = None if owner_id is None else self._rows.last_deleted(owner_id, asked.name)
        return self._found(principal, record, name, Can.OWN)

    def restore(self, principal: Principal, name: str, doer: Doer) -> Found:
        """That one is there again. Raises as `deleted`, and already_exists."""
        found = self.deleted(principal, name)
        return self._again(principal, self._rows.restore(found.model.id, doer, self._now()))

    def delete_version(self, principal: Principal, name: str, number: int, doer: Doer) -> None:
        """Raises conflict for the only one, and while deployments use it; version_not_found."""
        found = self.find(principal, name, Can.CHANGE)
        self._rows.delete_version(found.model.id, number, doer, self._now())

    def restore_version(self, principal: Principal, name: str, number: int, doer: Doer) -> VersionRecord:
        """Until it is purged. Raises version_not_found."""
        found = self.find(principal, name, Can.CHANGE)
        return self._rows.restore_version(found.model.id, number, doer, self._now())

    # housekeeping --------------------------------------------------------------------------------------------------------------------

    def tidy(self, *, dry_run: bool = False) -> Mapping[str, int]:
        """Forgets what was deleted long ago, and files that nothing needs; how many of each, and how many bytes."""
        now = self._now()
        purged = self._rows.purge(now - timedelta(days=self._settings.purge_after_days), _HOUSEKEEPER, now, dry_run=dry_run)
        count, size = self._storage.blobs.sweep(now - _YOUNG, dry_run=dry_run)
        if not dry_run:
            self._storage.uploads.sweep(now)
            self._storage.blobs.sweep_partial(now - timedelta(seconds=self._settings.upload_ttl_s))
            self._storage.sweep_scratch(now - timedelta(seconds=self._settings.upload_ttl_s))
        return {"models": purged, "files": count, "bytes": size}

    # inside --------------------------------------------------------------------------------------------------------------------------

    def _found(self, principal: Principal | None, record: ModelRecord | None, name: str, wanted: Can) -> Found:
        shared = None if record is None else _shared(record)
        can = self._access.require(principal, shared, wanted, f"model {name[:140]!r}", Code.MODEL_NOT_FOUND)
        assert record is not None, "there is nothing that somebody may do with nothing"
        return Found(record, None if record.latest is None else self._rows.version(record.id, record.latest), can)

    def _again(self, principal: Principal, record: ModelRecord) -> Found:
        version = None if record.latest is None else self._rows.version(record.id, record.latest)
        return Found(record, version, self._access.of(principal, _shared(record)))

    def _accepted(self, files: Sequence[SentFile]) -> NewVersion:
        """Tried by a model host, and its blobs kept."""
        version = model_files.version_of(model_files.tried(self._models, files, self._settings.upload_timeout_s), files)
        for file in files:
            self._storage.blobs.adopt(file.path, file.sha256, file.size, self._now())
        return version

    def _refuse_quota(self, owner_id: int, files: Sequence[SentFile], *, new: bool) -> None:
        """Raises insufficient_capacity."""
        if not files:
            raise InvalidFields({"model": "is missing: a file"})
        rows = self._storage.quotas
        for kind, more in (("models", int(new)), ("bytes", sum(file.size for file in files))):
            limit = rows.limit(owner_id, kind)
            if more and limit and rows.used(owner_id, kind) + more > limit:
                what = "models" if kind == "models" else "bytes of models"
                raise ServingError(Code.INSUFFICIENT_CAPACITY, f"this would be more than the {limit} {what} that are allowed for each user")
        quotas.require_room(self._storage, owner_id, sum(file.size for file in files))

    def _columns(
        self, principal: Principal, values: Mapping[str, Any], now: ModelRecord | None
    ) -> tuple[dict[str, Any], Sequence[str] | None]:
        """What is to be written, and the tags, None for those that are there. Raises invalid_input, not_found for a team."""
        columns = {key: value for key, value in values.items() if key not in ("tags", "team")}
        if "name" in columns:
            names.refuse("name", columns["name"])
        visibility = columns.get("visibility", now.visibility if now else "private")
        team_id = now.team_id if now else None
        if "team" in values:
            team_id = None if values["team"] is None else self._team(principal, values["team"])
        if visibility == "team" and team_id is None:
            raise InvalidFields({"team": "is missing: visibility team needs one"})
        if visibility == "private":
            team_id = None
        if "team" in values or "visibility" in values:
            columns["team_id"] = team_id
        return columns, values.get("tags")

    def _team(self, principal: Principal, name: str) -> int:
        """Raises invalid_input for a team that the caller cannot give things to."""
        team = self._storage.teams.by_name(name)
        if team is not None and principal.role is Role.ADMINISTRATOR:
            return team.id
        if team is None or self._storage.teams.roles_of(principal.user_id).get(team.id) not in ("owner", "editor"):
            raise InvalidFields({"team": f"{name!r} is no team that you are an owner or editor of"})
        return team.id


def _shared(record: ModelRecord) -> Shared:
    return Shared(record.owner_id, record.visibility, record.team_id)
