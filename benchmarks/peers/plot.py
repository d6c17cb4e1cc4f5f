"""The result of a run beside the peers as an SVG: a panel for each row and model, a bar for each contestant."""

from html import escape
from typing import Any

PANELS = (
    ("grpc", "tiny", "gRPC, tiny model, server on one core"),
    ("http", "tiny", "HTTP JSON, tiny model, both cores"),
    ("grpc", "digits", "gRPC, digits (MLP), server on one core"),
    ("grpc-saturated", "minilm", "gRPC, MiniLM, 16 tokens, server on one core"),
    ("grpc-saturated", "efficientnet-lite0", "gRPC, EfficientNet-Lite0, server on one core"),
    ("grpc-latency", "tiny", "gRPC latency, one call at a time"),
    ("clients", "tiny", "Python clients, one call at a time, one core"),
)
"""Row, request and title, in the order of the panels."""
_WIDTH, _LABEL, _BAR, _LINE, _HEAD = 860, 300, 420, 22, 34
_OURS, _THEIRS, _MEDIAN = "#0b7285", "#adb5bd", "#212529"


def svg(found: dict[str, Any]) -> str:
    """Bars are best rounds, the black stroke the median of the rounds; latencies are p50, and shorter is better there."""
    parts, top = [], 8
    for row, request, title in PANELS:
        entries = [item for item in found["rows"] if (item["row"], item["request"]) == (row, request) and "p50_ms" in item]
        if entries:
            parts.append(_panel(entries, title, top))
            top += _HEAD + _LINE * len(entries) + 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13">\n<title>Outboard beside its peers</title>\n'
        f'<rect width="{_WIDTH}" height="{top}" fill="#ffffff"/>\n{"".join(parts)}</svg>\n'
    )


def _panel(entries: list[dict[str, Any]], title: str, top: int) -> str:
    latency = entries[0]["latency"]
    measure, unit, form = ("p50_ms", "ms (p50; shorter is better)", "{:,.3f}") if latency else ("requests_per_s", "requests/s", "{:,.0f}")
    longest = max(max(entry[measure].values()) for entry in entries)
    lines = [f'<text x="8" y="{top + 18}" font-weight="600">{escape(title)}: {unit}</text>\n']
    for index, entry in enumerate(sorted(entries, key=lambda item: item[measure]["best"], reverse=not latency)):
        y = top + _HEAD + index * _LINE
        best, median = (entry[measure][which] / longest * _BAR for which in ("best", "median"))
        lines.append(
            f'<text x="{_LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(entry["contestant"])}</text>'
            f'<rect x="{_LABEL}" y="{y}" width="{best:.1f}" height="{_LINE - 6}" fill="{_OURS if _is_ours(entry) else _THEIRS}"/>'
            f'<rect x="{_LABEL + median - 1:.1f}" y="{y - 1}" width="2" height="{_LINE - 4}" fill="{_MEDIAN}"/>'
            f'<text x="{_LABEL + max(best, median) + 8:.1f}" y="{y + 13}">{form.format(entry[measure]["best"])}</text>\n'
        )
    return "".join(lines)


def _is_ours(entry: dict[str, Any]) -> bool:
    return entry["contestant"].startswith(("Outboard", "inference_client", "thriftpy2"))
