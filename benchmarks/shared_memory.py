"""16 MB there and back with the official client: in the message, and in shared memory; Outboard and, where it is installed, Triton beside it.

    python -m benchmarks.shared_memory [--rounds 10]

One caller. Every way takes turns with the others in rounds of six calls, so that whatever else the machine does meets them alike. A call
writes its input into the region, and looks at the whole output.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import shared_memory

from benchmarks.peers import contestants
from benchmarks.peers.models import BIG, BIG_BYTES, Models, _big, _describe
from benchmarks.servers import outboard_up, scratch

CALLS = 6
_PEERS = Path(__file__).parent / ".peers"
Call = Callable[[np.ndarray], float]
"""Sends this input and gives the sum of what comes back."""


def plain(client: triton.InferenceServerClient, name: str) -> Call:
    def call(array: np.ndarray) -> float:
        asked = triton.InferInput("X", array.shape, "FP32")
        asked.set_data_from_numpy(array)
        return float(client.infer(name, [asked]).as_numpy("Y").sum(dtype=np.float64))

    return call


@contextmanager
def shared(client: triton.InferenceServerClient, name: str, key: str) -> Iterator[Call]:
    """With regions of its own, which are gone afterwards."""
    with ExitStack() as closers:
        regions = []
        for side in ("in", "out"):
            made = shared_memory.create_shared_memory_region(f"{key}-{side}", f"/{key}-{side}", BIG_BYTES)
            closers.callback(shared_memory.destroy_shared_memory_region, made)
            client.register_system_shared_memory(f"{key}-{side}", f"/{key}-{side}", BIG_BYTES)
            closers.callback(client.unregister_system_shared_memory, f"{key}-{side}")
            regions.append(made)
        asked, wanted = triton.InferInput("X", [BIG_BYTES // 4], "FP32"), triton.InferRequestedOutput("Y")
        asked.set_shared_memory(f"{key}-in", BIG_BYTES)
        wanted.set_shared_memory(f"{key}-out", BIG_BYTES)

        def call(array: np.ndarray) -> float:
            shared_memory.set_shared_memory_region(regions[0], [array])
            client.infer(name, [asked], outputs=[wanted])
            return float(shared_memory.get_contents_as_numpy(regions[1], np.float32, [BIG_BYTES // 4]).sum(dtype=np.float64))

        yield call


def measure(ways: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every call. Raises AssertionError for a wrong answer."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        array = np.full(BIG_BYTES // 4, number + 1, np.float32)
        for name, call in ways.items():
            for _ in range(CALLS):
                begun = time.perf_counter()
                total = call(array)
                found[name].append(1e3 * (time.perf_counter() - begun))
                assert total == -(number + 1) * (BIG_BYTES // 4), f"{name} answered with {total}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="16 MB there and back, in the message and in shared memory")
    parser.add_argument("--rounds", type=int, default=10, help=f"rounds of {CALLS} calls")
    rounds = parser.parse_args().rounds
    with scratch() as folder, ExitStack() as closers:
        (folder / "models").mkdir()
        load = _big(folder / "models")
        ours = closers.enter_context(outboard_up(folder / "models", folder / "data", {"OUTBOARD_SERVER_SHARED_MEMORY": "true"}))
        client = closers.enter_context(triton.InferenceServerClient(ours.grpc))
        ways = {"Outboard, message": plain(client, BIG), "Outboard, shared memory": closers.enter_context(shared(client, BIG, "ob-own"))}
        if (_PEERS / "triton").is_dir():
            models = Models(folder / "models", (_describe(load, 0),), {BIG: load})
            peer = closers.enter_context(contestants.triton(folder / "triton", _PEERS.resolve(), models, ()))
            other = closers.enter_context(triton.InferenceServerClient(peer.grpc))
            ways["Triton, message"] = plain(other, BIG)
            ways["Triton, shared memory"] = closers.enter_context(shared(other, BIG, "ob-peer"))
        found = measure(ways, rounds)
    for name, each in found.items():
        print(f"{name:26} best {min(each):6.1f} ms   median {statistics.median(each):6.1f} ms")


if __name__ == "__main__":
    main()
