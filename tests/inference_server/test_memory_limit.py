"""Memory limits on real processes: who goes over is killed and says why, nobody else is harmed, and nothing is left."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_server import control_groups
from inference_server.executors.memory_groups import MemoryGroups, Unusable, delegated, remove_left_overs
from inference_server.executors.memory_limit import MemoryLimits
from tests.eventually import eventually

MIB = 2**20
EATER = """
import sys
held = []
for line in sys.stdin:
    held.append(bytearray(b"x") * (int(line) << 20))
    print(sum(map(len, held)) >> 20, flush=True)
"""


class Eater:
    """A process that takes as many MiB as it is told to, and says how many it has."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", EATER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="ascii"
        )
        self.pid = self.process.pid
        assert self.eat(0) == 0

    def eat(self, mib: int) -> int:
        """What it has in all, -1 when it has died of it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{mib}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return int(line) if line else -1

    def end(self) -> int:
        self.process.kill()
        code = self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return code


def groups_usable() -> str:
    """Why control groups cannot be used here, "" where they can."""
    try:
        MemoryGroups().close()
    except Unusable as error:
        return str(error)
    return ""


WHY_NOT = groups_usable()
with_groups = pytest.mark.skipif(bool(WHY_NOT), reason=f"control groups cannot be used here: {WHY_NOT}")


@pytest.fixture(params=[pytest.param("auto", marks=with_groups), "watch"])
def limits(request: pytest.FixtureRequest) -> Iterator[MemoryLimits]:
    made = MemoryLimits(request.param)
    assert made.means.startswith("control groups" if request.param == "auto" else "watching: so configured")
    yield made
    made.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "memory-watch"]
    assert not left_over_groups()


@pytest.fixture
def eaters() -> Iterator[list[Eater]]:
    made = [Eater(), Eater(), Eater()]
    yield made
    for eater in made:
        eater.end()


def left_over_groups() -> list[str]:
    group = control_groups.own("memory")
    return [folder.name for folder in group.folder.glob(f"outboard-{os.getpid()}-*")] if group else []


def test_who_goes_over_its_limit_is_killed_alone_and_says_why(limits: MemoryLimits, eaters: list[Eater]) -> None:
    greedy, modest, free = eaters
    limits.apply(greedy.pid, 96 * MIB)
    limits.apply(modest.pid, 96 * MIB)
    limits.apply(free.pid, 0)
    assert greedy.eat(32) == 32 and modest.eat(32) == 32 and free.eat(200) == 200
    while greedy.eat(32) > 0:
        pass
    assert greedy.process.wait(10) == -9
    assert limits.reason(greedy.pid) == "killed: over its memory limit of 96 MiB"
    assert modest.eat(16) == 48 and free.eat(16) == 216
    assert limits.reason(modest.pid) == "" and limits.reason(free.pid) == ""
    for eater in eaters:
        eater.end()
        limits.forget(eater.pid)
        limits.forget(eater.pid)
    assert limits.reason(greedy.pid) == "", "what is forgotten has no reason"


def test_who_dies_of_something_else_has_no_reason(limits: MemoryLimits, eaters: list[Eater]) -> None:
    limits.apply(eaters[0].pid, 96 * MIB)
    eaters[0].eat(16)
    assert eaters[0].end() == -9
    assert limits.reason(eaters[0].pid) == ""
    limits.apply(eaters[0].pid, 96 * MIB)  # it is gone already
    assert limits.reason(eaters[0].pid) == ""
    limits.forget(eaters[0].pid)


def test_memory_that_is_shared_with_the_parent_is_not_its_own() -> None:
    """A fork has its parent's pages until it writes to them: a zygote's must not count against each executor."""
    code = """
import os, signal, sys
held = bytearray(b"x") * (200 << 20)
pid = os.fork()
if pid == 0:
    for line in sys.stdin:
        held[: int(line) << 20] = b"y" * (int(line) << 20)
        print("written", flush=True)
    os._exit(0)
print(pid, flush=True)
print(os.WTERMSIG(os.waitpid(pid, 0)[1]), flush=True)
"""
    limits = MemoryLimits("watch")
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None and parent.stdout is not None
    child = int(parent.stdout.readline())
    limits.apply(child, 100 * MIB)
    watched = limits._watch._watched[child]
    eventually(lambda: looked(watched.statm), "the watcher is there")
    for mib, said in ((16, "written\n"), (150, "")):
        parent.stdin.write(f"{mib}\n")
        parent.stdin.flush()
        if said:
            assert parent.stdout.readline() == said
    assert [line for line in parent.stdout if line != "written\n"] == ["9\n"]
    assert limits.reason(child) == "killed: over its memory limit of 100 MiB"
    limits.forget(child)
    limits.close()
    parent.communicate()
    assert parent.returncode == 0


def looked(statm: int) -> bool:
    return len(os.pread(statm, 200, 0).split()) == 7


SERVER = """
import os, sys, time
sys.stdin.readline()
from inference_server.executors.memory_limit import MemoryLimits
limits = MemoryLimits()
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
limits.apply(child, 1 << 30)
print(limits._grouped[child].folder, child, flush=True)
time.sleep(60)
"""


@with_groups
def test_groups_of_a_server_that_was_killed_are_removed_and_those_of_a_living_one_stay() -> None:
    ours = MemoryGroups()
    place = ours.make(4 << 30)  # a group for that server, as an init system or a container has one for it
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdin is not None and server.stdout is not None
        place.add(server.pid)
        server.stdin.write("go\n")
        server.stdin.flush()
        folder, child = server.stdout.readline().split()
        assert (Path(folder) / "cgroup.procs").read_text().split() == [child] and Path(folder).parent == place.folder
        remove_left_overs(place.folder)
        assert Path(folder).is_dir(), "its server lives"
        server.kill()
        server.wait(10)
        os.kill(int(child), 9)
        eventually(lambda: not any(path.read_text() for path in place.folder.rglob("cgroup.procs")), "the processes have ended")
        remove_left_overs(place.folder)
        assert not [path for path in place.folder.iterdir() if path.is_dir()]
    finally:
        server.kill()
        server.communicate()
        eventually(place.remove, "the group is empty")
        ours.close()
    assert not left_over_groups()


@with_groups
def test_a_group_that_cannot_be_made_is_a_watch_instead(eaters: list[Eater], caplog: pytest.LogCaptureFixture) -> None:
    limits = MemoryLimits()
    groups = limits._groups
    assert groups is not None
    taken = groups._group.folder / f"outboard-{groups._me}-2"
    taken.mkdir()  # the name that comes next
    with caplog.at_level(logging.WARNING):
        limits.apply(eaters[0].pid, 96 * MIB)
    assert "no control group, watched instead" in caplog.text
    while eaters[0].eat(32) > 0:
        pass
    assert limits.reason(eaters[0].pid) == "killed: over its memory limit of 96 MiB"
    limits.forget(eaters[0].pid)
    taken.rmdir()
    limits.close()
    assert not left_over_groups()


@with_groups
def test_the_host_says_what_the_group_allows(eaters: list[Eater]) -> None:
    """`host.memory` of a process in a group with a limit: the limit, and what is left of it."""
    code = "import sys; sys.stdin.readline(); from inference_server import host; print(*host.memory())"
    limits = MemoryLimits()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    limits.apply(process.pid, 256 * MIB)
    out, _ = process.communicate("go\n")
    limits.forget(process.pid)
    limits.close()
    total, available = map(int, out.split())
    assert total == 256 * MIB
    assert 128 * MIB < available < total


MAY_UNSHARE = subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not MAY_UNSHARE, reason="mounts of its own are not allowed to this user")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("mount -o remount,bind,ro {top}", ["the control group of this process cannot be changed: Read-only file system"]),
        (
            "umount --lazy {top}",
            [
                "this process is in no control group that counts memory",
                "the memory controller is not on for the control group of this process",  # version 2, beside it
            ],
        ),
    ],
)
def test_where_groups_cannot_be_used_it_says_why_and_watches(change: str, said: list[str]) -> None:
    group = control_groups.own("memory")
    if group is None or group.version == 2:
        pytest.skip("memory is not counted by a version 1 hierarchy here")
    code = "from inference_server.executors.memory_limit import MemoryLimits; limits = MemoryLimits(); print(limits.means); limits.close()"
    script = f"{change.format(top=group.top)} && exec {sys.executable} -c '{code}'"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip().removeprefix("watching: ") in said, done.stderr


def test_under_systemd_only_a_delegated_group_is_changed(tmp_path: Path) -> None:
    group, systemd = tmp_path / "group", tmp_path / "systemd"
    group.mkdir()
    assert delegated(group, systemd), "no systemd, nobody else's rules"
    systemd.mkdir()
    assert not delegated(group, systemd)
    for mark, said in ((b"0", False), (b"1", True)):
        try:
            os.setxattr(group, "user.delegate", mark)
        except OSError as error:
            pytest.skip(f"files here carry no attributes: {error.strerror}")
        assert delegated(group, systemd) is said
