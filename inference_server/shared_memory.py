"""The regions of shared memory that callers have registered: name -> opened region (system shared memory extension)."""

import threading

from idl.codes import Code, ServingError
from idl.messages import SharedRegion
from idl.shared_regions import Region

MOST_REGIONS = 1024
"""Each holds a descriptor."""


class SharedMemory:
    """Thread-safe. A region that is unregistered while a request uses it is closed when that request has ended."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._lock = threading.Lock()
        self._regions: dict[str, Region] = {}

    def _check_enabled(self) -> None:
        if not self.enabled:
            raise ServingError(Code.UNSUPPORTED, "shared memory is not enabled on this server (OUTBOARD_SERVER_SHARED_MEMORY)")

    def register(self, said: SharedRegion) -> None:
        """Raises unsupported, already_exists, invalid_input; insufficient_capacity beyond MOST_REGIONS."""
        self._check_enabled()
        region = Region(said)
        with self._lock:
            if said.name in self._regions:
                raise ServingError(Code.ALREADY_EXISTS, f"a shared memory region {said.name[:80]!r} is registered already")
            if len(self._regions) >= MOST_REGIONS:
                raise ServingError(Code.INSUFFICIENT_CAPACITY, f"{MOST_REGIONS} shared memory regions are registered, and no more can be")
            self._regions[said.name] = region

    def unregister(self, name: str) -> None:
        """ "": all of them. One that is not there is none, as with Triton's server: whatever its owner did, it is gone now."""
        self._check_enabled()
        with self._lock:
            gone = list(self._regions.values()) if not name else [self._regions.pop(name, None)]
            if not name:
                self._regions.clear()
        del gone  # closed outside the lock

    def status(self, name: str) -> tuple[SharedRegion, ...]:
        """Of one, or of all for "". Raises not_found."""
        self._check_enabled()
        if name:
            return (self.region(name).said,)
        with self._lock:
            return tuple(region.said for region in self._regions.values())

    def region(self, name: str) -> Region:
        """Raises not_found."""
        self._check_enabled()
        with self._lock:
            region = self._regions.get(name)
        if region is None:
            raise ServingError(Code.NOT_FOUND, f"there is no shared memory region {name[:80]!r}: it has not been registered")
        return region
