"""The result of a batch, line by line: JSON, or csv that a spreadsheet opens without running anything of it."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from gateway.operations.batch_answers import Answer

CSV, JSONL = "csv", "jsonl"
FORMATS = (CSV, JSONL)
TYPES = {CSV: "text/csv; charset=utf-8", JSONL: "application/x-ndjson"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection")."""
_spell = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Lines:
    """Spells answers. `outputs`: names of the columns; `has_names`: rows are files; `has_labels`: answers have labels."""

    def __init__(self, kind: str, outputs: Sequence[str], *, has_names: bool, has_labels: bool) -> None:
        self._is_csv = kind == CSV
        self._outputs = outputs
        self._has_names = has_names
        self._has_labels = has_labels

    def head(self) -> bytes:
        """What stands before the first row."""
        if not self._is_csv:
            return b""
        labels = ["label", "score"] if self._has_labels else []
        return _line(["row", *(["file"] if self._has_names else []), "error", *map(safe, self._outputs), *labels])

    def spell(self, number: int, name: str, answer: Answer) -> bytes:
        """The line of row `number`, counted from 1."""
        if not self._is_csv:
            return _spell({"row": number, **({"file": name} if self._has_names else {}), **answer}).encode() + b"\n"
        error, outputs, labels = answer.get("error"), answer.get("outputs", {}), answer.get("labels", [])
        cells = [number, *([safe(name)] if self._has_names else []), safe(f"{error['code']}: {error['message']}") if error else ""]
        cells += [_cell(outputs.get(column)) for column in self._outputs]
        if self._has_labels:
            best = _first(labels)
            cells += [safe(best["label"] or ""), best["score"]] if best else ["", ""]
        return _line(cells)


def _first(labels: Any) -> Any:
    """The best label of a sample, or of the first where there are several."""
    while isinstance(labels, list):
        if not labels:
            return None
        labels = labels[0]
    return labels


def _cell(value: Any) -> Any:
    """A number as it is, a text that cannot become a formula, anything else as JSON."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return ""
    if isinstance(value, str):
        return safe(value)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else _spell(value)


def safe(text: str) -> str:
    """The text, with an apostrophe before what a spreadsheet would run; control characters are left out."""
    text = "".join(character for character in text if character in "\t\n\r" or ord(character) >= 32)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _line(cells: Sequence[Any]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(cells)
    return out.getvalue().encode(errors="replace")
