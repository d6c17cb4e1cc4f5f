"""Callers in processes of their own, so that what they cost is not taken from what the test measures.

`python -m tests.proofs.callers '{"address": ..., "model": ..., "threads": ...}'` obeys lines on standard input: `start RATE` (calls per
second of all its threads, 0 for as fast as answers come), `stop`, which is answered by one JSON line, and the end of the file. Every
answer is checked: version v of the model gives v times what came in.
"""

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inference_client import Client
from tests.processes import ROOT, environment

MOST_FAILURES = 5
Ask = Callable[[np.ndarray], tuple[str, list[float]]]
"""One call: the version that answered, and what it gave."""


@dataclass
class Report:
    """`us`: latencies in microseconds, from the moment at which a call was due."""

    failed: int = 0
    failures: list[str] = field(default_factory=list)
    us: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.us) / self.seconds

    def quantile(self, part: float) -> float:
        """In milliseconds."""
        return float(np.quantile(self.us, part)) / 1000


def merged(reports: Sequence[Report]) -> Report:
    """All of them as one; the longest time counts."""
    return Report(
        sum(report.failed for report in reports),
        [line for report in reports for line in report.failures],
        [us for report in reports for us in report.us],
        max(report.seconds for report in reports),
    )


class Callers:
    """Handle of one such process. `close` ends it; idempotent."""

    def __init__(self, address: str, model: str, threads: int) -> None:
        self.threads = threads
        said = json.dumps({"address": address, "model": model, "threads": threads})
        command = [sys.executable, "-m", "tests.proofs.callers", said]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(OMP_NUM_THREADS="1")
        )
        assert self._line() == {"ready": True}

    def _line(self) -> Any:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        assert text, "the callers' process has ended"
        return json.loads(text)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def start(self, rate: float = 0.0) -> None:
        self._say(f"start {rate}")

    def stop(self) -> Report:
        self._say("stop")
        return Report(**self._line())

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def callers(addresses: Sequence[str], model: str, threads: int) -> Iterator[list[Callers]]:
    """One process for each address."""
    with contextlib.ExitStack() as closing:
        made = []
        for address in addresses:
            made.append(Callers(address, model, threads))
            closing.callback(made[-1].close)
        yield made


# inside that process -----------------------------------------------------------------------------------------------------------------


def over_rpc(address: str, model: str) -> tuple[Ask, Callable[[], None]]:
    client = Client(address)

    def ask(x: np.ndarray) -> tuple[str, list[float]]:
        answer = client.infer(model, {"x": x})
        return answer.model_version, answer.outputs["y"].tolist()[0]

    return ask, client.close


def over_http(address: str, model: str) -> tuple[Ask, Callable[[], None]]:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)

    def ask(x: np.ndarray) -> tuple[str, list[float]]:
        body = json.dumps({"inputs": [{"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}]})
        connection.request("POST", f"/v2/models/{model}/infer", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        assert response.status == 200, text
        said = json.loads(text)
        return said["model_version"], said["outputs"][0]["data"]

    return ask, connection.close


class Load:
    """The threads that call between a `start` and a `stop`."""

    def __init__(self, address: str, model: str, threads: int, rate: float) -> None:
        self._make = lambda: (over_http if address.startswith("http") else over_rpc)(address, model)
        self._stop = threading.Event()
        self._report = Report()
        self._begun = time.monotonic()
        self._gap = threads / rate if rate else 0.0
        self._threads = [threading.Thread(target=self._call, args=(number, number / threads)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def _call(self, number: int, phase: float) -> None:
        ask, close = self._make()
        x, due = np.float32([[number + 1, -7]]), self._begun + phase * self._gap
        while not self._stop.is_set():
            if self._gap:
                due += self._gap
                self._stop.wait(due - time.monotonic())
            else:
                due = time.monotonic()
            try:
                version, y = ask(x)
                assert y == (int(version) * x[0]).tolist(), f"version {version} gave {y}"
                self._report.us.append(round((time.monotonic() - due) * 1e6))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed request
                self._report.failed += 1
                if len(self._report.failures) < MOST_FAILURES:
                    self._report.failures.append(f"{type(error).__name__}: {error}"[:500])
        close()

    def end(self) -> Report:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._report.seconds = time.monotonic() - self._begun
        return self._report


def main(address: str, model: str, threads: int) -> None:
    """Obeys until the end of its input."""
    load: Load | None = None
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "start":
            load = Load(address, model, threads, float(rest[0]))
        elif load is not None:
            print(json.dumps(vars(load.end())), flush=True)
            load = None
    if load is not None:
        load.end()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
