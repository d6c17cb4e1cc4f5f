"""Which control groups this process is in: version 1, 2, or both beside each other, seen from inside a container or not.

`/proc/self/cgroup` names the group, `/proc/self/mountinfo` the folder that it is mounted at (cgroups(7)). In a container the two may
disagree: a path above what is mounted cannot be reached, and counts as none.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """`version` 1 or 2; `folder` of the group itself, `top` of its hierarchy's mount."""

    version: int
    folder: Path
    top: Path

    def levels(self) -> Iterator[Path]:
        """The group's folder and those above it: a limit of each counts."""
        folder = self.folder
        while True:
            yield folder
            if folder == self.top:
                return
            folder = folder.parent


def own(controller: str, proc: Path = Path("/proc/self")) -> ControlGroup | None:
    """The group that this process is in for `controller` ("memory", "cpu", "pids"), None where it has none.

    One of version 2 is found also where that controller is not on for it: it may be for a group above, whose limit counts.
    """
    try:
        paths = _paths((proc / "cgroup").read_text())
        mounts = (proc / "mountinfo").read_text()
    except OSError:
        return None
    return _find(1, controller, paths, mounts) or _find(2, "", paths, mounts)


def _paths(text: str) -> dict[str, str]:
    """Controller -> group; "" for version 2."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        found |= dict.fromkeys(controllers.split(","), path)
    return found


def _find(version: int, controller: str, paths: dict[str, str], mounts: str) -> ControlGroup | None:
    """`controller`: "" for version 2, which has one hierarchy for all."""
    if controller not in paths:
        return None
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        if kind != ("cgroup" if controller else "cgroup2") or controller not in ("", *options.split(" ")[-1].split(",")):
            continue
        root, top = (_unescaped(text) for text in mount.split(" ")[3:5])
        inside = os.path.relpath(paths[controller], root)
        folder = Path(top) if inside == "." else Path(top) / inside
        if ".." not in Path(inside).parts and folder.is_dir():
            return ControlGroup(version, folder, Path(top))
    return None


def _unescaped(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def number(path: Path) -> int | None:
    """What a file of a group holds, None for "max", a wild value, or no such file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def field(path: Path, key: str) -> int:
    """One line `key value` of a file of a group; 0 where there is none."""
    words = _words(path)
    found = dict(zip(words[::2], words[1::2], strict=False)).get(key, "")
    return int(found) if found.isdigit() else 0
