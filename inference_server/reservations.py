"""Reservations: which instance has which cores and how much memory of this host. What does not fit is refused, naming who holds the rest.

Memory is counted against the host's (within the server's control group), less what is kept for the server itself. Cores are counted, and
handed out: a whole core belongs to one instance alone while there are enough, fractions share one, and instances without a reservation
run on what nobody has reserved, or on every core when nothing is left. A reservation bounds where an instance runs, and what others may
be promised; it does not stop an instance from using its cores whole.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from idl.codes import ServingError
from inference_server import errors

log = logging.getLogger("outboard.server")

_EPSILON = 1e-9
"""Sums of fractions such as 0.1 are not exact."""
_HOLDERS_NAMED = 4
_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@dataclass(frozen=True, slots=True, eq=False)
class Reservation:
    """What one instance has; told apart by identity. `cpus` 0 and `memory` 0 (bytes): not reserved.

    `cores`: where it runs at first; one without reserved cores is moved as others come and go. `threads`: of one model run, 0 for the
    runtime's own choice.
    """

    model: str
    version: str
    cpus: float
    memory: int
    cores: tuple[int, ...]
    threads: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Of the whole host; memory in bytes, without what is kept for the server."""

    cpus_reserved: float
    cpus_free: float
    memory_reserved: int
    memory_free: int


@dataclass(slots=True)
class _Holding:
    """`replaces`: whose cpus it takes over. `shares`: core -> the part of it, 1.0 for the whole core. `pid` 0: no process yet. `retired`:
    its cores are anybody's again.
    """

    replaces: Collection[Reservation]
    shares: Mapping[int, float]
    pid: int = 0
    retired: bool = False


class Reservations:
    """Thread-safe. `cores` are those of the server's affinity, `cpus` how much time on them it may use, `memory` and `kept` are bytes.

    `default_threads`: of an instance without reserved cores; 0: as many as the cores that it may run on.
    """

    def __init__(self, cores: Iterable[int], cpus: float, memory: int, *, kept: int = 0, default_threads: int = 0) -> None:
        self._cores = tuple(sorted(cores))
        self._cpus = min(cpus, float(len(self._cores)))
        self._memory = max(0, memory - kept)
        self._kept = kept
        self._default_threads = default_threads
        self._lock = threading.Lock()
        self._held: dict[Reservation, _Holding] = {}
        self._rest = self._cores

    def reserve(
        self, model: str, version: str, cpus: float, memory: int, *, instances: int = 1, replaces: Collection[Reservation] = ()
    ) -> tuple[Reservation, ...]:
        """One reservation for each instance, or none: raises insufficient_capacity where they do not fit together.

        `replaces`: what ends when this serves, at a reload. The two are there at once, so their memory must fit beside each other; cores
        they share for that moment. Loads of one model must come one after the other.
        """
        with self._lock:
            self._admit(model, version, cpus, memory, instances, replaces)
            made = []
            for _ in range(instances):
                shares = _shares(cpus, self._load(replaces)) if cpus else {}
                made.append(Reservation(model, version, cpus, memory, tuple(sorted(shares)) or self._rest, self._threads(cpus)))
                self._held[made[-1]] = _Holding(tuple(replaces), shares)
            self._settle()
            return tuple(made)

    def place(self, reservation: Reservation, pid: int) -> None:
        """Binds a process to the reservation's cores: its threads, and those that they start. To be called before it loads its model."""
        with self._lock:
            if (holding := self._held.get(reservation)) is not None:
                holding.pid = pid
                self._bind(holding)

    def unplace(self, pid: int) -> None:
        """The process has ended: its number may become somebody else's."""
        with self._lock:
            for holding in self._held.values():
                if holding.pid == pid:
                    holding.pid = 0

    def retire(self, *reservations: Reservation) -> None:
        """They take no requests any more: others may have their cpus. Their memory is theirs until `release`."""
        with self._lock:
            for reservation in reservations:
                if (holding := self._held.get(reservation)) is not None:
                    holding.retired = True
            self._settle()

    def release(self, *reservations: Reservation) -> None:
        """Their processes are gone. Idempotent."""
        with self._lock:
            for reservation in reservations:
                self._held.pop(reservation, None)
            self._settle()

    def totals(self) -> Totals:
        with self._lock:
            cpus, memory = self._cpus_used(), self._memory_used()
        return Totals(cpus, max(0.0, self._cpus - cpus), memory, max(0, self._memory - memory))

    def held(self, model: str, version: str) -> tuple[float, int]:
        """(cpus, bytes of memory) of all instances of one version."""
        with self._lock:
            mine = [each for each in self._held if (each.model, each.version) == (model, version)]
        return sum(each.cpus for each in mine), sum(each.memory for each in mine)

    # admission -------------------------------------------------------------------------------------------------------------------

    def _admit(self, model: str, version: str, cpus: float, memory: int, instances: int, replaces: Collection[Reservation]) -> None:
        asked = f"model {model!r} version {version} asks for " + (f"{instances} x " if instances > 1 else "")
        promised, given_up = self._promises() if cpus else ({}, {})
        over = sum(promised[each] - given_up[each] for each in replaces if each in promised)
        used = sum(promised.values()) - sum(given_up.values())
        if cpus and max(used, used - over + cpus * instances) > self._cpus + _EPSILON:
            holders = self._holders([each for each in promised if each not in replaces], lambda each: each.cpus)
            free = max(0.0, self._cpus - used + over)
            raise _refusal(f"{asked}{cpus:g} cpus; {free:g} of {self._cpus:g} are free", holders, lambda amount: f"{amount:g}")
        taken = self._memory_used()
        if memory and taken + memory * instances > self._memory:
            holders = self._holders(self._held, lambda each: each.memory)
            text = f"{asked}{in_units(memory)} of memory; {in_units(max(0, self._memory - taken))} of {in_units(self._memory)} are free"
            kept = f" ({in_units(self._kept)} more are kept for the server)" if self._kept else ""
            raise _refusal(text + kept, holders, lambda amount: in_units(int(amount)))

    def _promises(self) -> tuple[dict[Reservation, float], dict[Reservation, float]]:
        """(cpus that each has, how many of them what replaces it has taken over): a load and what it replaces count once."""
        promised = {each: each.cpus for each, holding in self._held.items() if each.cpus and not holding.retired}
        given_up = dict.fromkeys(promised, 0.0)
        for new, holding in self._held.items():
            wanted = promised.get(new, 0.0)
            for old in holding.replaces if wanted else ():
                taken = min(wanted, promised.get(old, 0.0) - given_up.get(old, 0.0))
                if taken > 0:
                    given_up[old] += taken
                    wanted -= taken
        return promised, given_up

    def _cpus_used(self) -> float:
        promised, given_up = self._promises()
        return sum(promised.values()) - sum(given_up.values())

    def _memory_used(self) -> int:
        return sum(each.memory for each in self._held)

    def _holders(self, among: Iterable[Reservation], amount: Callable[[Reservation], float]) -> dict[str, float]:
        """Model and version -> how much of it they hold, the largest first."""
        sums: dict[str, float] = {}
        for each in among:
            if amount(each):
                key = f"{each.model!r} version {each.version}"
                sums[key] = sums.get(key, 0) + amount(each)
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    # cores -----------------------------------------------------------------------------------------------------------------------

    def _threads(self, cpus: float) -> int:
        if cpus:
            return max(1, int(cpus + 0.5))
        return self._default_threads or (0 if self._rest == self._cores else len(self._rest))

    def _load(self, replaces: Collection[Reservation]) -> dict[int, float]:
        """Core -> how much of it is taken by others than those of `replaces`."""
        load = dict.fromkeys(self._cores, 0.0)
        for reservation, holding in self._held.items():
            if not holding.retired and reservation not in replaces:
                for core, share in holding.shares.items():
                    load[core] += share
        return load

    def _settle(self) -> None:
        """Moves the instances without reserved cores when the cores that nobody reserved have changed."""
        taken = {core for holding in self._held.values() if not holding.retired for core in holding.shares}
        rest = tuple(core for core in self._cores if core not in taken) or self._cores
        if rest != self._rest:
            self._rest = rest
            for holding in self._held.values():
                if not holding.shares and holding.pid:
                    self._bind(holding)

    def _bind(self, holding: _Holding) -> None:
        try:
            bind(holding.pid, set(holding.shares) or set(self._rest))
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has just died: whoever waits for it will notice
        except OSError as error:
            log.warning("cores cannot be assigned", extra={"fields": {"pid": holding.pid, "reason": error.strerror}})


def _shares(cpus: float, load: Mapping[int, float]) -> dict[int, float]:
    """Where `cpus` go, given what is taken of each core: whole cores first, then the fullest shared core that has room for the fraction.

    What fits in sum but in no such way (1 cpu where two cores are half taken) goes evenly over the cores that nobody has whole.
    """
    whole, part = int(cpus + _EPSILON), cpus - int(cpus + _EPSILON)
    free = [core for core, taken in load.items() if taken < _EPSILON]
    spread = [core for core, taken in load.items() if taken < 1 - _EPSILON] or list(load)
    if whole > len(free):
        return dict.fromkeys(spread, cpus / len(spread))
    shares = dict.fromkeys(free[:whole], 1.0)
    if part > _EPSILON:
        shared = [core for core, taken in load.items() if core not in shares and taken + part < 1 + _EPSILON]
        others = [core for core in spread if core not in shares]
        chosen = [max(shared, key=lambda core: load[core])] if shared else others or spread
        for core in chosen:
            shares[core] = shares.get(core, 0.0) + part / len(chosen)
    return shares


def _refusal(asked: str, holders: Mapping[str, float], show: Callable[[float], str]) -> ServingError:
    named = [f"{holder} holds {show(amount)}" for holder, amount in list(holders.items())[:_HOLDERS_NAMED]]
    if len(holders) > _HOLDERS_NAMED:
        named.append(f"{len(holders) - _HOLDERS_NAMED} more hold the rest")
    return errors.insufficient_capacity(asked + (": " + ", ".join(named) if named else ""))


def in_units(size: int) -> str:
    """2147483648 -> "2 GiB": exact where it can be, else to two places."""
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:.2f}".rstrip("0").rstrip(".") + f" {name}"
    return f"{size} bytes"


def bind(pid: int, cores: Collection[int]) -> None:
    """Sets the affinity of every thread of a process. A thread inherits its maker's: looked at until no new one has come meanwhile.

    Raises OSError where there is no such process.
    """
    bound: set[str] = set()
    while new := {task.name for task in Path(f"/proc/{pid}/task").iterdir()} - bound:
        for thread in new:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)
        bound |= new
