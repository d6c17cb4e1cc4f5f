"""Labels of a model's versions, `stable` and `canary` among them, and how much of what names no version goes to the canary.

An owner writes them into `model.toml`; what is set at run time is kept in a file beside the version folders and stands above that, so
that a restart serves what the last change left.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idl.codes import Code, ServingError
from inference_server import errors, whole_files
from inference_server.setting_checks import InvalidModelSettings, bad, is_whole

STABLE, CANARY = "stable", "canary"
LABELS_FILE = "serving-labels"
"""Beside the version folders: what the last change at run time left, as JSON."""
MOST_LABELS = 32
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Labels:
    """`versions`: label -> version. `canary_percent`: of the requests that name no version, those that go to `canary`."""

    versions: Mapping[str, int] = field(default_factory=dict)
    canary_percent: int = 0

    def split(self, default: int) -> tuple[tuple[int, int], ...]:
        """((version, weight), ...) for requests that name none; without `stable` they go to `default`."""
        stable, canary = self.versions.get(STABLE, default), self.versions.get(CANARY)
        if canary is None or canary == stable or not self.canary_percent:
            return ((stable, 1),)
        if self.canary_percent == 100:
            return ((canary, 1),)
        return ((stable, 100 - self.canary_percent), (canary, self.canary_percent))

    def only(self, loaded: Collection[int]) -> "Labels":
        """Without the labels of versions that are not there; without a canary nothing goes to it."""
        versions = {label: version for label, version in self.versions.items() if version in loaded}
        both = STABLE in versions and CANARY in versions
        return Labels(versions, self.canary_percent if both else 0)


def checked(versions: Any, canary_percent: Any) -> Labels:
    """Raises InvalidModelSettings, naming the key, where they are not labels or do not go together."""
    if not isinstance(versions, Mapping) or len(versions) > MOST_LABELS:
        raise bad("version_labels", versions, f"a table of at most {MOST_LABELS} of label = version")
    for label, version in versions.items():
        if not isinstance(label, str) or not _LABEL.fullmatch(label):
            raise bad("version_labels", label, "a label: a letter, then at most 63 letters, digits, '-' and '_'")
        if not is_whole(version, 1, 10**18 - 1):
            raise bad(f"version_labels.{label}", version, "a version, a whole number from 1")
    if not is_whole(canary_percent, 0, 100):
        raise bad("canary_percent", canary_percent, "a whole number from 0 to 100")
    if canary_percent and not (STABLE in versions and CANARY in versions):
        raise InvalidModelSettings(f"canary_percent = {canary_percent} needs the labels {STABLE!r} and {CANARY!r} in version_labels")
    return Labels(dict(versions), canary_percent)


def check(name: str, versions: Mapping[str, int], canary_percent: int, loaded: Collection[int]) -> Labels:
    """What a caller asks for at run time. Raises invalid_input, and conflict for a version that is not loaded."""
    try:
        labels = checked(versions, canary_percent)
    except InvalidModelSettings as error:
        raise errors.invalid_input(f"model {name!r}: {error}") from error
    for label, version in labels.versions.items():
        if version not in loaded:
            have = ", ".join(map(str, sorted(loaded))) or "none"
            how = "version_policy in model.toml says which are, { latest = 2 } the newest two: change it and reload"
            raise ServingError(Code.CONFLICT, f"model {name!r}: label {label!r} cannot name version {version}: loaded are {have}; {how}")
    return labels


def read(folder: Path) -> Labels | None:
    """What the last change left beside the versions; None where there was none, or the file is not one of ours."""
    try:
        with (folder / LABELS_FILE).open("rb") as file:
            said = json.loads(file.read(_MAX_BYTES))
        return checked(said["labels"], said["canary_percent"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def write(folder: Path, labels: Labels | None) -> bool:
    """Remembers them over restarts; None: what the owner wrote holds again. False where the folder cannot be written."""
    path = folder / LABELS_FILE
    try:
        if labels is None:
            path.unlink(missing_ok=True)
            return True
        text = json.dumps({"labels": dict(labels.versions), "canary_percent": labels.canary_percent}) + "\n"
        whole_files.write(path, text)
    except OSError:
        return False
    return True


def described(labels: Labels) -> str:
    """As a model's properties have them: "canary=4 (10 %), stable=3"."""
    share = f" ({labels.canary_percent} %)"
    return ", ".join(f"{label}={version}{share if label == CANARY else ''}" for label, version in sorted(labels.versions.items()))


def reader(key: str, value: Any, folder: Path) -> dict[str, int]:
    """Of the key `version_labels`."""
    return dict(checked(value, 0).versions)
