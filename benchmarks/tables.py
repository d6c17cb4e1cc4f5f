"""Markdown's tables, and what stands in their cells."""

from collections.abc import Iterable


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pair(figure: dict[str, float], form: str) -> str:
    """The best round (the median of the rounds)."""
    return f"{form.format(figure['best'])} ({form.format(figure['median'])})"
