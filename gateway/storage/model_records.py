"""What the stores of models hand out and take."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """`latest`: the newest version's number, None where all are deleted. `tags` sorted. Times are UTC, ISO 8601."""

    id: int
    owner_id: int
    owner: str
    name: str
    type: str
    description: str
    card: str
    visibility: str
    team_id: int | None
    team: str | None
    revision: int
    created_at: str
    updated_at: str
    deleted_at: str | None
    tags: tuple[str, ...]
    latest: int | None

    @property
    def full_name(self) -> str:
        """As anybody can say it."""
        return f"{self.owner}.{self.name}"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of a version besides its own; `beside`: it lies beside the versions on the model host, as `model.toml` does."""

    name: str
    sha256: str
    size: int
    beside: bool


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version. `signature`: {"inputs", "outputs"}; `facts`: what the model host found in the files; `measured`: what trying it took."""

    id: int
    model_id: int
    number: int
    format: str
    sha256: str
    size: int
    file_name: str
    signature: Mapping[str, Any]
    facts: Mapping[str, Any]
    measured: Mapping[str, Any]
    created_at: str


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """A line of a model's history. `by`: who sent it. `used_by`: deployments, as `owner.name`."""

    version: VersionRecord
    by: str
    deleted_at: str | None
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version that the model host has accepted, whose blobs are there."""

    format: str
    sha256: str
    size: int
    file_name: str
    signature: Mapping[str, Any]
    facts: Mapping[str, Any]
    measured: Mapping[str, Any]
    files: Sequence[FileRecord] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a list is of. `everything`: all of the platform, else what is public, `user_id`'s own and of his `teams`. "" and None: any.
    `deleted`: those instead, of `user_id` alone. `scope`: "mine", "teams" (what others share with them) or "public". `format`: the newest
    version's. `order`: one of `model_lists.ORDERS`."""

    user_id: int | None
    teams: Collection[int] = ()
    everything: bool = False
    text: str = ""
    type: str = ""
    tag: str = ""
    owner: str = ""
    visibility: str = ""
    deleted: bool = False
    scope: str = ""
    format: str = ""
    order: str = "name"
