"""`GET /docs`: the OpenAPI document as one page of HTML, without script and without anything from another address."""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --accent: #0b6e99; }
@media (prefers-color-scheme: dark) { :root { --accent: #5ac1e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0 0 .25rem; } h2 { margin: 2.5rem 0 .5rem; } h3 { margin: 1rem 0 .25rem; font-size: 1rem; }
a { color: var(--accent); } code, .path { font-family: ui-monospace, monospace; font-size: .9em; }
nav ul { columns: 9rem; padding: 0; list-style: none; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; }
summary { cursor: pointer; padding: .45rem .7rem; display: flex; flex-wrap: wrap; gap: .2rem .7rem; align-items: baseline; }
summary:focus-visible, a:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
details[open] > summary { border-bottom: 1px solid var(--line); background: var(--soft); }
details > div { padding: .2rem .8rem .8rem; }
.method { font-weight: 700; min-width: 4.2rem; color: var(--accent); } .path { font-weight: 600; } .says { flex-basis: 100%; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .25rem .5rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } th, td { overflow-wrap: break-word; } .wide { overflow-x: auto; } td ul { margin: 0; padding-left: 1.1rem; }
"""
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy: its own style sheet, and nothing else."""


def render(document: Mapping[str, Any]) -> str:
    """The page."""
    info = document["info"]
    tags = {tag["name"]: tag["description"] for tag in document["tags"]}
    found: dict[str, list[str]] = {name: [] for name in tags}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            found.setdefault(operation["tags"][0], []).append(_operation(method.upper(), path, operation))
    parts = [
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
        *(f"<p>{_prose(text)}</p>" for text in info["description"].split("\n\n")),
        '<p>The same for programs: <a href="openapi.json">openapi.json</a>, OpenAPI 3.1.</p>',
        "<nav aria-label='Parts'><ul>",
        *(f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>' for name in (*found, "shapes")),
        "</ul></nav><main>",
    ]
    for name, operations in found.items():
        parts.append(f'<h2 id="{_anchor(name)}">{escape(name[0].upper() + name[1:])}</h2><p>{_prose(tags.get(name, ""))}</p>')
        parts += operations
    parts.append('<h2 id="shapes">Shapes</h2><p>The bodies that routes name.</p>')
    parts += [_shape(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}: HTTP reference</title><style>{_STYLE}</style></head><body>{''.join(parts)}</main></body></html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [
        f'<details id="{escape(operation["operationId"])}"><summary><span class="method">{method}</span><span class="path">{escape(path)}</span>',
        f'<span class="says">{_prose(operation["summary"])}</span></summary><div>',
        f"<p>{_who(operation['security'])}</p>",
    ]
    if operation.get("parameters"):
        rows = [
            (
                f"<code>{escape(each['name'])}</code>" + (" (required)" if each["required"] else ""),
                escape(each["in"]),
                _type(each["schema"]),
                _prose(each["description"]),
            )
            for each in operation["parameters"]
        ]
        parts.append(_table("Parameters", ("name", "in", "type", ""), rows))
    if "requestBody" in operation:
        body = operation["requestBody"]
        contents = [(f"<code>{escape(kind)}</code>", _content(content)) for kind, content in body["content"].items()]
        parts.append(_table("Body" if body["required"] else "Body, which may be left out", ("content type", ""), contents))
    answers = [
        (
            f"<code>{status}</code>",
            _prose(answer["description"]),
            "<br>".join(f"<code>{escape(kind)}</code> {_content(content)}" for kind, content in answer.get("content", {}).items()),
        )
        for status, answer in sorted(operation["responses"].items())
    ]
    parts.append(_table("Answers", ("status", "", "content"), answers))
    return "".join([*parts, "</div></details>"])


def _who(security: Sequence[Mapping[str, Any]]) -> str:
    if not security:
        return "No token is needed."
    return "A token is needed." if {} not in security else "With a token, or without one where that is enough."


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{cell}</th>' if cell else "<td></td>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in rows)
    return f'<h3>{caption}</h3><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _content(content: Mapping[str, Any]) -> str:
    schema = content.get("schema", {})
    return _fields(schema) or _type(schema)


def _shape(name: str, schema: Mapping[str, Any]) -> str:
    text = f"<p>{_prose(schema['description'])}</p>" if "description" in schema else ""
    return (
        f'<details id="{_anchor(f"shape {name}")}"><summary><span class="path">{escape(name)}</span></summary>'
        f"<div>{text}{_fields(schema) or _type(schema)}</div></details>"
    )


def _fields(schema: Mapping[str, Any]) -> str:
    """An object's fields as a list; "" for what is none."""
    needed = set(schema.get("required", ()))
    items = [
        f"<li><code>{escape(name)}</code>{' (required)' if name in needed else ''}: {_type(known)}{_said(known)}</li>"
        for name, known in schema.get("properties", {}).items()
    ]
    others = list(schema.get("patternProperties", {}).values())
    if isinstance(schema.get("additionalProperties"), dict):
        others.append(schema["additionalProperties"])
    items += [f"<li>others: {_type(other)}{_said(other)}</li>" for other in others]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _said(schema: Mapping[str, Any]) -> str:
    return f", {_prose(schema['description'])}" if schema.get("description") else ""


def _type(schema: Mapping[str, Any]) -> str:
    """In a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{_anchor(f"shape {name}")}">{escape(name)}</a>'
    for key in ("anyOf", "oneOf"):
        if key in schema and "type" not in schema:
            return " or ".join(_type(each) for each in schema[key])
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    if "enum" in schema:
        return " | ".join(f"<code>{escape('null' if value is None else str(value))}</code>" for value in schema["enum"])
    if schema.get("format") == "binary" or not schema:
        return "bytes" if schema else "anything"
    kinds = schema.get("type", "anything")
    words = " or ".join([kinds] if isinstance(kinds, str) else kinds)
    if kinds == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(" ".join([words, *_limits(schema)]))


def _limits(schema: Mapping[str, Any]) -> Iterator[str]:
    if "format" in schema:
        yield f"({schema['format']})"
    if "minimum" in schema or "maximum" in schema:
        yield f"from {schema.get('minimum', '')} to {schema.get('maximum', '')}".replace("from  to", "up to").removesuffix(" to ")
    if "maxLength" in schema:
        yield f"of {schema.get('minLength', 0)} to {schema['maxLength']} characters"
    if "pattern" in schema:
        yield f"like {schema['pattern']}"


def _prose(text: str) -> str:
    """Text with `code` in it."""
    return "".join(f"<code>{escape(part)}</code>" if number % 2 else escape(part) for number, part in enumerate(text.split("`")))


def _anchor(name: str) -> str:
    return escape(name.replace(" ", "-"))
