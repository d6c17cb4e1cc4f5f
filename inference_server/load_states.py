"""What is loading now, and why what failed to load did: what the index and the refusals say. Thread-safe."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class LoadStates:
    """Versions by model and number; number 0 stands for a failure before a version was chosen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loading: set[tuple[str, int]] = set()
        self._failures: dict[str, dict[int, str]] = {}

    @contextmanager
    def loading(self, name: str, versions: Iterable[int]) -> Iterator[None]:
        """While it lasts, they are."""
        keys = {(name, version) for version in versions}
        with self._lock:
            self._loading |= keys
        try:
            yield
        finally:
            with self._lock:
                self._loading -= keys

    def failed(self, name: str, versions: Iterable[int], reason: str) -> None:
        """`reason`: as a caller was told it; where it names one version ("model 'm' version 4: why"), only that one has failed."""
        versions = tuple(versions) or (0,)
        for version in versions:
            if reason.startswith(head := f"model {name!r} version {version}: "):
                versions, reason = (version,), reason.removeprefix(head)
                break
        with self._lock:
            self._failures.setdefault(name, {}).update(dict.fromkeys(versions, reason))

    def loaded(self, name: str, versions: Iterable[int]) -> None:
        with self._lock:
            for version in (0, *versions):
                self._failures.get(name, {}).pop(version, None)

    def forget(self, name: str) -> None:
        with self._lock:
            self._failures.pop(name, None)

    def is_loading(self, name: str, version: int = 0) -> bool:
        """One version, or without one any."""
        with self._lock:
            return (name, version) in self._loading if version else any(loading == name for loading, _ in self._loading)

    def why(self, name: str, version: int = 0) -> str:
        """Why the last load of a version failed, or without one the last of the highest that did; "" where none has."""
        with self._lock:
            failures = self._failures.get(name, {})
            return failures.get(version or max(failures, default=0), "")

    def before_a_version(self, name: str) -> str:
        """Why the last load failed before it came to a version; "" where it did not."""
        with self._lock:
            return self._failures.get(name, {}).get(0, "")
