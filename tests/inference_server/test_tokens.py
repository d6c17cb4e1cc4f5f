"""Tokens: two at once, rights and models of each, a file that is read again when it changes, and what a check costs."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from idl.codes import Code, ServingError
from idl.thrift_schema import METHODS
from inference_server.transports import tokens
from inference_server.transports.grpc_probes import OWN
from inference_server.transports.guard import PUBLIC
from inference_server.transports.tokens import Token

FILE = f"""
[[token]]
name = "shop"
sha256 = "{hashlib.sha256(b"infers").hexdigest()}"
rights = ["infer"]
models = ["cats", "dogs"]

[[token]]
token = "reads"
rights = ["read"]

[[token]]
token = "controls"
rights = ["control"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(FILE)
    return path


def code(token: Token, given: str, verb: str, model: str | None = "") -> Code | None:
    try:
        token.check(given, verb, model)
    except ServingError as error:
        return error.code
    return None


def test_without_tokens_everybody_is_let_in() -> None:
    assert code(Token(""), "", "Drain") is None and code(Token(""), "anything", "ModelInfer", "cats") is None


@pytest.mark.parametrize("secret", ["old", "old,new", " new , old "])
def test_two_tokens_hold_at_once(secret: str) -> None:
    token = Token(secret)
    for given in ("old", "new"):
        wanted = None if given in secret else Code.UNAUTHENTICATED
        assert [code(token, given, verb) for verb in ("ModelInfer", "Drain", "no such verb")] == [wanted] * 3
    assert code(token, "", "ModelInfer") is code(token, secret + "x", "ModelInfer") is Code.UNAUTHENTICATED


@pytest.mark.parametrize("secret", ["a,b,c", "a,", ",", " "])
def test_three_tokens_or_an_empty_one_are_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="between commas"):
        Token(secret)


def test_a_right_reaches_for_its_verbs_and_no_others(file: Path) -> None:
    token = Token("all", str(file))
    for verb, (right, _) in tokens.VERBS.items():
        for given, its in (("infers", "infer"), ("reads", "read"), ("controls", "control")):
            assert code(token, given, verb, "cats") is (None if right == its else Code.FORBIDDEN), (given, verb)
        assert code(token, "all", verb) is None
    assert code(token, "infers", "SomethingNew") is code(token, "reads", "SomethingNew") is Code.FORBIDDEN
    assert code(token, "controls", "SomethingNew") is None


def test_a_token_for_some_models_names_no_other(file: Path) -> None:
    token = Token("", str(file))
    assert code(token, "infers", "ModelInfer", "cats") is code(token, "infers", "ModelInfer", "dogs") is None
    assert code(token, "infers", "ModelInfer", "birds") is code(token, "infers", "ModelInfer", "") is Code.FORBIDDEN
    assert code(token, "infers", "ModelInfer", "Cats") is code(token, "infers", "ModelInfer", "cats\0") is Code.FORBIDDEN
    assert code(token, "infers", "ModelInfer", None) is None, "its model comes later"
    assert code(token, "infers", "StreamNext") is None, "its model was checked when it was opened"


def test_a_region_named_like_a_model_is_not_that_model(tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.write_text('[[token]]\ntoken = "t"\nrights = ["infer", "read", "control"]\nmodels = ["cats"]\n')
    request: Any = type("Request", (), {"name": "cats"})()
    assert tokens.model_of("SystemSharedMemoryRegister", request) == "" and tokens.model_of("ModelConfig", request) == "cats"
    assert code(Token("", str(file)), "t", "SystemSharedMemoryRegister", "") is Code.FORBIDDEN


def test_every_verb_has_a_right() -> None:
    """What the table does not have needs `control`; here stands what was meant to."""
    meant = {
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
        "LogSettings",
        "Validate",
        "ValidateScript",
        "Control",  # whose rights are those of the verb in it: test_rights_are_those_of_the_verb
    }
    names = {*METHODS, *(method.name for service in OWN for method in service.methods)}
    assert names - PUBLIC - tokens.VERBS.keys() <= meant


def replace(file: Path, text: str) -> None:
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)


def test_a_changed_file_counts_and_a_broken_one_does_not(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = Token("all", str(file))
    assert code(token, "reads", "RepositoryIndex") is None
    replace(file, '[[token]]\ntoken = "newer"\nrights = ["read"]\n')
    token.look()
    assert code(token, "reads", "RepositoryIndex") is Code.UNAUTHENTICATED, "also one that was seen before"
    assert code(token, "newer", "RepositoryIndex") is code(token, "all", "Drain") is None
    for broken in ("[[token]\n", '[[token]]\ntoken = "x"\n', "x" * (1 << 20) + "xx"):
        replace(file, broken)
        token.look()
        assert code(token, "newer", "RepositoryIndex") is None
    file.unlink()
    caplog.clear()
    for _ in range(3):
        token.look()
    assert len(caplog.records) == 1, "said once, not every second"
    assert code(token, "newer", "RepositoryIndex") is None and "tokens of before stay" in caplog.text and "newer" not in caplog.text
    replace(file, "")
    token.look()
    assert code(token, "newer", "RepositoryIndex") is code(token, "", "ModelInfer") is Code.UNAUTHENTICATED, "none is not everybody"


def test_the_file_is_looked_at_by_itself(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = Token("", str(file))
    file.write_text("")
    os.utime(file, ns=(1, 1))
    assert code(token, "reads", "RepositoryIndex") is None, "not at each call"
    now = time.monotonic()
    monkeypatch.setattr(tokens.time, "monotonic", lambda: now + 2 * tokens.LOOK_EVERY_S)
    assert code(token, "reads", "RepositoryIndex") is Code.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("token = 1", "[[token]]"),
        ('tokens = "x"', "tokens is not known"),
        ('[[token]]\nrights = ["read"]', "token 1 needs either"),
        ('[[token]]\ntoken = ""\nrights = ["read"]', "token 1 needs either"),
        ('[[token]]\ntoken = "x"\nsha256 = "00"\nrights = ["read"]', "token 1 needs either"),
        ('[[token]]\nsha256 = "zz"\nrights = ["read"]', "64 hexadecimal"),
        ('[[token]]\ntoken = "x"\nrights = "read"', "rights is not a list"),
        ('[[token]]\ntoken = "x"\nrights = []', "rights is not a list"),
        ('[[token]]\ntoken = "x"\nrights = ["write"]', "control, infer, read"),
        ('[[token]]\ntoken = "x"\nrights = ["read"]\nmodels = []', "models is not a list"),
        ('[[token]]\ntoken = "x"\nrights = ["read"]\nmodel = "cats"', "model is not one of"),
        ('[[token]]\ntoken = "x"\nrights = ["read"]\n' * 2, "token 2 is there twice"),
        ("[[token]]\n" * 2000, "at most"),
        ("\xff", "tokens.toml cannot be used"),
    ],
)
def test_what_a_file_cannot_say(file: Path, text: str, says: str) -> None:
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError) as caught:
        Token("", str(file))
    assert says in str(caught.value) and str(file.parent) not in str(caught.value)


def test_a_file_that_is_not_there_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.toml cannot be used: No such file"):
        Token("", str(tmp_path / "nothing.toml"))


def test_a_check_takes_no_microsecond(file: Path) -> None:
    """The best of many runs, so that a busy machine says nothing: measured 0.2 to 0.4 µs with a file, rights and models."""
    token = Token("", str(file))
    best = float("inf")
    for _ in range(200):
        begun = time.perf_counter_ns()
        for _ in range(100):
            token.check("infers", "ModelInfer", "cats")
        best = min(best, (time.perf_counter_ns() - begun) / 100)
    assert best < 1000, f"{best} ns"
    print(f"{best:.0f} ns")
