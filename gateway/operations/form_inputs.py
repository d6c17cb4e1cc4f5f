"""`input` and `filetype`: what forms say of their inputs, one word for all or one for each -> a prediction's body for each sample.

`none`: JSON. `jpgbase64`, `mp4base64`: base64 text. `csv`, `txt`, `mp4`, `zip`: files of many samples, each answered for itself. Here, other
than in JSON bodies of `/v1`, a sample may leave the batch axis out: `5` for shape [-1, 1].
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import InvalidFields
from gateway.model_declaration import Declaration
from gateway.operations import input_files, tensor_json, video
from gateway.operations.file_kinds import kind_of
from gateway.operations.images import Limits
from gateway.operations.input_files import FormLimits
from gateway.operations.prediction_bodies import OF_ONE, Files, Given, Nested, PredictionBody
from gateway.operations.prediction_inputs import ANY_PICTURE
from gateway.settings import Settings
from idl.messages import ModelMetadata, TensorSpec
from idl.tensors import invalid

NONE, JPG, CSV, TXT, MP4, MP4_TEXT, ZIP = "none", "jpgbase64", "csv", "txt", "mp4", "mp4base64", "zip"
FILE_TYPES = (NONE, JPG, CSV, TXT, MP4, MP4_TEXT, ZIP)
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,4})?", re.ASCII)
_WHOLE = re.compile(r"[-+]?\d{1,30}", re.ASCII)
_NAMED = {"nan": "NaN", "inf": "Infinity", "infinity": "Infinity", "+inf": "Infinity", "-inf": "-Infinity", "-infinity": "-Infinity"}
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Samples:
    """`bodies` is read once, and may raise while it is; `close` it where it is not read to its end. `single`: it is one call, whose answer is
    the answer; else a list has one for each. `assumed`: what nobody declared."""

    bodies: Iterator[PredictionBody]
    single: bool
    assumed: Mapping[str, Any] = field(default_factory=dict)

    def close(self) -> None:
        close = getattr(self.bodies, "close", None)
        if close is not None:
            close()


def limits_of(settings: Settings, deadline: float) -> FormLimits:
    """What one call may bring."""
    return FormLimits(
        settings.max_samples, settings.max_unpacked_bytes, Limits(settings.max_image_pixels, settings.max_body_bytes, deadline)
    )


def decode(
    filetype: str,
    fields: Mapping[str, str],
    files: Mapping[str, bytes],
    metadata: ModelMetadata,
    declaration: Declaration,
    limits: FormLimits,
) -> Samples:
    """`fields` and `files` by their names: `input`, and `inputfile_NAME`.

    Raises InvalidFields for what is missing or is no filetype, invalid_input, too_large, deadline_exceeded, unsupported.
    """
    source = _Source(fields, files, metadata, declaration, limits)
    kinds = kinds_of(filetype)
    if isinstance(kinds, str):
        return _one_word(kinds, source)
    names = [spec.name for spec in metadata.inputs]
    if unknown := [name for name in kinds if name not in names]:
        raise invalid(f"filetype names {unknown[0][:80]!r}; the inputs of model {metadata.name!r} are {', '.join(map(repr, names))}")
    columns = {name: source.column(name, kind) for name, kind in kinds.items()}
    if not any(isinstance(column, Iterator) for column in columns.values()):
        return Samples(iter([PredictionBody({name: column for name, column in columns.items() if not isinstance(column, Iterator)})]), True)
    return Samples(_together(columns), False, source.assumed)


def kinds_of(filetype: str) -> str | dict[str, str]:
    text = filetype.strip()
    if not text.startswith("{"):
        _check_kind(text)
        return text
    value = tensor_json.parse(tensor_json.encode_text("filetype", text), "filetype")
    if not isinstance(value, dict) or not value:
        raise InvalidFields({"filetype": "must be a word, or a JSON object of input name and word"})
    for word in value.values():
        _check_kind(word)
    return value


def _check_kind(word: object) -> None:
    if word not in FILE_TYPES:
        raise InvalidFields({"filetype": f"{str(word)[:40]!r} is none of {', '.join(FILE_TYPES)}"})


def _together(columns: Mapping[str, Given | Iterator[Given]]) -> Iterator[PredictionBody]:
    """One value of each for each sample; those that are no list stand in every one. Raises invalid_input for different lengths."""
    running = {name: column for name, column in columns.items() if isinstance(column, Iterator)}
    fixed = {name: column for name, column in columns.items() if not isinstance(column, Iterator)}
    end = object()
    number = 0
    try:
        while True:
            values: dict[str, Any] = {name: next(column, end) for name, column in running.items()}
            ended = [name for name, value in values.items() if value is end]
            if ended:
                if len(ended) < len(values):
                    raise invalid(f"input {ended[0]!r} has {number} samples, another one has more")
                return
            number += 1
            yield PredictionBody({**values, **fixed})
    finally:
        for column in running.values():
            getattr(column, "close", lambda: None)()


def _one_word(kind: str, source: "_Source") -> Samples:
    if kind == NONE:
        return Samples(iter([PredictionBody(source.object(source.json("input"), "input"))]), True)
    if kind == JPG:
        return Samples(iter([PredictionBody({source.only_name(): Files((source.picture("input"),))})]), True)
    if kind == CSV:
        return Samples(source.table(), False)
    if kind == TXT:
        return Samples(source.lines(), False)
    name = source.only_name()
    column = source.many(kind, "input", name)
    return Samples((PredictionBody({name: value}) for value in column), False, source.assumed)


class _Source:
    """What was sent, and how each part of it becomes values for an input."""

    def __init__(
        self,
        fields: Mapping[str, str],
        files: Mapping[str, bytes],
        metadata: ModelMetadata,
        declaration: Declaration,
        limits: FormLimits,
    ) -> None:
        self._fields = fields
        self._files = files
        self._metadata = metadata
        self._specs = {spec.name: spec for spec in metadata.inputs}
        self._declaration = declaration
        self._limits = limits
        self._object: Mapping[str, Any] | None = None
        self.assumed: dict[str, Any] = {}

    def only_name(self) -> str:
        """The model's only input, else what stands for its only picture."""
        return next(iter(self._specs)) if len(self._specs) == 1 else ANY_PICTURE

    def column(self, name: str, kind: str) -> Given | Iterator[Given]:
        """The value of one input, or its values for each sample."""
        own = f"{OF_ONE}{name}"
        if kind == NONE:
            return Nested(shaped(self._specs[name], self._of_object(name, own)))
        if kind == JPG:
            return Files((self.picture(own),))
        if kind == CSV:
            return self._of_table(self._specs[name], own)
        if kind == TXT:
            return (Nested(self._line(self._specs[name], own, number, text)) for number, text in self._lines(own))
        return self.many(kind, own, name)

    def object(self, value: Any, where: str) -> dict[str, Given]:
        """{input name: value}; of a model with one input also the value alone."""
        if not isinstance(value, dict):
            if len(self._specs) != 1:
                raise invalid(f"{where} is not a JSON object of input name and value")
            value = {next(iter(self._specs)): value}
        return {str(name): Nested(shaped(self._specs[name], item) if name in self._specs else item) for name, item in value.items()}

    def json(self, field: str) -> Any:
        return tensor_json.parse(self._bytes(field), field)

    def picture(self, field: str) -> bytes:
        """A file, or its bytes in base64. A file may hold the text as well."""
        content = self._bytes(field)
        if field in self._files and (kind_of(content) not in ("", "plain text")):
            return content
        return _base64(field, content)

    def many(self, kind: str, field: str, name: str) -> Iterator[Given]:
        if kind == ZIP:
            return (self._archived(name, sample) for sample in input_files.archived(field, self._bytes(field), self._limits))
        content = self._bytes(field)
        if kind == MP4_TEXT:
            content = _base64(field, content)
        rate = self._declaration.rates.get(self._picture_name(name))
        if rate is None:
            self.assumed[name] = {"rate": "every frame"}
        return (Files((frame,)) for frame in video.frames(field, content, rate, self._limits))

    def table(self) -> Iterator[PredictionBody]:
        """A column for each input; of a model with one input of rows of numbers, that many columns in their order."""
        header, rows = input_files.rows("input", self._bytes("input"), self._limits)
        if set(header) == set(self._specs):
            specs = [self._specs[name] for name in header]
            return (
                PredictionBody(
                    {spec.name: Nested(self._cell(spec, "input", number, cell)) for spec, cell in zip(specs, cells, strict=True)}
                )
                for number, cells in rows
            )
        if len(self._specs) == 1 and len(self._metadata.inputs[0].shape) in (1, 2):
            spec = self._metadata.inputs[0]
            return (PredictionBody({spec.name: self._row(spec, "input", number, cells)}) for number, cells in rows)
        missing = sorted(set(self._specs) - set(header))
        what = f"input {missing[0]!r} is missing" if missing else f"there is no input {sorted(set(header) - set(self._specs))[0][:80]!r}"
        raise invalid(f"the header of the csv does not fit model {self._metadata.name!r}: {what}")

    def lines(self) -> Iterator[PredictionBody]:
        """Of a model with several inputs each line is a JSON object."""
        lines = self._lines("input")
        if len(self._specs) == 1:
            spec = self._metadata.inputs[0]
            return (PredictionBody({spec.name: Nested(self._line(spec, "input", number, text))}) for number, text in lines)
        return (PredictionBody(self._line_object(number, text)) for number, text in lines)

    def _line_object(self, number: int, text: str) -> dict[str, Given]:
        where = f"input, line {number}"
        value = tensor_json.parse(tensor_json.encode_text(where, text), where)
        return self.object(value, where)

    def _of_table(self, spec: TensorSpec, field: str) -> Iterator[Given]:
        _, rows = input_files.rows(field, self._bytes(field), self._limits)
        return (self._row(spec, field, number, cells) for number, cells in rows)

    def _row(self, spec: TensorSpec, field: str, number: int, cells: Sequence[str]) -> Nested:
        if len(cells) == 1:
            return Nested(self._cell(spec, field, number, cells[0]))
        return Nested(shaped(spec, [number_of(spec, f"{field}, line {number}", cell) for cell in cells]))

    def _cell(self, spec: TensorSpec, field: str, number: int, cell: str) -> Any:
        return self._text_value(spec, f"{field}, line {number}", cell)

    def _lines(self, field: str) -> Iterator[tuple[int, str]]:
        return input_files.lines(field, self._bytes(field), self._limits)

    def _line(self, spec: TensorSpec, field: str, number: int, text: str) -> Any:
        where = f"{field}, line {number}"
        parts = [part for part in re.split(r"[\s,;]+", text.strip()) if part]
        if spec.datatype != "BYTES" and len(parts) > 1 and not text.lstrip().startswith("["):
            return shaped(spec, [number_of(spec, where, part) for part in parts])
        return self._text_value(spec, where, text)

    def _text_value(self, spec: TensorSpec, where: str, text: str) -> Any:
        """A text, a number, or numbers as a JSON list."""
        if spec.datatype == "BYTES":
            return shaped(spec, text)
        if text.lstrip().startswith("["):
            return shaped(spec, tensor_json.parse(tensor_json.encode_text(where, text), where))
        return shaped(spec, number_of(spec, where, text))

    def _archived(self, name: str, sample: input_files.Sample) -> Given:
        if sample.is_picture:
            return Files((sample.content,))
        spec = self._specs.get(name)
        if spec is None or self._picture_name(name) in self._declaration.images:
            raise invalid(f"{sample.where} is a text, and the input takes pictures")
        text = input_files.text_of(sample.where, sample.content)
        if spec.datatype == "BYTES":
            return Nested(shaped(spec, text))
        parts = [part for part in re.split(r"[\s,;]+", text.strip()) if part]
        if len(parts) > 1 and not text.lstrip().startswith("["):
            return Nested(shaped(spec, [number_of(spec, sample.where, part) for part in parts]))
        return Nested(self._text_value(spec, sample.where, text))

    def _picture_name(self, name: str) -> str:
        pictures = list(self._declaration.images)
        return pictures[0] if name == ANY_PICTURE and ANY_PICTURE not in self._specs and len(pictures) == 1 else name

    def _of_object(self, name: str, own: str) -> Any:
        """From `input`, else from the input's own field."""
        if "input" in self._fields or "input" in self._files:
            if self._object is None:
                value = self.json("input") if self._bytes("input").strip() else {}
                if not isinstance(value, dict):
                    raise invalid("input is not a JSON object of input name and value")
                self._object = value
            if name in self._object:
                return self._object[name]
        if own not in self._fields and own not in self._files:
            raise invalid(f"input {name!r} stands neither in input nor in {own}")
        return self.json(own)

    def _bytes(self, field: str) -> bytes:
        """A file, else a text field. Raises InvalidFields where there is neither."""
        if field in self._files:
            return self._files[field]
        if field not in self._fields:
            raise InvalidFields({field: "is missing"})
        return tensor_json.encode_text(field, self._fields[field])


def shaped(spec: TensorSpec, value: Any) -> Any:
    """The same with the batch axis, where it was left out, and a single value as the only element."""
    depth, inner = 0, value
    while isinstance(inner, list) and depth <= len(spec.shape):
        depth, inner = depth + 1, inner[0] if inner else None
    missing = len(spec.shape) - depth
    axes = spec.shape[:missing]
    if missing > 0 and all(axis in (-1, 1) for axis in axes) and (missing == 1 or depth == 0):
        for _ in axes:
            value = [value]
    return value


def number_of(spec: TensorSpec, where: str, text: str) -> Any:
    """A cell as a JSON value of the input's datatype. Raises invalid_input."""
    text = text.strip()
    if spec.datatype == "BYTES":
        return text
    if spec.datatype == "BOOL" and text.lower() in _FLAGS:
        return _FLAGS[text.lower()]
    if spec.datatype.startswith(("INT", "UINT")) and _WHOLE.fullmatch(text):
        return int(text)
    if spec.datatype.startswith(("FP", "BF")):
        if text.lower() in _NAMED:
            return _NAMED[text.lower()]
        if _NUMBER.fullmatch(text):
            return float(text)
    what = f"{text[:40]!r} is no value" if text else "it is empty, which is no value"
    raise invalid(f"{where}: {what} of input {spec.name!r}, which is {spec.datatype}")


def _base64(field: str, text: bytes) -> bytes:
    """Also after `data:...;base64,` and over several lines. Raises invalid_input."""
    if text.startswith(b"data:"):
        text = text[text.find(b",") + 1 :]
    text = b"".join(text.split())
    if not text:
        raise invalid(f"{field} is empty")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"{field} is not base64 text") from None
