"""What has changed in a repository, seen by looking at it again and again.

A file that is being copied grows, or at least its times move, so a version counts only once its files have stood still from one look to
the next, and only while no `.part` lies among them. Times alone would miss a change within one tick of the file system's clock: size,
inode and change time, which no tool can set, are compared as well. What stalls for longer than the interval in the middle of a copy
cannot be told from what is finished: writers that may stall should write beside and rename, as `put_file` does.

No clock and no thread of its own: `step` is one look.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inference_server import model_folders
from inference_server.file_stamps import Stamp, stamps
from inference_server.load_order import PIN_FILE, VERSION
from inference_server.repository import Repository
from inference_server.version_labels import LABELS_FILE

LONGEST_WAIT = 64
"""Looks between two tries of a load that fails for a reason that may pass, in the end."""
_OURS = (PIN_FILE, LABELS_FILE)
"""Written by this server while it serves: no change of an owner's."""


@dataclass(frozen=True, slots=True)
class Look:
    """One model at one moment. A version that is plainly being written is in `unfinished` and not in `versions`."""

    beside: tuple[Stamp, ...] = ()
    versions: Mapping[int, tuple[Stamp, ...]] = field(default_factory=dict)
    unfinished: frozenset[int] = frozenset()
    is_written: bool = False
    """A `.part` lies beside the version folders."""


@dataclass(frozen=True, slots=True)
class Change:
    """Load `name` as if it had only `versions`; empty: it is gone, unload it."""

    name: str
    versions: tuple[int, ...]


class RepositoryPoll:
    """Not thread-safe: one thread looks."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._last: dict[str, Look] = {}
        self._taken: dict[str, Look] = {}
        """Model -> the state that was last handed out as a change."""
        self._again: dict[str, tuple[int, int]] = {}
        """Model -> (looks to wait before its change is handed out once more, how many the next time)."""
        self._devices: tuple[int, ...] = ()
        self.waiting: frozenset[str] = frozenset()
        """Models of the first look that were still changing, until they are handed out or dropped."""
        self.dropped: frozenset[str] = frozenset()
        """Of `waiting`, what the last step has found to be gone, or to stand still without being a model."""

    def step(self) -> list[Change]:
        """What is to be done since the last step. Raises OSError where a repository cannot be read: then nothing has changed."""
        self.dropped = frozenset()
        now = self._look()
        changes = [change for name in sorted({*now, *self._taken}) if (change := self._compare(name, now.get(name)))]
        waited = self.waiting - {change.name for change in changes}
        self.waiting = frozenset(name for name in waited if name in now and now[name] != self._last.get(name))
        self.dropped = waited - self.waiting
        self._last = now
        return changes

    def first(self, before_ns: int) -> list[Change]:
        """The first step of a server's life: what has not changed since `before_ns`, of the clock of file times, counts as still."""
        now = self._look()
        self._last = {name: _older(seen, before_ns) for name, seen in now.items()}
        changes = [change for name in sorted(now) if (change := self._compare(name, now[name]))]
        found = {name for name, seen in now.items() if seen.versions or seen.unfinished}
        self.waiting = frozenset(found - {change.name for change in changes})
        self._last = now
        return changes

    def again(self, name: str) -> None:
        """A change that could not be carried out for a reason that may pass: it is handed out once more, each time after a longer wait."""
        _, wait = self._again.get(name, (0, 0))
        self._again[name] = (wait, min(max(1, 2 * wait), LONGEST_WAIT))

    def _look(self) -> dict[str, Look]:
        """A repository that is on another file system than before is not one from which everything was removed: a mount is missing."""
        devices = self._repository.devices()
        if self._devices not in ((), devices):
            raise OSError("a repository is on another file system than at the start")
        self._devices = devices
        return {name: look(folder) for name, folder in self._repository.folders().items()}

    def unfinished(self, name: str) -> Collection[int]:
        """Versions that are there and were not handed out as they are, because they were still changing at the last look."""
        seen, taken = self._last.get(name, Look()), self._taken.get(name, Look())
        return seen.unfinished | {version for version, files in seen.versions.items() if taken.versions.get(version) != files}

    def _compare(self, name: str, now: Look | None) -> Change | None:
        last, taken = self._last.get(name), self._taken.get(name)
        if now is None:
            if last is not None or taken is None:  # perhaps only for the moment between two renames
                return None
            del self._taken[name]
            self._again.pop(name, None)
            return Change(name, ())
        if last is None or now.is_written or now.beside != last.beside:
            return None
        settled = Look(now.beside, dict(_settled(now, last, taken or Look())))
        if settled == taken and not self._is_again(name):
            return None
        if not settled.versions and taken is None:
            return None
        if settled != taken:
            self._again.pop(name, None)
        self._taken[name] = settled
        return Change(name, tuple(sorted(settled.versions)))

    def _is_again(self, name: str) -> bool:
        left, following = self._again.get(name, (-1, 0))
        if left > 0:
            self._again[name] = (left - 1, following)
        elif left == 0:
            self._again[name] = (-1, following)
        return left == 0


def _settled(now: Look, last: Look, taken: Look) -> Iterator[tuple[int, tuple[Stamp, ...]]]:
    """The versions that may be served: those that stand still, and of those that do not, as they were before."""
    for version in {*now.versions, *now.unfinished, *last.versions, *last.unfinished}:
        stamp = now.versions.get(version)
        if stamp is not None and stamp == last.versions.get(version):
            yield version, stamp
        elif version in taken.versions:
            yield version, taken.versions[version]


def _older(seen: Look, before_ns: int) -> Look:
    """Of a first look, what has certainly stood still: as if there had been one before."""
    still = {version: stamp for version, stamp in seen.versions.items() if _is_older(stamp, before_ns)}
    return Look(seen.beside if _is_older(seen.beside, before_ns) else (("", -1, 0, 0, 0),), still)


def _is_older(files: tuple[Stamp, ...], before_ns: int) -> bool:
    return all(ctime < before_ns for _, _, _, ctime, _ in files)


def look(folder: Path) -> Look:
    """A model's folder as it is now."""
    beside: list[Stamp] = []
    versions: dict[int, list[Stamp]] = {}
    unfinished: set[int] = set()
    is_written = False
    for stamp in stamps(folder):
        first, _, inner = stamp[0].partition("/")
        version = int(first) if inner and VERSION.fullmatch(first) else 0
        if first.removeprefix(".").startswith(_OURS) or (first.startswith(".") and inner):
            continue  # hidden folders are where mounted volumes keep what links lead to
        if stamp[0].endswith(".part"):
            unfinished.add(version)
            is_written = is_written or not version
        elif version:
            versions.setdefault(version, []).append(stamp)
        else:
            beside.append(stamp)
    if bare := [version for version in model_folders.versions(folder, bare=True) if version not in (*versions, *unfinished)]:
        versions |= {version: [] for version in bare if model_folders.is_pipeline(folder)}
    whole = {version: tuple(files) for version, files in versions.items() if version not in unfinished}
    return Look(tuple(beside), whole, frozenset(unfinished - {0}), is_written)
