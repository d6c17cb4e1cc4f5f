"""Whether what a deployment would reserve fits the model hosts, before anything is loaded: the host itself has the last word."""

from gateway.models_rpc import Models
from idl.codes import Code, ServingError
from idl.messages import Capacity

_TIMEOUT_S = 5.0
_GIB = 1 << 30


def require(models: Models, name: str, cpus: float | None, memory: int | None, instances: int) -> None:
    """Each host has room for `instances` of it, each with `cpus` cores and `memory` bytes; None: nothing is reserved.

    `name`: what it is called there, whose own reservation counts as free. A host that does not answer is asked later, by whoever loads.
    Raises insufficient_capacity, which says what is free.
    """
    if cpus is None and memory is None:
        return
    for address, said in models.capacities(_TIMEOUT_S):
        if isinstance(said, Capacity):
            _require(said, name, (cpus or 0.0) * instances, (memory or 0) * instances, address if len(models.hosts) > 1 else "")


def _require(host: Capacity, name: str, cpus: float, memory: int, address: str) -> None:
    own = [model for model in host.models if model.name == name]
    cpus_free = host.cpus_free + sum(model.cpus for model in own)
    memory_free = host.memory_free_bytes + sum(model.memory_reserved_bytes for model in own)
    if cpus <= cpus_free + 1e-6 and memory <= memory_free:
        return
    where = "the model host has" if not address else "a model host has"
    raise ServingError(
        Code.INSUFFICIENT_CAPACITY,
        f"it would reserve {_said(cpus, memory)}, and {where} {_said(max(0.0, cpus_free), max(0, memory_free))} free",
    )


def _said(cpus: float, memory: int) -> str:
    cores = f"{cpus:g} {'core' if cpus == 1 else 'cores'}"
    return f"{cores} and {memory / _GIB:.2f} GiB of memory"
