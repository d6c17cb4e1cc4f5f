"""The script of a deployment: written, tried, kept in versions, compared, put into use and taken off."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

from flask import request
from werkzeug.wrappers import Response

from gateway.blueprints.rest import take
from gateway.context import services
from gateway.errors import STATUS, InvalidFields
from gateway.operations.access import Can
from gateway.pages import script_templates, signatures
from gateway.pages.deployment_places import Opened, deployment_at, opened, render_tab
from gateway.pages.forms import whole
from gateway.pages.frame import Pages, doer, go, me
from gateway.pages.signatures import Signature
from gateway.storage.scripts import ScriptRecord, ScriptVersionRecord
from idl.codes import Code, ServingError

_pages = Pages("deployment_script")
blueprint = _pages.blueprint
_SHOWN = 20
_MOST_LINES = 4000
_MOST_MATCHED = 400
"""Lines between the first and the last that differ, in which equal ones are looked for: the time for it grows with their third power."""
_LINE = re.compile(r"\bline (\d+)")
_Code = tuple[Literal["replace", "delete", "insert", "equal"], int, int, int, int]


@dataclass(frozen=True, slots=True)
class Line:
    """Of a comparison. `sign`: "+", "-", " ", or "…" where lines that are equal are left out; numbers of the line before and after."""

    sign: str
    before: int | None
    after: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Known:
    """The reader's script that the page is about; None: there is none of that name. `in_use`: the deployment's version of it."""

    name: str
    script: ScriptRecord | None
    in_use: ScriptVersionRecord | None


@_pages.page("/ui/deployments/<name>/script")
def script(name: str) -> Response:
    return _page(name)


@_pages.page("/ui/deployments/<name>/script", "POST")
def save(name: str) -> Response:
    """A new version, put into use or not. What is wrong stands above the editor, and what was typed in it."""
    found = opened(name, Can.CHANGE)
    owned = services()
    source = request.form.get("source", "").replace("\r\n", "\n")
    called = request.form.get("name", "").strip() or found.record.name
    try:
        take(("scripts", 30, 2.0), me())
        kept, version = owned.scripts.put(me(), called, source.encode(), doer())
        if request.form.get("use"):
            owned.deployments.change(me(), name, {"script": {"name": kept.name, "version": version.number}}, doer())
    except ServingError as error:
        return _page(name, error, source, called)
    return go(_at(found, kept.name, version.number))


@_pages.page("/ui/deployments/<name>/script/use", "POST")
def use(name: str) -> Response:
    """A version that is kept, from now on; without one: no script any more."""
    found = opened(name, Can.CHANGE)
    called, number = request.form.get("name", ""), whole(request.form.get("version", ""), 9)
    services().deployments.change(me(), name, {"script": None if number is None else {"name": called, "version": number}}, doer())
    return go(_at(found, called, number))


@_pages.page("/ui/deployments/<name>/script/delete", "POST")
def delete(name: str) -> Response:
    found = opened(name, Can.CHANGE)
    try:
        services().scripts.delete(me(), request.form.get("name", ""), doer())
    except ServingError as error:
        return _page(name, error)
    return go(_at(found))


def _at(found: Opened, name: str = "", number: int | None = None) -> str:
    where = deployment_at(found.record.rpc_name, "script")
    if not name:
        return where
    return f"{where}?{urlencode({'name': name} | ({} if number is None else {'version': number}))}"


def _page(name: str, error: ServingError | None = None, source: str | None = None, called: str = "") -> Response:
    found = opened(name, Can.CHANGE)
    known = _known(found, called or request.args.get("name", ""))
    shown = _shown(known)
    signature = signature_of(found)
    made = services().scripts.source(shown).decode() if shown is not None and source is None else source or ""
    values: dict[str, Any] = {
        "known": known,
        "shown": shown,
        "source": made,
        "signature": signature_for(found, signature, open_inputs=True),
        "templates": script_templates.templates(signature),
        "versions": [],
        "more": None,
        "lines": None,
        "error": error,
        "error_line": _line_of(error),
    }
    if known.script is not None:
        below = _number("below")
        versions = services().scripts.versions(known.script, below, _SHOWN + 1)
        values |= {"versions": versions[:_SHOWN], "more": versions[_SHOWN - 1].number if len(versions) > _SHOWN else None}
        values |= _compared(known.script)
    return render_tab("deployment/script.html", found, "script", 200 if error is None else STATUS[error.code], **values)


def _known(found: Opened, called: str) -> Known:
    """The script that is asked for, the one in use, or the reader's of the deployment's name."""
    scripts, record = services().scripts, found.record
    for name in dict.fromkeys(filter(None, (called, record.script, record.name))):
        try:
            kept = scripts.read(me(), name)
        except ServingError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            if name == called:
                return Known(name, None, None)
            continue
        in_use = None
        if record.script == kept.name and record.script_version is not None and record.script_version <= kept.latest:
            version = scripts.version(kept, record.script_version)
            in_use = version if version.id == record.script_version_id else None
        return Known(kept.name, kept, in_use)
    return Known(record.name, None, None)


def _shown(known: Known) -> ScriptVersionRecord | None:
    if known.script is None:
        return None
    number = _number("version")
    if number is None:
        return known.in_use or services().scripts.version(known.script, None)
    return services().scripts.version(known.script, number)


def _number(key: str) -> int | None:
    return whole(request.args.get(key, ""), 9)


def _line_of(error: ServingError | None) -> int | None:
    said = None if error is None or isinstance(error, InvalidFields) else _LINE.search(error.message)
    return int(said[1]) if said else None


# two versions --------------------------------------------------------------------------------------------------------------------------


def _compared(kept: ScriptRecord) -> dict[str, Any]:
    before, after = _number("before"), _number("after")
    if before is None or after is None:
        return {}
    scripts = services().scripts
    texts = [scripts.source(scripts.version(kept, number)).decode().splitlines() for number in (before, after)]
    lines = None if max(map(len, texts)) > _MOST_LINES else list(compare(*texts))
    return {"before": before, "after": after, "lines": lines, "too_long": lines is None}


def compare(before: list[str], after: list[str]) -> Iterator[Line]:
    """What is different, with three lines around it."""
    for place, group in enumerate(_Codes(_codes(before, after)).get_grouped_opcodes(3)):
        if place or group[0][1]:
            yield Line("…", None, None, "")
        for kind, low, high, first, last in group:
            if kind == "equal":
                for at in range(low, high):
                    yield Line(" ", at + 1, first + at - low + 1, before[at])
                continue
            yield from (Line("-", at + 1, None, before[at]) for at in range(low, high))
            yield from (Line("+", None, at + 1, after[at]) for at in range(first, last))


class _Codes(difflib.SequenceMatcher[str]):
    """For grouping what was compared already."""

    def __init__(self, codes: list[_Code]) -> None:
        super().__init__()
        self._codes = codes

    def get_opcodes(self) -> list[_Code]:
        return self._codes


def _codes(before: list[str], after: list[str]) -> list[_Code]:
    """As difflib has them. Where the part that differs is long, all of it is taken away and added."""
    same = _same(before, after)
    old, new = before[same:], after[same:]
    end = _same(old[::-1], new[::-1])
    old, new = old[: len(old) - end], new[: len(new) - end]
    first = _equal(0, 0, same)
    last = _equal(same + len(old), same + len(new), end)
    if max(len(old), len(new)) > _MOST_MATCHED:
        return [*first, ("replace", same, same + len(old), same, same + len(new)), *last]
    matched = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [*first, *((kind, low + same, high + same, at + same, to + same) for kind, low, high, at, to in matched), *last]


def _same(before: list[str], after: list[str]) -> int:
    """How many lines at the beginning are equal."""
    pairs = enumerate(zip(before, after, strict=False))
    return next((at for at, (old, new) in pairs if old != new), min(len(before), len(after)))


def _equal(low: int, first: int, count: int) -> list[_Code]:
    return [("equal", low, low + count, first, first + count)] if count else []


# what the deployment takes -------------------------------------------------------------------------------------------------------------


def signature_of(found: Opened) -> Signature | None:
    """Of the version that serves; None where its model is not to be seen."""
    record, storage = found.record, services().storage
    version = storage.models.version_by_id(record.serving_version_id or record.version_id)
    return None if version is None else signatures.of_version(storage, version)


def signature_for(found: Opened, signature: Signature | None, *, open_inputs: bool = False) -> dict[str, Any]:
    """What static/try.js makes its form of. `open_inputs`: a script may take other inputs than the model does, so that any are taken."""
    if signature is None:
        return {"inputs": [], "outputs": [], "labelled": "", "top_k": 0, "streams": False, "open": True, "example": {"inputs": {}}}
    made = signatures.for_form(signature)
    if open_inputs:
        example = {each["name"]: each["sample"] for each in made["inputs"] if each["sample"] is not None}
        made |= {"inputs": [], "labelled": "", "open": True, "streams": False, "example": {"inputs": example}}
    return made
