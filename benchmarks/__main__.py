"""Measures, prints, stores. `benchmarks/run --help` lists what can be chosen."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import comparison, machine, report, speed, start
from benchmarks.peers.measure import Bench
from benchmarks.repository import make_repository
from benchmarks.servers import Host, outboard_up, scratch

PARTS = ("speed", "comparison", "start")
RESULTS = Path(__file__).parent / "results"
PEERS = Path(__file__).parent / ".peers"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/run", description="Side-by-side measurements, interleaved in short rounds.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to measure, of {', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of load for each case in each round; wrk and h2load take whole ones (default 1)"
    )
    parser.add_argument("--rounds", type=int, help="default 3; with --peers 10")
    parser.add_argument("--starts", type=int, default=5, help="cold starts (default 5)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="of the speed cases, those whose description contains this; with --peers ROW/MODEL/CONTESTANT, each part with * and ? "
        "(parts left out match all); may be given more than once",
    )
    parser.add_argument("--peers", action="store_true", help="measure beside Triton, MLServer, KServe and LitServe, and nothing else")
    parser.add_argument(
        "--peers-dir", type=Path, default=PEERS, metavar="DIR", help="where their environments lie, 2 GB (default benchmarks/.peers)"
    )
    parser.add_argument(
        "--grpc-front",
        action="append",
        metavar="KIND",
        help="with --peers: the fronts of `outboard serve` that are measured (default: nginx and grpcio)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result is stored (default: a new file in benchmarks/results)")
    parser.add_argument("--what", default="", metavar="NAME", help="in the result's file name (default: the parts)")
    for name in ("grpc", "thrift", "http"):
        parser.add_argument(f"--{name}", metavar="ADDRESS", help="measure what runs there; it must serve `tiny` and `efficientnet-lite0`")
    chosen = parser.parse_args(arguments)
    if chosen.peers and chosen.parts:
        parser.error("--peers is measured alone: the servers would disturb each other")
    chosen.parts = chosen.parts or (["peers"] if chosen.peers else list(PARTS))
    chosen.rounds = chosen.rounds or (10 if chosen.peers else 3)
    for part in chosen.parts:
        if part not in PARTS and not chosen.peers:
            parser.error(f"{part!r} is none of {', '.join(PARTS)}")
    if (chosen.grpc is None) != (chosen.thrift is None):
        parser.error("--grpc and --thrift belong together")
    return chosen


def main(arguments: Sequence[str]) -> None:
    chosen = parse(arguments)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for every contestant: ours does without, and it must not be what makes a difference
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what was started is ended on the way out
    found: dict[str, Any] = {
        **machine.describe(),
        "settings": {"seconds": chosen.seconds, "rounds": chosen.rounds, "starts": chosen.starts},
    }
    if "speed" in chosen.parts:
        found["speed"] = _speed(chosen)
    if "comparison" in chosen.parts:
        found["comparison"] = comparison.measure(chosen.rounds, chosen.seconds, _say)
    if "start" in chosen.parts:
        found["start"] = start.measure(chosen.starts, _say)
    if chosen.peers:
        with scratch() as folder:
            bench = Bench(folder, chosen.peers_dir, chosen.grpc_front or ("nginx", "grpcio"), _say)
            found["peers"] = bench.run(chosen.only, chosen.rounds, chosen.seconds)
    print(report.markdown(found))
    RESULTS.mkdir(exist_ok=True)
    file = chosen.json or RESULTS / f"{found['date'].replace(':', '')[:15]}-{chosen.what or '-'.join(chosen.parts)}.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    _say(f"stored in {file}")


def _speed(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    with scratch() as folder, ExitStack() as stack:
        loads = make_repository(folder / "models")
        if chosen.grpc:
            host = Host(chosen.grpc, chosen.thrift, chosen.http or "")
        else:
            _say("starting outboard up")
            host = stack.enter_context(outboard_up(folder / "models", folder / "data"))
        every = [
            case for case in speed.cases(host, loads, folder) if not chosen.only or any(text in case.description for text in chosen.only)
        ]
        return speed.measure(every, chosen.rounds, chosen.seconds, _say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
