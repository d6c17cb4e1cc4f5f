"""TOML that somebody sent."""

import time
from pathlib import Path

import pytest

from idl import toml_text
from inference_server.repository import Repository

DEEP = "[" * 2000 + "]" * 2000


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "[" * 101 + "]" * 101,
        "a = " + "{b = [" * 51 + "]}" * 51,
        'text = "\\""\na = ' + "[\n'[' # [\n," * 101,
        f"a = ['''x'''', {DEEP}, '''y'''']",
        f'a = ["""x"""", {DEEP}, """y"""""]',
        ".".join("a" * 200) + " = 1",
        "[" + ".".join("a" * 200) + "]",
    ],
)
def test_what_nests_deeply_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than 100 lists and tables inside each other"):
        toml_text.loads(text.encode())
    folder = tmp_path / "models" / "m"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").touch()
    (folder / "model.toml").write_text(text)
    model = Repository([tmp_path / "models"]).read("m")
    assert model is not None and "model.toml" in model.problem


def test_brackets_in_texts_and_comments_are_not_counted() -> None:
    given = {"a": "[" * 200, "b": '"""' + "{" * 200, "c": "[" * 200, "d": "\n" + "[" * 200 + '"'}
    text = f'a = \'{given["a"]}\' # {"[" * 200}\nb = \'\'\'{given["b"]}\'\'\'\nc = "{given["c"]}"\nd = """\\n{"[" * 200}""""\n'
    assert toml_text.loads(text.encode()) == given
    assert toml_text.loads(b"a = " + b"[" * 100 + b"]" * 100)["a"]
    assert len(toml_text.loads(b"".join(b"[[t]]\n" for _ in range(1000)))["t"]) == 1000


@pytest.mark.parametrize("part", ['\\"""\n', "'''\n", '"""', '"""\\', '"""a', "'''a", '"', "'", "#", '"\\\n', '""', '""""\\'])
@pytest.mark.parametrize("end", ["", "\\", '"', "'"])
def test_what_never_ends_is_read_once(part: str, end: str) -> None:
    """64 kB take some 10 ms; where each quote looked through all of the rest for its end, it would be half a minute."""
    text = "a = " + part * (2**16 // len(part)) + end
    begun = time.process_time()
    assert len(toml_text._TEXTS_AND_COMMENTS.sub("", text)) <= len(text)
    assert time.process_time() - begun < 1.0


@pytest.mark.parametrize("data", [b"a = ", b"\xff", b'a = """' * 10_000, b"a = '" * 10_000, b'a = "', b'a = """\\'])
def test_what_is_no_toml_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        toml_text.loads(data)
