"""A collector of traces on loopback: takes OTLP/HTTP with JSON, keeps the spans, and can be told to refuse."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.http_servers import Answer, taking_posts


@dataclass(frozen=True)
class Got:
    """A span as it came; ids in hexadecimal, times in ns."""

    service: str
    trace: str
    id: str
    parent: str
    name: str
    kind: int
    start: int
    end: int
    error: str
    said: dict[str, Any]


@dataclass
class Collector:
    """`answers`: statuses for the next requests, then 200; `body`: of a 200."""

    address: str
    spans: list[Got] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    body: dict[str, Any] = field(default_factory=dict)
    requests: int = 0

    def whole(self, trace: str) -> list[Got]:
        """The spans of a trace, in the order of their beginnings."""
        return sorted((span for span in list(self.spans) if span.trace == trace), key=lambda span: span.start)

    def of(self, trace: str) -> dict[str, Got]:
        """The spans of a trace, by name."""
        return {span.name: span for span in list(self.spans) if span.trace == trace}


@contextmanager
def collector(port: int = 0) -> Iterator[Collector]:
    def take(path: str, headers: dict[str, str], body: bytes) -> Answer:
        assert path == "/v1/traces" and headers["content-type"] == "application/json"
        status = made.answers.pop(0) if made.answers else 200
        if status == 200:
            made.spans += read(json.loads(body))
        made.requests += 1
        return status, {}, json.dumps(made.body).encode()

    made = Collector("")
    with taking_posts(take, port) as address:
        made.address = f"http://{address}"
        yield made


def read(said: dict[str, Any]) -> list[Got]:
    found = []
    for resource in said["resourceSpans"]:
        service = attributes(resource["resource"]["attributes"])["service.name"]
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                about = attributes(span["attributes"])
                start, end = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
                error = span["status"].get("message", "")
                assert (span["status"].get("code") == 2) == bool(error) == ("error.type" in about), span
                ids = (span["traceId"], span["spanId"], span.get("parentSpanId", ""))
                found.append(Got(service, *ids, span["name"], span["kind"], start, end, error, about))
    return found


def attributes(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: pair["value"].get("stringValue", pair["value"].get("intValue")) for pair in pairs}
