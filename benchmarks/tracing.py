"""What traces cost: time of the process for one answer of gRPC's front, without sockets and without the model.

    python -m benchmarks.tracing [--rounds 200] [--against FOLDER]

Each case has a process of its own, all on one core, and they take turns in short rounds, so that whatever else the machine does meets them
alike. FOLDER is another state of this repository, to compare with; a case that it does not know is left out.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = {
    "none": "tracing is not configured",
    "off": "configured, and trace_level is OFF",
    "rate": "on; the request has no traceparent, and is not chosen",
    "flag": "on; the caller's traceparent says no",
    "told": "on, and told",
    "counted": "on, and told while there is a trace_count",
}
CALLS = 1000
_ROOT = Path(__file__).resolve().parent.parent
_HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"


class Nobody:
    """Sink, token, lanes, routes and caller at once: every answer is there when it is asked for."""

    def __init__(self, route: Any = None) -> None:
        self.route = route
        self.waiting: Any = None

    def add(self, *_: Any) -> None: ...

    close = check = give_back = succeed = add

    def find(self, *_: Any) -> Any:
        return self.route

    def take(self, *_: Any) -> "Nobody":
        return self

    def ask(self, waiting: Any, *_: Any) -> None:
        self.waiting = waiting


def tracer(case: str, folder: Path) -> Any:
    from idl.trace_control import Followed, Published
    from idl.traces import Tracer

    published = Published(folder)
    if case in ("off", "counted"):
        published.publish({"": {"level": "OFF"} if case == "off" else {"count": 1}}, {1: 10**12})
    return Tracer(Nobody(), 0.0 if case == "rate" else 1.0, control=Followed(folder))


def is_changeable(tree: Path) -> bool:
    """Whether settings of traces can change while it runs."""
    return (tree / "idl" / "trace_control.py").exists()


def former_tracer(case: str) -> Any:
    """Before settings could change."""
    from idl.traces import Tracer

    return Tracer(Nobody(), 0.0 if case == "rate" else 1.0)


def serve(case: str) -> None:
    """In a process of its own: for each line of standard input one round, and the microseconds that a call took."""
    from idl import lane
    from idl.generated import inference_pb2 as pb
    from idl.lane_routes import Route
    from inference_server.front.calls import Calls, Head

    everything: Any = Nobody(Route("m", "1", ("socket",), 1 << 20))
    calls = Calls(everything, everything, everything, default_timeout_s=30, max_message_bytes=1 << 20)
    folder = tempfile.TemporaryDirectory()
    if case != "none":
        calls.tracer = tracer(case, Path(folder.name)) if is_changeable(Path(lane.__file__).parent.parent) else former_tracer(case)
    asked = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"12345678"])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    message = asked.SerializeToString()
    head = Head(None, "", "", {"off": f"{_HEADER}1", "flag": f"{_HEADER}0"}.get(case, ""))
    answer = lane.Frame(
        lane.RESULT, 1, (1000, 1000, 1000, 1000), lane.pack_head([("y", "FP32", (1, 2), 8)], (), {})[0], memoryview(b"12345678")
    )
    for _ in sys.stdin:
        begun = time.process_time_ns()
        for _ in range(CALLS):
            calls.begin(everything, head, message)
            everything.waiting.answered(everything, answer)
        print((time.process_time_ns() - begun) / CALLS / 1000, flush=True)
    folder.cleanup()


def measure(trees: dict[str, Path], rounds: int) -> dict[tuple[str, str], list[float]]:
    """(case, tree) -> microseconds for a call, of each round."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    running = {}
    for case in CASES:
        for name, tree in trees.items():
            if case in ("off", "counted") and not is_changeable(tree):
                continue
            command = [sys.executable, "-P", str(Path(__file__).resolve()), "--serve", case]
            environ = os.environ | {"PYTHONPATH": str(tree)}
            running[case, name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
    found: dict[tuple[str, str], list[float]] = {key: [] for key in running}
    for _ in range(rounds):
        for key, process in running.items():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            found[key].append(float(process.stdout.readline()))
    for process in running.values():
        process.communicate()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="what traces cost, in microseconds of the process for an answer of gRPC's front")
    parser.add_argument("--rounds", type=int, default=200, help=f"rounds of {CALLS} calls")
    parser.add_argument("--against", type=Path, help="another state of this repository")
    parser.add_argument("--serve", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    trees = {"this": _ROOT} | ({"that": arguments.against.resolve()} if arguments.against else {})
    for (case, name), each in measure(trees, arguments.rounds).items():
        print(f"{CASES[case]:60} {name}  least {min(each):5.1f}  median {statistics.median(each):5.1f}")


if __name__ == "__main__":
    main()
