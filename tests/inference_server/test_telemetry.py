"""onnxruntime tells nobody what this host does, and keeps nothing of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from idl.codes import Code, ServingError
from inference_server.executors.process import Watcher, Zygote
from tests.inference_server.test_executor import start
from tests.proofs.models import TABLE, probe, probe_request

ROOT = Path(__file__).resolve().parent.parent.parent

CODE = """
import sys
{}
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(len(session.get_inputs()))
"""
OURS, PLAIN = "from inference_server.backends.runtime import onnxruntime", "import onnxruntime"


@pytest.mark.parametrize("line", [OURS, PLAIN], ids=["ours", "plain"])
def test_nothing_is_kept_in_the_home_folder(tmp_path: Path, line: str) -> None:
    """The plain import shows that there would be something; once a version keeps nothing, that half can go."""
    home = tmp_path / "home"
    home.mkdir()
    environ = {"HOME": str(home), "PATH": os.environ["PATH"]}  # CI=true would turn it off as well
    command = [sys.executable, "-c", CODE.format(line), str(probe(tmp_path / "m.onnx"))]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0
    kept = [path for path in home.rglob("*") if path.is_file() and "onnxruntime" in str(path)]
    assert bool(kept) == (line == PLAIN), kept


def test_failed_runs_leave_nothing_behind(zygote: Zygote, watcher: Watcher, tmp_path: Path) -> None:
    executor = start(zygote, watcher, probe(tmp_path / "m.onnx"))

    def fail(times: int) -> None:
        for _ in range(times):
            with pytest.raises(ServingError) as failed:
                executor.call(probe_request("m", 1000, index=TABLE + 1))
            assert failed.value.code is Code.INVALID_INPUT

    try:
        fail(100)
        before = executor.memory_bytes()
        fail(1000)
        assert executor.memory_bytes() - before < 1e6
    finally:
        executor.close()
