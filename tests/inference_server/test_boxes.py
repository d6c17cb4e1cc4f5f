"""The box of models, tried from inside by whoever may run the server: root and not, with nothing of a server around it."""

import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from inference_server.executors import sandbox, syscall_filter, thread_limit
from tests.needs import boxed, need

pytestmark = boxed

ROOT = Path(__file__).resolve().parent.parent.parent
SOMEBODY = 65533
DRIVER = """
import json, subprocess, sys
sys.path.insert(0, sys.argv[1])
from inference_server.executors import sandbox, thread_limit
with sandbox.seccomp_filter() as descriptor:
    python = [sys.executable, "-I", "-S", "-B", "-c", sys.argv[2], sys.argv[1], str(thread_limit.to_hold())]
    command = [*sandbox.box(sandbox.PACKAGES, descriptor), *python]
    done = subprocess.run(command, pass_fds=[descriptor], env={}, capture_output=True, text=True, timeout=60)
print(json.dumps([done.returncode, done.stdout, done.stderr]))
"""
BEGIN = """
import ctypes, errno, json, os, socket, sys
sys.path.insert(0, sys.argv[1])
from inference_server.executors import syscall_filter, thread_limit
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    numbers = syscall_filter._REFUSED.get(name) or {"clone": syscall_filter._CLONE, "prlimit": syscall_filter._PRLIMIT}[name]
    if libc.syscall(numbers[syscall_filter._COLUMNS.index(os.uname().machine)], *arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

def tried(attempts):
    found = {}
    for attempt in attempts:
        try:
            exec(attempt)
        except OSError as error:
            found[attempt] = errno.errorcode[error.errno]
        else:
            found[attempt] = "done"
    return found
"""


def python_of_somebody() -> str:
    """An interpreter that a user without rights may run, "" where there is none."""
    for python in (sys.executable, "/usr/bin/python3"):
        read = f"open({str(ROOT / 'idl' / 'lane.py')!r}), open(os.path.realpath(sys.executable), 'rb'), os.listdir(sys.base_prefix)"
        code = f"import os, sys; sys.exit(sys.version_info < (3, 11) or not all(({read})))"
        if Path(python).exists() and not subprocess.run([*as_somebody(), python, "-c", code], capture_output=True).returncode:
            return python
    return ""


def as_somebody() -> list[str]:
    return ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]


@pytest.fixture(params=["whoever runs the tests", "another user"])
def user(request: pytest.FixtureRequest) -> list[str]:
    """The command before a Python program, for that program to be run by somebody."""
    if request.param != "another user":
        return [sys.executable]
    if os.geteuid():
        pytest.skip("only root can be another user")
    need("setpriv")
    if not (python := python_of_somebody()):
        pytest.skip("no interpreter here may be read by everybody")
    return [*as_somebody(), python]


def inside(user: list[str], code: str) -> Any:
    """What `code`, in a box, printed as JSON."""
    done = subprocess.run(
        [*user, "-B", "-c", DRIVER, str(ROOT), BEGIN + dedent(code)], capture_output=True, text=True, timeout=90, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    status, printed, said = json.loads(done.stdout)
    assert status == 0 and printed, said
    return json.loads(printed)


def test_it_holds_for_whoever_runs_it(user: list[str]) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from inference_server.executors import sandbox; print(sandbox.unusable())"
    said = subprocess.run([*user, "-B", "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd="/")
    assert said.stdout == "\n", said.stdout


def test_nothing_but_two_folders_can_be_written(user: list[str]) -> None:
    found = inside(
        user,
        """
        writable = []
        for folder, folders, files in os.walk("/"):
            if folder.startswith("/proc/") and folder.split("/")[2] in ("self", "thread-self", "1", str(os.getpid())):
                folders[:] = []
            if folder == "/usr" or os.path.ismount(folder) and folder.startswith("/root"):
                folders[:] = []
            for name in files:
                path = os.path.join(folder, name)
                try:
                    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                    writable.append(path)
                except OSError:
                    pass
            try:
                with open(os.path.join(folder, "outboard-was-here"), "w"):
                    writable.append(folder)
            except OSError:
                pass
        for name in ("core_pattern", "modprobe", "hotplug"):
            try: writable.append(open("/proc/sys/kernel/" + name, "r+").name)
            except OSError: pass
        for name in os.listdir("/proc/self"):
            try: writable.append(open("/proc/self/" + name, "r+b", buffering=0).name)
            except OSError: pass
        own = lambda path: path.startswith("/tmp/") and os.stat(path).st_dev == os.stat("/tmp").st_dev  # what lies in it, and nothing put there
        print(json.dumps([path for path in writable if not path.startswith(("/dev/pts", "/proc/self/fd")) and not own(path)]))
        """,
    )
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "stdin", "stdout", "stderr")}
    assert set(found) - devices == {"/tmp", "/dev/shm"}


def test_what_can_be_written_is_bounded(user: list[str]) -> None:
    found = inside(
        user,
        """
        sizes = {}
        for folder in ("/tmp", "/dev/shm"):
            sizes[folder] = 0
            try:
                with open(folder + "/large", "wb", buffering=0) as file:
                    while sizes[folder] < 10**9:
                        sizes[folder] += file.write(bytes(2**20))
            except OSError as error:
                assert error.errno == errno.ENOSPC
        print(json.dumps(sizes))
        """,
    )
    assert found["/tmp"] <= sandbox.TMP_BYTES and found["/dev/shm"] <= sandbox.SHM_BYTES


def test_what_root_alone_may_read_of_the_kernel_is_not_there(user: list[str]) -> None:
    found = inside(
        user,
        """
        paths = ["kcore", "kmsg", "kpagecount", "kpageflags", "slabinfo", "timer_list", "vmallocinfo", "pagetypeinfo", "1/environ"]
        read = {}
        for path in paths:
            try: read[path] = len(open("/proc/" + path, "rb", buffering=0).read(64))
            except OSError: pass
        print(json.dumps(read))
        """,
    )
    assert found.pop("1/environ") == 0, "the environment of the box's first process can be looked at, and is empty"
    assert not any(found.values()), found


def test_system_calls_that_the_filter_refuses(user: list[str]) -> None:
    """Each would be granted, or refused for another reason, to the same process without the filter."""
    refused = {
        "call('unshare', 0x10000000)": "EPERM",
        "call('unshare', 0x20000)": "EPERM",
        "call('unshare', 0)": "EPERM",
        "call('setns', os.open('/proc/self/ns/user', 0), 0)": "EPERM",
        "call('mount', b'none', b'/tmp', b'tmpfs', 0, 0)": "EPERM",
        "call('clone', 0x10000000 | 17, 0, 0, 0, 0)": "EPERM",
        "call('clone', 17, 0, 0, 0, 0)": "EPERM",
        "libc.syscall(435, 0, 0) < 0 and (_ for _ in ()).throw(OSError(ctypes.get_errno(), ''))": "ENOSYS",
        "os.fork()": "EPERM",
        "call('ptrace', 0, 0, 0, 0)": "EPERM",
        "call('process_vm_readv', os.getpid(), 0, 0, 0, 0, 0)": "EPERM",
        "call('io_uring_setup', 1, 0)": "EPERM",
        "call('userfaultfd', 1)": "EPERM",
        "call('keyctl', 0, -3, 0)": "EPERM",
        "call('add_key', b'user', b'a', b'b', 1, -3)": "EPERM",
        "call('bpf', 0, 0, 0)": "EPERM",
        "call('perf_event_open', 0, 0, 0, 0, 0)": "EPERM",
        "call('shmget', 0, 4096, 0o1600)": "EPERM",
        "call('prlimit', 1, 7, 0, 0)": "EPERM",
        "socket.socket(40, socket.SOCK_STREAM)": "EAFNOSUPPORT",
        "socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)": "EAFNOSUPPORT",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)": "EAFNOSUPPORT",
        "socket.socket(socket.AF_INET).close(); socket.socketpair()": "done",
        "__import__('threading').Thread(target=print, args=('',), kwargs={'end': ''}).start()": "done",
    }
    again = BEGIN + "print(json.dumps(tried(['call(\"unshare\", 0x10000000)', 'os.fork()'])))"
    found = inside(
        user,
        f"""
        print("[" + json.dumps(tried({list(refused)!r})) + ",", flush=True)
        if os.environ.get("AGAIN"): raise SystemExit
        import tempfile
        with open("/tmp/again.py", "w") as file:
            file.write({again!r} + "\\nprint(']')")
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", "/tmp/again.py", sys.argv[1]])
        """,
    )
    assert found[0] == refused
    assert set(found[1].values()) == {"EPERM"}, "whoever starts another program takes the filter along"


def test_threads_are_bounded_by_the_kernel_where_it_can(user: list[str]) -> None:
    most, count = inside(
        user,
        """
        import threading
        over = threading.Event()
        most, count = min(64, int(sys.argv[2])), 0
        thread_limit.hold(most)
        try:
            while most and count < 500:
                threading.Thread(target=over.wait).start()
                count += 1
        except RuntimeError:
            pass
        over.set()
        print(json.dumps([most, count]))
        """,
    )
    if user == [sys.executable]:
        assert bool(most) == bool(thread_limit.to_hold())
    assert count < most or not most


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ("read-only /proc", "can be opened for writing"),
        ("filter", "can be made"),
        ("network", "it has the network of "),
        ("read-only /", "/outboard can be opened for writing"),
    ],
)
def test_a_box_that_does_not_hold_is_none(monkeypatch: pytest.MonkeyPatch, left_out: str, said: str) -> None:
    """With one of its walls left out, `unusable` says which."""
    if left_out == "network" and len(socket.if_nameindex()) < 2:
        pytest.skip("this host has no network")
    box = sandbox.box

    def weaker(*arguments: Any) -> list[str]:
        command = box(*arguments)
        if left_out.startswith("read-only"):
            at = [index for index, word in enumerate(command) if word == "--remount-ro" and command[index + 1] == left_out.split()[1]]
            del command[at[0] : at[0] + 2]
        return command

    if left_out == "filter":
        monkeypatch.setattr(syscall_filter, "of_models", lambda: struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))
    if left_out == "network":
        monkeypatch.setattr(sandbox, "isolation", lambda: [word for word in _isolation() if word != "--unshare-all"] + _SPACES)
    monkeypatch.setattr(sandbox, "box", weaker)
    assert said in sandbox._unusable.__wrapped__()


_isolation = sandbox.isolation
_SPACES = ["--unshare-ipc", "--unshare-pid", "--unshare-uts"]
