"""HTTP load with wrk: one thread, `concurrency` connections, one request at a time on each."""

import json
import subprocess
from pathlib import Path

from benchmarks.figures import Sample
from benchmarks.processes import Cores, pinned

NAME = "wrk"
_SCRIPT = Path(__file__).parent / "post.lua"


def load(url: str, body: Path, headers: dict[str, str], concurrency: int, seconds: float, *, cores: Cores = ()) -> Sample:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    command = ["wrk", "-t1", f"-c{concurrency}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "-s", str(_SCRIPT), url]
    done = subprocess.run(
        pinned([*command, "--", str(body), *lines], cores), capture_output=True, text=True, timeout=seconds + 60, check=True
    )
    return Sample(**json.loads(done.stdout.splitlines()[-1]))
