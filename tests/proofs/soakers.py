"""Clients of a soak, in processes of their own that may be killed at any moment: what they did is in a file that outlives them.

`python -m tests.proofs.soakers '{"address": ..., "ledger": ..., "seed": ..., "models": [...]}'` calls until its standard input ends.
"""

import json
import mmap
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from idl.codes import Code, ServingError
from idl.messages import InferRequest
from inference_client import Client
from tests.processes import ROOT, environment
from tests.proofs.models import TABLE, is_own, probe_request
from tests.proofs.wires import HttpWire

THREADS = 4
OUTCOMES = ("begun", "ok", Code.INVALID_INPUT.value, Code.DEADLINE_EXCEEDED.value, Code.OVERLOADED.value, "else")
"""A ledger's cells of one model and thread. `begun` is counted before a call, the others after it."""
_CELL = 8


class Ledger:
    """Counts of one process, in a file. One writer for each cell, so nothing is locked."""

    def __init__(self, path: Path, models: Sequence[str]) -> None:
        self._models = list(models)
        size = _CELL * len(OUTCOMES) * THREADS * len(models)
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._cells = memoryview(self._map).cast("q")

    def add(self, thread: int, model: str, outcome: str) -> None:
        at = (self._models.index(model) * THREADS + thread) * len(OUTCOMES) + OUTCOMES.index(outcome)
        self._cells[at] += 1

    def counts(self, model: str) -> Counter[str]:
        """Of all its threads."""
        found: Counter[str] = Counter()
        at = self._models.index(model) * THREADS * len(OUTCOMES)
        for index, value in enumerate(self._cells[at : at + THREADS * len(OUTCOMES)]):
            found[OUTCOMES[index % len(OUTCOMES)]] += value
        return found

    def close(self) -> None:
        self._cells.release()
        self._map.close()


class Soaker:
    """Handle of one such process."""

    def __init__(self, address: str, ledger: Path, models: Sequence[str], seed: int) -> None:
        said = json.dumps({"address": address, "ledger": str(ledger), "models": list(models), "seed": seed})
        self.ledger = Ledger(ledger, models)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.proofs.soakers", said],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
        )

    def stop(self) -> str:
        """Lets its calls finish. Returns what it said went wrong."""
        return self._process.communicate(timeout=90)[1]

    def kill(self) -> None:
        """In the middle of whatever it does."""
        self._process.kill()
        self._process.communicate()


# inside that process -----------------------------------------------------------------------------------------------------------------


def asker(address: str) -> Callable[[InferRequest, float], str]:
    """(request, seconds) -> the outcome."""
    if address.startswith("http"):
        wire = HttpWire(address)
        return lambda request, timeout_s: wire.send(request, timeout_s).result()
    client = Client(address)

    def ask(request: InferRequest, timeout_s: float) -> str:
        try:
            return "ok" if is_own(request, client.infer_raw(request, timeout_s=timeout_s)) else "another's answer"
        except ServingError as error:
            return error.code.value

    return ask


def a_call(chance: random.Random, model: str, tag: int) -> tuple[InferRequest, float]:
    """One in ten is bad; one in five may wait in the queue for a few milliseconds only. "hasty": its callers' own time is short."""
    index = TABLE + 1 if chance.random() < 0.1 else chance.randrange(TABLE)
    rounds = chance.choice((0, 0, 0, 20, 100))
    limits = {"timeout": chance.choice((1000, 5000, 20_000))} if chance.random() < 0.2 else {}
    request = probe_request(
        model, tag, rows=chance.choice((1, 1, 2, 3)), width=chance.choice((1, 4, 300)), index=index, rounds=rounds, **limits
    )
    return request, chance.choice((0.002, 0.005, 0.02, 1.0)) if model == "hasty" else 60.0


def work(
    thread: int, ask: Callable[[InferRequest, float], str], ledger: Ledger, models: Sequence[str], seed: int, stop: threading.Event
) -> None:
    chance, tag = random.Random(seed * THREADS + thread), (seed * THREADS + thread) << 40
    while not stop.is_set():
        model, tag = chance.choice(models), tag + 1000
        request, timeout_s = a_call(chance, model, tag)
        ledger.add(thread, model, "begun")
        try:
            outcome = ask(request, timeout_s)
        except Exception as error:  # noqa: BLE001 - said at the end, whatever it was
            outcome = repr(error)
        if outcome not in OUTCOMES:
            print(f"{model}: {outcome}", file=sys.stderr, flush=True)
        ledger.add(thread, model, outcome if outcome in OUTCOMES else "else")
        stop.wait(chance.random() * 0.02)


def main(address: str, ledger: str, models: Sequence[str], seed: int) -> None:
    """Until standard input ends."""
    kept, stop, ask = Ledger(Path(ledger), models), threading.Event(), asker(address)
    threads = [threading.Thread(target=work, args=(number, ask, kept, models, seed, stop)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
