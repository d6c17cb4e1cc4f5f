"""What a measurement starts is ended, whatever it started in its turn."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from benchmarks.processes import cpu_seconds, pinned, tree
from tests.processes import wait_until_gone

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:  # its parent ends, and it gets another session: no group and no parent leads to it any more
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        signal.pause()
    os._exit(0)
os.wait()
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.pause()
"""

MEASUREMENT = """
import subprocess, sys
from pathlib import Path
from benchmarks.processes import running
with running([sys.executable, "-c", sys.argv[1]], log=Path(sys.argv[2]), stdout=subprocess.PIPE) as process:
    print(process.pid, process.stdout.readline().strip(), flush=True)
    if sys.argv[3] == "interrupt":
        raise KeyboardInterrupt
"""


def test_a_grandchild_that_ignores_its_end_is_ended_also_after_an_interrupt(tmp_path: Path) -> None:
    for how in ("done", "interrupt"):
        command = [sys.executable, "-c", MEASUREMENT, STUBBORN, str(tmp_path / "log"), how]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        pids = {int(pid) for pid in done.stdout.split()}
        assert len(pids) == 2, done.stderr
        assert not wait_until_gone(pids)


def test_a_pinned_command_and_what_it_starts_keep_to_their_cores() -> None:
    core = min(os.sched_getaffinity(0))
    script = textwrap.dedent("""
        import os, subprocess, sys
        print(os.sched_getaffinity(0), flush=True)
        subprocess.run([sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"])
    """)
    done = subprocess.run(pinned([sys.executable, "-c", script], (core,)), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{{{core}}}"] * 2


def test_a_tree_has_its_root_first_and_its_time_counts() -> None:
    assert tree(os.getpid())[0] == os.getpid()
    before = cpu_seconds(os.getpid())
    assert before > 0
