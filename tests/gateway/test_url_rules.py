"""Rules of addresses: nothing is compiled before it is needed, and then it builds what werkzeug's own would."""

import pytest
from flask import Flask
from werkzeug.routing import Map, Rule

from gateway.url_rules import QuickRule


def test_no_builder_is_compiled(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(Rule, "_compile_builder", lambda rule, append_unknown=True: compiled.append(rule.rule))
    rules = [QuickRule(rule.rule, endpoint=rule.endpoint) for rule in app.url_map.iter_rules()]
    Map(rules)
    assert len(rules) > 200 and not compiled
    assert all(isinstance(rule, QuickRule) for rule in app.url_map.iter_rules())


@pytest.mark.parametrize("kind", [Rule, QuickRule])
def test_addresses_are_built_as_ever(kind: type[Rule]) -> None:
    adapter = Map([kind("/a/<name>/<int:number>", endpoint="e")]).bind("example.org")
    for _ in range(2):
        assert adapter.build("e", {"name": "x y", "number": 3}) == "/a/x%20y/3"
        assert adapter.build("e", {"name": "x", "number": 3, "more": "z"}) == "/a/x/3?more=z"
    assert adapter.match("/a/x/4") == ("e", {"name": "x", "number": 4})
