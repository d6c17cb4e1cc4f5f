"""The result of a run beside the peers, as Markdown."""

from typing import Any

from benchmarks.tables import pair, table


def markdown(found: dict[str, Any]) -> str:
    return "\n\n".join([_targets(found["targets"]), *_rows(found["rows"]), _versions(found)])


def _targets(outcomes: list[dict[str, Any]]) -> str:
    lines = [
        [item["text"], item["target"], f"{item['best']:.2f} ({item['median']:.2f})", "yes" if item["met"] else "**no**"]
        for item in outcomes
    ]
    return "### Ratios\n\n" + table(["figure", "target", "best rounds (medians)", "reached"], lines)


def _rows(entries: list[dict[str, Any]]) -> list[str]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        # the loops of one model are one table: their requests are batch sizes
        model = entry["contestant"] if entry["row"].startswith("loop") else entry["request"]
        groups.setdefault((f"{entry['title']}, {entry['layout']}", model), []).append(entry)
    return [f"### {model}: {title}\n\n{_group(items)}" for (title, model), items in groups.items()]


def _group(items: list[dict[str, Any]]) -> str:
    lines = []
    for item in items:
        name = f"batch {item['request']}" if item["row"].startswith("loop") else item["contestant"]
        if "requests_per_s" not in item:
            lines.append([name, "failed", "", "", "", str(len(item["failed_rounds"]))])
            continue
        figures = [pair(item["requests_per_s"], "{:,.0f}"), pair(item["rows_per_s"], "{:,.0f}")]
        figures += [pair(item["p50_ms"], "{:,.3f}"), pair(item["cpu_us"], "{:,.0f}")]
        lines.append([name, *figures, str(len(item["failed_rounds"]))])
    return table(["", "requests/s", "rows/s", "p50 ms", "server CPU, us a request", "failed rounds"], lines)


def _versions(found: dict[str, Any]) -> str:
    each = (
        f"{name}: {', '.join(f'{package} {number}' for package, number in packages.items())}"
        for name, packages in found["versions"].items()
    )
    idle = ", ".join(f"{name} {share:.1%}" for name, share in found["idle_cores"].items())
    return f"Versions: {'; '.join(each)}.\n\nUsed of a core while nobody asks: {idle}."
