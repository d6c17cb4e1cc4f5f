"""Whether this gateway can do its work: each thing that it needs, tried for real."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.storage import Storage
from idl.codes import ServingError


@dataclass(frozen=True, slots=True)
class Check:
    """`kind` is database or model_host; `reason` says why it is not ready, and holds no path."""

    kind: str
    name: str
    ready: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Ready: the database takes writes and at least one model host is ready. One lost host of several is not the gateway's end."""

    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        kinds = ("database", "model_host")
        return all(any(check.ready for check in self.checks if check.kind == kind) for kind in kinds)


def readiness(storage: Storage, model_hosts: Callable[[float], Sequence[tuple[str, bool, str]]], timeout_s: float) -> Readiness:
    """`model_hosts` answers (address, ready, reason) for each, given the longest time to wait."""
    hosts = (Check("model_host", shown_address(address), ready, reason) for address, ready, reason in model_hosts(timeout_s))
    return Readiness((_database(storage), *hosts))


def _database(storage: Storage) -> Check:
    try:
        storage.database.probe()
    except ServingError as error:
        return Check("database", "database", False, error.message)
    return Check("database", "database", True)


def shown_address(address: str) -> str:
    """An address without the folder of a unix socket."""
    scheme, separator, rest = address.partition("://")
    return scheme + separator + rest.rsplit("/", 1)[-1] if "unix" in scheme else address
