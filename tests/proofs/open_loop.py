"""Load that does not wait for answers: requests at a fixed rate, whatever becomes of them, over the local lane or gRPC."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from idl.codes import Code, ServingError
from idl.lane_calls import LaneAnswer
from idl.messages import InferRequest
from tests.proofs.swarm import Swarm


@dataclass
class Tally:
    """Outcomes by code, and the latency of each request by its outcome, in seconds."""

    seconds: float
    latencies: dict[str, list[float]] = field(default_factory=dict)
    retries_ms: list[int] = field(default_factory=list)

    def add(self, code: str, latency: float) -> None:
        self.latencies.setdefault(code, []).append(latency)

    @property
    def counts(self) -> Counter[str]:
        return Counter({code: len(times) for code, times in self.latencies.items()})

    @property
    def goodput(self) -> float:
        """Answers per second."""
        return len(self.latencies.get("ok", ())) / self.seconds

    def quantile(self, code: str, part: float) -> float:
        """In seconds."""
        return float(np.quantile(self.latencies[code], part)) if self.latencies.get(code) else 0.0


def rounds_for(ask: Callable[[int], object], seconds: float) -> int:
    """How many rounds of the probe take so long now; the fastest of a few counts."""
    ask(300)
    best = float("inf")
    for _ in range(10):
        begun = time.monotonic()
        ask(300)
        best = min(best, time.monotonic() - begun)
    return max(1, round(300 * seconds / best))


def over_lane(swarm: Swarm, make: Callable[[int], InferRequest], rate: float, seconds: float, most: int = 2000) -> Tally:
    """`rate` requests a second; `most` on their way at once. With a rate of 0, `most` callers that each wait for their answer."""
    tally, sent, begun = Tally(seconds), 0, time.monotonic()
    end = begun + seconds
    while (now := time.monotonic()) < end:
        due = int((now - begun) * rate) if rate else sent + most
        while sent < due and len(swarm) < most:
            sent += 1
            swarm.send(sent, make(sent))
        wait = min(end, begun + (sent + 1) / rate) - now if rate else 0.1
        _land(swarm, tally, max(0.0, wait))
    tally.seconds = time.monotonic() - begun
    late = Tally(0.0)  # answered after the end: not goodput of this time
    while len(swarm):
        _land(swarm, late, 1.0)
    tally.retries_ms += late.retries_ms
    return tally


def _land(swarm: Swarm, tally: Tally, wait_s: float) -> None:
    for flight, outcome in swarm.outcomes(wait_s):
        code = "ok" if isinstance(outcome, LaneAnswer) else outcome.code.value if isinstance(outcome, ServingError) else "gone"
        tally.add(code, time.monotonic() - flight.sent)
        if isinstance(outcome, ServingError) and outcome.code is Code.OVERLOADED:
            tally.retries_ms.append(outcome.retry_after_ms)


def over_grpc(address: str, request: InferRequest, rate: float, seconds: float, most: int = 2000) -> Tally:
    """The same over one gRPC channel; with a rate of 0, `most` callers that each wait for their answer."""
    message = pb.ModelInferRequest(model_name=request.model_name, raw_input_contents=[bytes(t.data) for t in request.inputs])
    for tensor in request.inputs:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        calls = _GrpcCalls(channel, message.SerializeToString(), most)
        begun, sent = time.monotonic(), 0
        end = begun + seconds
        while (now := time.monotonic()) < end:
            if rate and (ahead := begun + sent / rate - now) > 0:
                time.sleep(ahead)  # the rate itself
            sent += calls.send(end)
        return calls.counted(time.monotonic() - begun)


class _GrpcCalls:
    """Calls with one message, at most `most` on their way."""

    def __init__(self, channel: grpc.Channel, data: bytes, most: int) -> None:
        self._infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        self._data, self._most, self._flying = data, most, 0
        self._changed, self._tally = threading.Condition(), Tally(0.0)

    def send(self, end: float) -> bool:
        """False where there was no room before `end`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._flying < self._most, max(0.0, end - time.monotonic())):
                return False
            self._flying += 1
        at = time.monotonic()
        self._infer.future(self._data, timeout=60).add_done_callback(lambda call: self._landed(call, at))
        return True

    def _landed(self, call: grpc.Future, sent: float) -> None:
        metadata = dict(call.trailing_metadata() or ())
        code = "ok" if call.code() is grpc.StatusCode.OK else metadata.get("outboard-code", call.code().name)
        with self._changed:
            self._flying -= 1
            self._tally.add(code, time.monotonic() - sent)
            if "retry-after-ms" in metadata:
                self._tally.retries_ms.append(int(metadata["retry-after-ms"]))
            self._changed.notify()

    def counted(self, seconds: float) -> Tally:
        """What was answered up to now; then waits for the rest, which is not of this time."""
        with self._changed:
            now = Tally(seconds, {code: list(times) for code, times in self._tally.latencies.items()}, list(self._tally.retries_ms))
            assert self._changed.wait_for(lambda: not self._flying, 60), f"{self._flying} calls are not answered"
        return now
