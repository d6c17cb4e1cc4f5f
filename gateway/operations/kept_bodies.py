"""What a prediction was asked with, as bytes that a task keeps: JSON stays as it came, forms and tables become JSON of a kind of our own."""

import base64
import json
from typing import Any

from gateway.operations import prediction_bodies
from gateway.operations.prediction_bodies import Files, FormInput, Given, Nested, PredictionBody, Table, Texts
from idl.codes import Code, ServingError

JSON = "application/json"
KEPT = "application/vnd.outboard.prediction+json"


def encode(body: PredictionBody) -> bytes:
    """`body` as content of the type KEPT."""
    made: dict[str, Any] = {"inputs": {name: _spelled(given) for name, given in body.inputs.items()}}
    if body.table is not None:
        made["table"] = [body.table.columns, body.table.rows, body.table.ordered]
    if body.form is not None:
        files = {name: base64.b64encode(content).decode("ascii") for name, content in body.form.files.items()}
        made["form"] = [body.form.filetype, dict(body.form.fields), files]
    made |= {"outputs": body.outputs} if body.outputs is not None else {}
    made |= {"top_k": body.top_k} if body.top_k is not None else {}
    return json.dumps(made, separators=(",", ":")).encode()


def decode(content_type: str, content: bytes) -> PredictionBody:
    """The same back, of either type. Raises what reading a caller's JSON raises."""
    if content_type == JSON:
        return prediction_bodies.from_json(content)
    if content_type != KEPT:
        raise ServingError(Code.UNSUPPORTED_MEDIA, f"a task keeps no content of the type {content_type[:80]!r}")
    given = json.loads(content)
    table, form = given.get("table"), given.get("form")
    return PredictionBody(
        inputs={name: _read(kind, value) for name, (kind, value) in given["inputs"].items()},
        table=None if table is None else Table(tuple(table[0]), tuple(map(tuple, table[1])), table[2]),
        form=None if form is None else FormInput(form[0], form[1], {name: base64.b64decode(text) for name, text in form[2].items()}),
        outputs=tuple(given["outputs"]) if "outputs" in given else None,
        top_k=given.get("top_k"),
    )


def as_json(content_type: str, content: bytes) -> bytes:
    """The content of either type as JSON that a caller could send; files are `{"b64": ...}`."""
    if content_type == JSON:
        return content
    body = decode(content_type, content)
    made: dict[str, Any] = {}
    if body.form is not None:
        made |= {"filetype": body.form.filetype, **body.form.fields}
        made |= {name: _file(file) for name, file in body.form.files.items()}
    elif body.table is not None:
        made |= {"columns": body.table.columns, "data": body.table.rows}
    else:
        made["inputs"] = {name: _sent(given) for name, given in body.inputs.items()}
    made |= {"outputs": body.outputs} if body.outputs is not None else {}
    made |= {"top_k": body.top_k} if body.top_k is not None else {}
    return json.dumps(made, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _sent(given: Given) -> Any:
    if isinstance(given, Nested):
        return given.value
    several = [_file(file) for file in given.contents] if isinstance(given, Files) else list(given.values)
    return several[0] if len(several) == 1 else several


def _file(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode("ascii")}


def _spelled(given: Given) -> tuple[str, Any]:
    if isinstance(given, Files):
        return "files", [base64.b64encode(content).decode("ascii") for content in given.contents]
    if isinstance(given, Texts):
        return "texts", given.values
    assert isinstance(given, Nested)
    return "nested", given.value


def _read(kind: str, value: Any) -> Given:
    if kind == "files":
        return Files(tuple(map(base64.b64decode, value)))
    return Texts(tuple(value)) if kind == "texts" else Nested(value)
