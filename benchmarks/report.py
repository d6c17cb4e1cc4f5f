"""A stored result as Markdown tables. `benchmarks/report FILE...` prints them."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import plot
from benchmarks.peers import tables as peers
from benchmarks.tables import pair, table

MIB = 2**20


def markdown(found: dict[str, Any]) -> str:
    parts = [_head(found)]
    if "speed" in found:
        parts += [_speed(model, found["speed"]) for model in dict.fromkeys(row["model"] for row in found["speed"])]
    if "comparison" in found:
        parts.append(_comparison(found["comparison"]))
    if "start" in found:
        parts.append(_start(found["start"]))
    if "peers" in found:
        parts.append(peers.markdown(found["peers"]))
    return "\n\n".join(parts)


def _head(found: dict[str, Any]) -> str:
    machine, versions, settings = found["machine"], found["versions"], found["settings"]
    return (
        f"Measured {found['date']} at commit {found['commit']}: {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, Linux "
        f"{machine['kernel']}, load average before {machine['load_before']:.1f}; {settings['rounds']} interleaved rounds of {settings['seconds']:g} s. "
        f"Versions: {', '.join(f'{name} {number}' for name, number in versions.items())}. In a cell: the best round (the median of the rounds)."
    )


def _speed(model: str, rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        if row["model"] == model:
            figures = [pair(row["requests_per_s"], "{:,.0f}"), pair(row["p50_ms"], "{:,.2f}"), pair(row["p99_ms"], "{:,.2f}")]
            lines.append([row["path"], row["generator"], str(row["concurrency"]), *figures, str(row["errors"])])
    head = ["way in", "load from", "at once", "requests/s", "p50 ms", "p99 ms", "errors"]
    return f"### Model `{model}`\n\n{table(head, lines)}"


def _comparison(found: dict[str, Any]) -> str:
    names = list(found["load"])
    load = [
        ["requests/s", *(pair(found["load"][name]["requests_per_s"], "{:,.1f}") for name in names)],
        ["p50 ms", *(pair(found["load"][name]["p50_ms"], "{:,.0f}") for name in names)],
        ["p99 ms", *(pair(found["load"][name]["p99_ms"], "{:,.0f}") for name in names)],
        ["errors", *(str(found["load"][name]["errors"]) for name in names)],
        *(
            [f"memory {when}, MiB", *(_mib(sum(role["pss"] for role in found[key][name].values())) for name in names)]
            for key, when in (("memory_at_rest", "at rest"), ("memory_after", "after the load"))
        ),
    ]
    roles = [
        [name, role, str(entry["processes"]), _mib(entry["pss"])] for name in names for role, entry in found["memory_after"][name].items()
    ]
    change = [
        [
            row["what"],
            f"{row['first_new_s']:.2f} / {row['last_old_s']:.2f}",
            f"{row['before_p99_ms']:,.0f} / {row['p99_ms']:,.0f} / {row['max_ms']:,.0f}",
            f"{row['longest_silence_s'] * 1e3:,.0f}",
            f"{row['failed']} of {row['answers']}",
        ]
        for row in found["change"]
    ]
    title = f"### {found['workers']} workers with the model in each, and {found['workers']} thin workers with one model host"
    return "\n\n".join(
        [
            f"{title}\n\nThe demo model, photographs over HTTP, {found['concurrency']} at once; memory is the processes' proportional set size.",
            table(["", *names], load),
            table(["", "processes", "number", "MiB after the load"], roles),
            "A change of model under steady load:",
            table(["", "first new / last old answer, s", "p99 before / p99 / max ms", "longest silence, ms", "failed"], change),
        ]
    )


def _start(found: dict[str, Any]) -> str:
    rows = [
        [name, role, str(entry["processes"]), _mib(entry["pss"])]
        for key, name in (("serve", "`outboard serve`"), ("up", "`outboard up`"))
        for role, entry in found[key].items()
    ]
    seconds = pair(found["serve_to_first_answer_s"], "{:.2f} s")
    text = f"### Start and rest\n\n`outboard serve` with the tiny model, from its start to the first answer: {seconds}. At rest, with the tiny model:"
    return f"{text}\n\n{table(['', 'processes', 'number', 'PSS, MiB'], rows)}"


def _mib(size: float) -> str:
    return f"{size / MIB:,.0f}"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/report", description="Stored results as Markdown tables.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="also draw the comparison with the peers, of the first file that has one")
    chosen = parser.parse_args(arguments)
    every = [json.loads(file.read_text()) for file in chosen.files]
    for found in every:
        print(markdown(found))
    if chosen.plot:
        chosen.plot.write_text(plot.svg(next(found["peers"] for found in every if "peers" in found)))


if __name__ == "__main__":
    main(sys.argv[1:])
