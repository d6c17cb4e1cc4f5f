"""What a caller of `/predictions` may send: JSON, or a form with files. Nothing here knows the model yet."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.operations import tensor_json
from idl.tensors import invalid

OF_ONE = "inputfile_"
"""What the name of an input's own field or file begins with, in a form with `filetype`."""
_spell = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Files:
    """Whole files, one for each sample."""

    contents: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """A form's text fields of one name."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Nested:
    """A JSON value: nested lists, or a single element."""

    value: Any


Given = Files | Texts | Nested


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells. `ordered`: the caller chose the order of the columns, it is not just that of an object's keys."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    ordered: bool


@dataclass(frozen=True, slots=True)
class FormInput:
    """Inputs as the form API has them: `form_inputs` reads them once the model is known. Fields and files by name."""

    filetype: str
    fields: Mapping[str, str]
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class PredictionBody:
    """Either `inputs`, by input name, or a `table`, or a `form`. `outputs` None for all, empty for none but the labels; `top_k` None for
    the model's."""

    inputs: Mapping[str, Given] = field(default_factory=dict)
    table: Table | None = None
    outputs: tuple[str, ...] | None = None
    top_k: int | None = None
    form: FormInput | None = None


def from_json(body: bytes) -> PredictionBody:
    """`{"inputs": {...}}`, `{"records": [...]}` or `{"columns": [...], "data": [...]}`, or what forms have, `{"filetype", "input"}`; with
    `outputs` and `top_k`. Raises invalid_input."""
    given = tensor_json.parse(body)
    if not isinstance(given, dict):
        raise invalid("the body is not a JSON object")
    if "filetype" in given:
        return _form_in_json(given)
    unknown = sorted(given.keys() - {"inputs", "records", "columns", "data", "outputs", "top_k"})
    if unknown:
        raise invalid(f"the body has an unknown field {unknown[0][:80]!r}; known are inputs, records, columns, data, outputs and top_k")
    forms = [form for form, names in _FORMS.items() if names & given.keys()]
    if len(forms) != 1:
        raise invalid(f"the body has {' and '.join(forms) or 'no inputs'}; send one of inputs, records, or columns and data")
    return PredictionBody(
        inputs=_inputs(given["inputs"]) if forms == ["inputs"] else {},
        table=None if forms == ["inputs"] else _records(given["records"]) if forms == ["records"] else _columns(given),
        outputs=_output_names(given["outputs"]) if "outputs" in given else None,
        top_k=_top_k(given["top_k"]) if "top_k" in given else None,
    )


def _form_in_json(given: dict[str, Any]) -> PredictionBody:
    """The same fields; what is no text is written as JSON."""
    outputs, top_k = given.pop("outputs", None), given.pop("top_k", None)
    fields = {_text("a field's name", name): value if isinstance(value, str) else _spell(value) for name, value in given.items()}
    if unknown := sorted(name for name in fields if name not in ("filetype", "input") and not name.startswith(OF_ONE)):
        raise invalid(f"the body has an unknown field {unknown[0][:80]!r}; beside filetype there are input and {OF_ONE}NAME")
    return PredictionBody(
        form=FormInput(fields["filetype"], fields, {}),
        outputs=None if outputs is None else _output_names(outputs),
        top_k=None if top_k is None else _top_k(top_k),
    )


_FORMS = {"inputs": {"inputs"}, "records": {"records"}, "columns": {"columns", "data"}}


def _inputs(given: Any) -> dict[str, Given]:
    if not isinstance(given, dict):
        raise invalid("inputs is not an object of input name and value")
    return {_text("an input's name", name): _value(name, value) for name, value in given.items()}


def _value(name: str, value: Any) -> Given:
    files = value if isinstance(value, list) else [value]
    if files and all(tensor_json.is_base64(item) for item in files):
        return Files(tuple(tensor_json.decode_base64(f"input {name!r}", item["b64"]) for item in files))
    return Nested(value)


def _records(given: Any) -> Table:
    if not isinstance(given, list) or not given or not all(isinstance(record, dict) for record in given):
        raise invalid("records is not a list of objects with at least one")
    columns = tuple(given[0])
    for number, record in enumerate(given, 1):
        if record.keys() != given[0].keys():
            different = sorted(record.keys() ^ given[0].keys())[0]
            raise invalid(f"record {number} and record 1 do not have the same fields: {different[:80]!r} stands in one of them")
    return Table(columns, tuple(tuple(record[column] for column in columns) for record in given), ordered=False)


def _columns(given: Mapping[str, Any]) -> Table:
    columns, rows = given.get("columns"), given.get("data")
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        raise invalid("columns is not a list of texts")
    if len(set(columns)) != len(columns):
        raise invalid("columns has a name twice")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise invalid("data is not a list of rows with at least one")
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise invalid(f"row {number} of data has {len(row)} values, there are {len(columns)} columns")
    return Table(tuple(columns), tuple(map(tuple, rows)), ordered=True)


def _output_names(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list):
        raise invalid("outputs is not a list of output names")
    return tuple(dict.fromkeys(_text("an output's name", name) for name in given))


def _top_k(given: Any) -> int:
    if type(given) is not int or given < 1:
        raise invalid("top_k is not a whole number from 1")
    return int(given)


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise invalid(f"{where} is not a text")
    tensor_json.encode_text(where, value)
    return value


def from_form(fields: Iterable[tuple[str, str]], files: Iterable[tuple[str, bytes]]) -> PredictionBody:
    """Form fields and files by input name; the fields `top_k` and `outputs` (repeated, or names between commas). With a field `filetype`
    the form is one of the form API's. Raises invalid_input."""
    texts: dict[str, list[str]] = {}
    for name, value in fields:
        texts.setdefault(_text("a field's name", name), []).append(value)
    contents: dict[str, list[bytes]] = {}
    for name, content in files:
        contents.setdefault(_text("a file's field name", name), []).append(content)
    top_k, outputs = texts.pop("top_k", None), texts.pop("outputs", None)
    form = _form_input(texts, contents) if "filetype" in texts else None
    both = [] if form else sorted(texts.keys() & contents.keys())
    if both:
        raise invalid(f"input {both[0][:80]!r} is there as a file and as a field")
    if not texts and not contents:
        raise invalid("the form has no input: neither a file nor a field with an input's name")
    inputs: dict[str, Given] = {name: Texts(tuple(values)) for name, values in texts.items()}
    inputs.update((name, Files(tuple(values))) for name, values in contents.items())
    return PredictionBody(
        inputs={} if form else inputs,
        form=form,
        outputs=None if outputs is None else _output_names([name for text in outputs for name in text.split(",") if name]),
        top_k=None if top_k is None else _top_k(_whole_number(top_k)),
    )


def _form_input(texts: Mapping[str, list[str]], contents: Mapping[str, list[bytes]]) -> FormInput:
    for name in (*texts, *contents):
        if name not in ("filetype", "input") and not name.startswith(OF_ONE):
            raise invalid(f"the form has a field {name[:80]!r}; beside filetype there are input and {OF_ONE}NAME")
    twice = [name for given in (texts, contents) for name, values in given.items() if len(values) > 1]
    if twice:
        raise invalid(f"the form has {twice[0][:80]!r} twice")
    return FormInput(
        texts["filetype"][0], {name: values[0] for name, values in texts.items()}, {name: values[0] for name, values in contents.items()}
    )


def _whole_number(values: list[str]) -> int:
    text = values[0].strip()
    return int(text) if len(values) == 1 and text.isascii() and text.isdigit() and len(text) < 10 else 0
