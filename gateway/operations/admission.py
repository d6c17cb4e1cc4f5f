"""Whether what a deployment would reserve fits the model hosts, before anything is loaded: the host itself has the last word."""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.models_rpc import Models
from idl.codes import Code, ServingError
from idl.messages import Capacity

_TIMEOUT_S = 5.0
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Room:
    """What a host has and what of it can still be reserved: cores and bytes."""

    cpus: float
    cpus_free: float
    memory: int
    memory_free: int

    def fits(self, cpus: float, memory: int) -> bool:
        return cpus <= self.cpus_free + 1e-6 and memory <= self.memory_free


def rooms(models: Models, name: str, timeout_s: float = _TIMEOUT_S) -> Sequence[Room]:
    """Of every host that answers. What a deployment that is called `name` there has reserved itself counts as free."""
    return [_room(said, name) for _, said in models.capacities(timeout_s) if isinstance(said, Capacity)]


def _room(host: Capacity, name: str) -> Room:
    own = [model for model in host.models if model.name == name]
    return Room(
        host.cpus,
        max(0.0, host.cpus_free + sum(model.cpus for model in own)),
        host.memory_bytes,
        max(0, host.memory_free_bytes + sum(model.memory_reserved_bytes for model in own)),
    )


def require(models: Models, name: str, cpus: float | None, memory: int | None, instances: int) -> None:
    """Each host has room for `instances` of it, each with `cpus` cores and `memory` bytes; None: nothing is reserved.

    `name`: what it is called there, whose own reservation counts as free. A host that does not answer is asked later, by whoever loads.
    Raises insufficient_capacity, which says what is free.
    """
    if cpus is None and memory is None:
        return
    cores, size = (cpus or 0.0) * instances, (memory or 0) * instances
    for room in rooms(models, name):
        if not room.fits(cores, size):
            where = "the model host has" if len(models.hosts) == 1 else "a model host has"
            raise ServingError(
                Code.INSUFFICIENT_CAPACITY,
                f"it would reserve {_said(cores, size)}, and {where} {_said(room.cpus_free, room.memory_free)} free",
            )


def _said(cpus: float, memory: int) -> str:
    cores = f"{cpus:g} {'core' if cpus == 1 else 'cores'}"
    return f"{cores} and {memory / _GIB:.2f} GiB of memory"
