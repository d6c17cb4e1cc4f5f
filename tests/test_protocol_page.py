"""docs/protocol.md names every call and every extension, and tests that exist."""

import ast
import re
from pathlib import Path

from idl.generated import inference_pb2
from idl.trace_control import Published
from inference_server.engine import EXTENSIONS
from inference_server.run_time import RunTime
from inference_server.shared_memory import SharedMemory
from inference_server.trace_settings import TraceSettings

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "protocol.md").read_text()
CHECKS = "tests/e2e/clients/triton_examples.py"


def functions(file: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)}


def named_tests() -> list[tuple[str, str, str]]:
    """(file, test, check) of the whole page; a test without a file is of the file before it on its line."""
    found = []
    for line in PAGE.splitlines():
        file = ""
        for path, name, check in re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)(?:\[(\w+)\])?`", line):
            file = path or file
            found.append((file, name, check))
    return found


def test_every_named_test_exists() -> None:
    named = named_tests()
    assert len(named) > 30
    missing = [each for each in named if each[1] not in functions(each[0]) or (each[2] and each[2] not in functions(CHECKS))]
    assert not missing


def test_every_row_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| call", "| extension"))]
    assert rows and all("::test_" in row for row in rows)


def test_every_call_and_every_extension_is_there(tmp_path: Path) -> None:
    methods = {method.name for method in inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
    calls, _, extensions = PAGE.partition("## Extensions")
    assert methods <= set(re.findall(r"`(\w+)`", calls))
    published = Published(tmp_path)
    everything = RunTime(SharedMemory(enabled=True), TraceSettings(published=published)).extensions()
    published.close()
    assert everything == ("system_shared_memory", "trace")
    assert {*EXTENSIONS, *everything} <= set(re.findall(r"`([\w()]+)`", extensions))
    assert RunTime().extensions() == ()
