"""Our own programs start no threads that they never use, and what they start is told nothing about it."""

import subprocess
import sys

import pytest

from tests.processes import ROOT, environment

_TELL = "import os; print(len(os.listdir('/proc/self/task')), os.environ.get('OPENBLAS_NUM_THREADS'))"
HEALTH = "from outboard.__main__ import main; main(['health', 'thrift://127.0.0.1:1'])"


def threads(code: str, **env: str) -> list[str]:
    environ = {key: value for key, value in environment(**env).items() if key != "OPENBLAS_NUM_THREADS" or key in env}
    done = subprocess.run([sys.executable, "-c", f"{code}; {_TELL}"], env=environ, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("code", ["import inference_server.__main__", "from idl import numpy_alone as n; n.load(); n.load()", HEALTH])
def test_numpy_has_no_threads_and_the_environment_says_nothing(code: str) -> None:
    assert threads(code) == ["1", "None"]


def test_what_somebody_has_set_stays() -> None:
    """A thread besides the first; where there is one core, numpy makes none whatever it is told."""
    plain = threads("import numpy", OPENBLAS_NUM_THREADS="2")
    assert threads("import inference_server.__main__", OPENBLAS_NUM_THREADS="2") == plain and plain[1] == "2"
