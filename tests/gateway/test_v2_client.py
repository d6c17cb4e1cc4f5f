"""The official client works unmodified against the served application."""

import subprocess
import sys
from pathlib import Path

from tests.gateway.model_host import Served


def test_official_client(served: Served) -> None:
    program = Path(__file__).parent / "triton_client.py"
    token = served.administrator["Authorization"].removeprefix("Bearer ")
    done = subprocess.run([sys.executable, program, served.address, token], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
