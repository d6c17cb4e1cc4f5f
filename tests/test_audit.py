"""`scripts/audit`: what it makes of pip-audit's reports. That a report of nothing is no good news is the point of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT

CLEAN = {"name": "flask", "version": "3.1.2", "vulns": []}
SKIPPED = {"name": "numpy", "skip_reason": "Dependency not found on PyPI and could not be audited: numpy (2.3.5)"}
BAD = {
    "name": "urllib3",
    "version": "1.26.0",
    "vulns": [{"id": "PYSEC-2021-108", "fix_versions": ["1.26.5"], "aliases": [], "description": ""}],
}
UNMENDED = {"name": "ply", "version": "3.11", "vulns": [{"id": "CVE-2025-1", "fix_versions": []}]}


def audit(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "audit", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def judged(folder: Path, *packages: dict[str, Any], strict: bool = False) -> tuple[int, str]:
    report = folder / "report.json"
    report.write_text(json.dumps({"dependencies": packages, "fixes": []}))
    code, out, err = audit("--report", report, *(["--strict"] if strict else []))
    assert err == ""
    return code, out


def test_nothing_known(tmp_path: Path) -> None:
    assert judged(tmp_path, CLEAN, strict=True) == (0, "audit: 1 packages were looked up, 0 of them have known advisories\n")


def test_what_is_known_is_named_with_what_mends_it(tmp_path: Path) -> None:
    code, out = judged(tmp_path, CLEAN, BAD, UNMENDED)
    assert code == 1 and out.splitlines() == [
        "ply 3.11: CVE-2025-1, not mended yet",
        "urllib3 1.26.0: PYSEC-2021-108, mended in 1.26.5",
        "audit: 3 packages were looked up, 2 of them have known advisories",
    ]


def test_what_could_not_be_looked_up_is_not_called_clean(tmp_path: Path) -> None:
    code, out = judged(tmp_path, SKIPPED)
    assert code == 0 and "audit: 0 packages were looked up" in out
    assert "NOTHING WAS AUDITED: 1 packages could not be looked up, such as numpy: Dependency not found" in out
    assert judged(tmp_path, SKIPPED, strict=True)[0] == 2
    code, out = judged(tmp_path, SKIPPED, CLEAN)
    assert code == 0 and "NOTHING" not in out and "1 packages could not be looked up" in out
    assert judged(tmp_path, SKIPPED, CLEAN, strict=True)[0] == 2
    assert judged(tmp_path, SKIPPED, BAD, strict=True)[0] == 1, "an advisory is worse than a gap"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"dependencies": 5}', '{"dependencies": [5]}', '{"dependencies": [{"name": "x"}]}'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    code, out, err = audit("--report", tmp_path / "report.json")
    assert code == 1 and out == "" and err.startswith("audit: ") and "Traceback" not in err


def test_lock_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("# none\n")
    assert audit(one)[2] == "audit: there is no package in these lock files\n"
    one.write_text("Typing_Extensions==4.0.0\n")
    other.write_text("typing-extensions==4.1.0 \\\n    --hash=sha256:0\n")
    code, _, err = audit(one, other)
    assert code == 1 and err == "audit: typing-extensions is locked as 4.0.0 and as 4.1.0\n"
    assert audit(tmp_path / "absent.txt")[0] == 1


def test_the_projects_own_locks_agree_with_each_other() -> None:
    import runpy

    script = runpy.run_path(str(ROOT / "scripts" / "audit"))
    found = script["pins"]([lock for lock in sorted(script["LOCKS"].glob("*.txt")) if lock != script["TOOLS"]])
    assert {"numpy", "grpcio", "onnxruntime", "onnxruntime-gpu", "pytest"} <= found.keys()
