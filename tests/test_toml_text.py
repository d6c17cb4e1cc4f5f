"""TOML that somebody sent."""

import pytest

from idl import toml_text


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "[" * 101 + "]" * 101,
        "a = " + "{b = [" * 51 + "]}" * 51,
        'text = "\\""\na = ' + "[\n'[' # [\n," * 101,
    ],
)
def test_what_nests_deeply_is_refused_before_it_is_parsed(text: str) -> None:
    with pytest.raises(ValueError, match="more than 100 lists and tables inside each other"):
        toml_text.loads(text.encode())


def test_brackets_in_texts_and_comments_are_not_counted() -> None:
    given = {"a": "[" * 200, "b": '"""' + "{" * 200, "c": "[" * 200, "d": "\n" + "[" * 200}
    text = f"a = '{given['a']}' # {'[' * 200}\nb = '''{given['b']}'''\nc = \"{given['c']}\"\nd = \"\"\"\\n{'[' * 200}\"\"\"\n"
    assert toml_text.loads(text.encode()) == given
    assert toml_text.loads(b"a = " + b"[" * 100 + b"]" * 100)["a"]
    assert len(toml_text.loads(b"".join(b"[[t]]\n" for _ in range(1000)))["t"]) == 1000


@pytest.mark.parametrize("data", [b"a = ", b"\xff", b'a = """' * 10_000, b"a = '" * 10_000])
def test_what_is_no_toml_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        toml_text.loads(data)
