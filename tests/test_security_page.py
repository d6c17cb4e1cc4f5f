"""docs/security.md: every test that it names is there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "security.md"


def test_every_line_of_the_page_names_tests_that_are_there() -> None:
    table = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    lines = table[table.index("| door | who stands there | can | cannot | test |") + 2 :]
    named = [re.findall(r"`(test_\w+)`", line) for line in lines]
    assert lines and all(named), [line for line, names in zip(lines, named, strict=True) if not names]
    defined = {
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name for names in named for name in names} <= defined
