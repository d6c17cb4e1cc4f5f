"""How the scripts prepare their environment, with a stand-in for Python that writes down what it is asked for."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.eventually import eventually
from tests.processes import ROOT

PYTHON = """\
#!/usr/bin/env bash
if [ "$1" = -c ]; then
  case "$2" in *_base_executable*) echo "$0";; *sys.prefix*) echo "3.11, a stand-in";; esac
elif [ "$2" = venv ]; then
  mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; chmod +x "$3/bin/python"
else
  echo "${*:5}" >>"$CALLS"
  if [ "$5" = wheel ]; then mkdir -p "$8"; touch "$8/$(basename "${10}")"; fi
  if [ "$SLOW" ] && [[ "$*" == *$SLOW* ]]; then sleep 60; fi
  if [ "$FAILING" ] && [[ "$*" == *$FAILING* ]]; then exit 1; fi
fi
"""
LOCKS = ("runtime.txt", "dev.txt", "dialogue.txt")


class Folder:
    def __init__(self, path: Path) -> None:
        self.path, self.venv, self.calls = path, path / ".venv", path / "calls"
        (path / "python").write_text(PYTHON)
        (path / "python").chmod(0o755)
        for name in LOCKS:
            (path / name).write_text("a==1\n")

    def start(self, **env: str) -> subprocess.Popen[str]:
        self.calls.write_text("")
        code = f'set -euo pipefail; . "{ROOT}/scripts/_env.sh"; ensure_venv .venv {" ".join(LOCKS)}'
        environ = {"FAILING": "", "SLOW": "", **os.environ, "PYTHON": str(self.path / "python"), "CALLS": str(self.calls), **env}
        return subprocess.Popen(["bash", "-c", code], cwd=self.path, env=environ, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def ensure(self, **env: str) -> tuple[int, list[str]]:
        """Exit status, and what pip was asked for."""
        with self.start(**env) as process:
            process.communicate(timeout=60)
        assert not (self.path / ".venv.ahead").exists()
        return process.returncode, self.calls.read_text().splitlines()

    def locked(self) -> set[str]:
        return {path.name.removeprefix(".locked-") for path in self.venv.glob(".locked-*")}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


AHEAD = "--no-index --find-links .venv.ahead"


def test_a_new_one_is_filled_in_order_and_fetches_ahead(folder: Folder) -> None:
    status, calls = folder.ensure()
    assert status == 0 and folder.locked() == set(LOCKS)
    assert sorted(call for call in calls if call.startswith("wheel")) == [
        f"wheel --no-deps --wheel-dir .venv.ahead -r {name}" for name in ("dev.txt", "dialogue.txt")
    ]
    assert [call for call in calls if call.startswith("install")] == [
        "install --no-deps -r runtime.txt",
        f"install --no-deps --no-build-isolation --editable {ROOT}",
        f"install --no-deps {AHEAD} --no-compile -r dev.txt",
        f"install --no-deps {AHEAD} -r dialogue.txt",
    ]
    assert folder.ensure() == (0, []), "nothing to do"


def test_where_one_is_there_pip_gets_what_differs(folder: Folder) -> None:
    folder.ensure()
    (folder.path / "dev.txt").write_text("a==2\n")
    assert folder.ensure() == (0, ["install --no-deps --no-compile -r dev.txt"])


@pytest.mark.parametrize("failing", ["wheel --no-deps --wheel-dir .venv.ahead -r dev.txt", f"install --no-deps {AHEAD} --no-compile"])
def test_what_fails_is_tried_again_by_itself(folder: Folder, failing: str) -> None:
    status, _ = folder.ensure(FAILING=failing)
    assert status == 1 and folder.locked() == {"runtime.txt"}
    assert folder.ensure() == (0, ["install --no-deps --no-compile -r dev.txt", "install --no-deps -r dialogue.txt"])


def test_a_stop_leaves_nothing_behind(folder: Folder) -> None:
    with folder.start(SLOW="-r runtime.txt") as process:
        eventually(lambda: folder.calls.read_text().count("\n") == 3, "all three are on their way")
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode and not (folder.path / ".venv.ahead").exists() and not folder.locked()
    assert folder.ensure()[0] == 0 and folder.locked() == set(LOCKS)
