"""Load from Python callers: so many threads in one process, each with its own client, one request at a time.

`python -m benchmarks.loads.callers KIND TARGET WORKLOAD_FILE CONCURRENCY SECONDS` prints one line of JSON. KIND is a key of `KINDS`,
TARGET an address; for `onnxruntime` TARGET is the number of threads that one inference may use, 0 for one per core.
"""

import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.figures import Sample, sample
from benchmarks.processes import Cores, pinned
from benchmarks.workload import DATATYPES, Workload, open_session

NAME = "Python threads"
Call = Callable[[], None]


def onnxruntime_itself(target: str, load: Workload) -> Callable[[], Call]:
    """One session for all threads, as onnxruntime advises; nothing around it."""
    session = open_session(load.file, int(target))

    def call() -> None:
        session.run(None, load.inputs)

    return lambda: call


def triton_grpc(target: str, load: Workload) -> Callable[[], Call]:
    """The official client, unmodified."""
    import tritonclient.grpc as triton

    def make() -> Call:
        client = triton.InferenceServerClient(target)
        tensors = [triton.InferInput(name, array.shape, DATATYPES[array.dtype.name]) for name, array in load.inputs.items()]

        def call() -> None:
            for tensor in tensors:
                tensor.set_data_from_numpy(load.inputs[tensor.name()])
            client.infer(load.model, tensors).as_numpy(load.output)

        return call

    return make


def outboard_client(target: str, load: Workload) -> Callable[[], Call]:
    """Outboard's own client: one for all threads, as it is meant to be used."""
    from inference_client import Client

    client = Client(target)

    def call() -> None:
        client.infer(load.model, load.inputs).outputs[load.output]

    return lambda: call


def thriftpy2_client(target: str, load: Workload) -> Callable[[], Call]:
    """What anybody writes who has only the IDL: thriftpy2 itself, on a unix socket."""
    from thriftpy2.protocol import TCyBinaryProtocolFactory
    from thriftpy2.rpc import make_client
    from thriftpy2.transport import TCyFramedTransportFactory

    from idl.thrift_schema import schema

    def make() -> Call:
        client = make_client(
            schema.Inference, unix_socket=target, proto_factory=TCyBinaryProtocolFactory(), trans_factory=TCyFramedTransportFactory()
        )
        given = [(name, DATATYPES[array.dtype.name], array) for name, array in load.inputs.items()]

        def call() -> None:
            tensors = [
                schema.Tensor(name=name, datatype=datatype, shape=list(array.shape), data=array.tobytes())
                for name, datatype, array in given
            ]
            answer = client.ModelInfer(schema.InferRequest(model_name=load.model, inputs=tensors))
            found = next(tensor for tensor in answer.outputs if tensor.name == load.output)
            np.frombuffer(found.data, load.expected.dtype).reshape(found.shape)

        return call

    return make


KINDS: dict[str, Callable[[str, Workload], Callable[[], Call]]] = {
    "onnxruntime": onnxruntime_itself,
    "tritonclient.grpc": triton_grpc,
    "inference_client": outboard_client,
    "thriftpy2": thriftpy2_client,
}


def load(kind: str, target: str, workload: Path, concurrency: int, seconds: float, *, cores: Cores = ()) -> Sample:
    command = [sys.executable, "-m", "benchmarks.loads.callers", kind, target, str(workload), str(concurrency), str(seconds)]
    done = subprocess.run(pinned(command, cores), capture_output=True, text=True, timeout=seconds + 60, check=True)
    return Sample(**json.loads(done.stdout))


def write_workload(path: Path, load: Workload) -> Path:
    """For a caller's process, in a folder that only this measurement writes to."""
    path.write_bytes(pickle.dumps(load))
    return path


def drive(make: Callable[[], Call], concurrency: int, seconds: float) -> Sample:
    calls = [make() for _ in range(concurrency)]
    for call in calls:
        call()
    latencies: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    threads = [threading.Thread(target=_loop, args=(*pair, start + seconds)) for pair in zip(calls, latencies, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sample([item for each in latencies for item in each], time.perf_counter() - start)


def _loop(call: Call, latencies: list[float], stop: float) -> None:
    begin = time.perf_counter()
    while begin < stop:
        call()
        end = time.perf_counter()
        latencies.append((end - begin) * 1e3)
        begin = end


if __name__ == "__main__":
    kind, target, file, concurrency, seconds = sys.argv[1:]
    wanted = pickle.loads(Path(file).read_bytes())
    print(json.dumps(asdict(drive(KINDS[kind](target, wanted), int(concurrency), float(seconds)))))
