"""The OpenAPI document and the page made from it: every route, none invented, and a document that a validator takes."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.blueprints import form_api, openapi, openapi_forms
from gateway.blueprints.rest import OPERATIONS


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.document()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_every_route_is_in_it_and_none_is_invented(app: Flask, document: dict[str, Any]) -> None:
    rules = [
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), rule.methods or set())
        for rule in app.url_map.iter_rules()
        if not rule.endpoint.startswith("pages_")
    ]
    actual = {(method, path) for path, methods in rules for method in methods - {"HEAD", "OPTIONS"}}
    assert {(method, path) for method, path, _ in operations(document)} == actual


def test_a_validator_takes_it(document: dict[str, Any]) -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_names_and_texts(document: dict[str, Any]) -> None:
    """Ids are unique, headings have texts and are all used, what stands in a path is told, and so is every field of the form API."""
    listed = list(operations(document))
    ids = [operation["operationId"] for _, _, operation in listed]
    assert len(set(ids)) == len(ids)
    assert {tag for _, _, operation in listed for tag in operation["tags"]} == set(openapi.TAGS)
    in_paths = {name for _, path, _ in listed for name in re.findall(r"\{(\w+)\}", path)}
    assert in_paths == set(openapi.IN_PATHS)
    fields = {name for route in form_api.ROUTES for names in openapi_forms.parameters_of(route) for name in names}
    assert fields <= set(openapi_forms.PARAMETERS)
    paths = {route.path for route in form_api.ROUTES}
    assert set(openapi_forms.ANSWERS) | set(openapi_forms.FILES) <= paths
    assert all(operation["summary"] and operation["responses"] for _, _, operation in listed)


def test_one_name_is_one_shape() -> None:
    """Two shapes of one title would hide each other."""
    kept: dict[str, Any] = {}

    def walk(schema: Any) -> None:
        if isinstance(schema, list):
            for part in schema:
                walk(part)
        elif isinstance(schema, dict):
            if schema.get("type") == "object" and isinstance(schema.get("title"), str):
                plain = {key: value for key, value in schema.items() if key != "description"}
                assert kept.setdefault(schema["title"], plain) == plain, schema["title"]
            for value in schema.values():
                walk(value)

    for operation in (*OPERATIONS, *openapi.TABLE):
        walk([answer.shape.schema() for answer in operation.answers.values() if answer.shape])
        walk([operation.body.schema() if operation.body else {}, *operation.raw.values()])


def test_files_and_forms_are_told_truly(document: dict[str, Any]) -> None:
    paths = document["paths"]
    upload = paths["/v1/models"]["post"]["requestBody"]["content"]
    model = upload["multipart/form-data"]["schema"]["properties"]["model"]
    assert model["format"] == "binary" and set(upload) == {"multipart/form-data", "application/json"}
    assert upload["application/json"]["schema"] == {"$ref": "#/components/schemas/ModelCreation"}
    pieces = paths["/v1/uploads/{upload}"]["patch"]
    assert set(pieces["requestBody"]["content"]) == {"application/octet-stream"}
    assert {"Upload-Offset", "Content-Range"} <= {parameter["name"] for parameter in pieces["parameters"]}
    taken = paths["/uploadmodel"]["post"]["requestBody"]["content"]
    assert set(taken) == {"multipart/form-data"} and "model" in taken["multipart/form-data"]["schema"]["required"]
    predict = paths["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"multipart/form-data", "application/x-www-form-urlencoded"}
    statuses = predict["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["status"]["enum"]
    assert {"success", "deployment paused", "invalid input"} <= set(statuses) and "invalid parameter" not in statuses
    assert "400" not in paths["/deletemodel"]["delete"]["responses"], "it never fails"
    assert set(paths["/v2"]["get"]["responses"]["503"]["content"]) == {"application/json"}
    ready = paths["/readyz"]["get"]["responses"]["503"]["content"]
    assert set(ready) == {"application/json", "application/problem+json"}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page(client: FlaskClient, document: dict[str, Any]) -> None:
    answer = client.get("/docs")
    text = answer.get_data(as_text=True)
    assert answer.status_code == 200 and answer.content_type == "text/html; charset=utf-8"
    page = _Page()
    page.feed(text)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {operation["operationId"] for _, _, operation in operations(document)} <= set(ids)
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert {link for link in links if not link.startswith("#")} == {"openapi.json"}
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids), "a link leads nowhere"
    assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "form"} == set()
    assert not any(name.startswith("on") or name in ("src", "style") for _, attributes in page.tags for name in attributes)
    assert "url(" not in text and "@import" not in text
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy


def test_a_long_query_is_a_long_request_line(document: dict[str, Any]) -> None:
    """nginx answers 414; what is short, or has a pattern, cannot come so far."""
    told = {(method, path) for method, path, operation in operations(document) if "414" in operation["responses"]}
    assert ("POST", "/v1/scripts") in told and ("GET", "/v1/deployments") not in told
