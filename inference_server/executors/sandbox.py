"""A box for an owner's code: bubblewrap with no network, no capabilities, a read-only file system and no new processes.

Inside it the code sees the interpreter, this package, the system's libraries and its own version's folder, and an empty `/tmp`. What it
needs of the outside are the descriptors that it is born with. Processes cannot be made (a seccomp filter says EPERM to fork and to clone
without CLONE_THREAD; Linux, "Seccomp BPF"), so there is no fork bomb to count.
"""

import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

PROGRAM = "bwrap"
_TMP_BYTES = 64 * 2**20
_NOBODY = 65534
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
_SETTINGS = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
_CHECK_TIMEOUT_S = 10.0

_LOAD, _JUMP_EQUAL, _JUMP_ANY, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
_CLONE_THREAD = 0x00010000
_OTHER_ABI = 0x40000000
_CALLS = {"x86_64": (0xC000003E, 56, (57, 58), 435), "aarch64": (0xC00000B7, 220, (), 435)}
"""Machine -> (its number for audit, clone, fork and vfork, clone3)."""


def unusable() -> str:
    """Why code cannot be boxed here; "" where it can. Tried once."""
    return _unusable()


@lru_cache(maxsize=1)
def _unusable() -> str:
    if shutil.which(PROGRAM) is None:
        return "bubblewrap is not installed (Debian: apt install bubblewrap)"
    if platform.machine() not in _CALLS:
        return f"there is no system call filter for {platform.machine()}"
    with seccomp_filter() as descriptor:
        command = [*box((), descriptor), sys.executable, "-I", "-c", ""]
        try:
            tried = subprocess.run(
                command, pass_fds=[descriptor], env={}, capture_output=True, text=True, timeout=_CHECK_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"bubblewrap cannot be run: {error}"
    return "" if tried.returncode == 0 else f"bubblewrap does not work here: {tried.stderr.strip()[:300]}"


def box(readable: Sequence[Path], seccomp: int, devices: Sequence[Path] = ()) -> list[str]:
    """The command before the command. `seccomp`: a descriptor of `seccomp_filter`, to be passed on. `readable` are bound where they lie,
    `devices` as well, to be used.
    """
    command = [PROGRAM, *isolation(), "--seccomp", str(seccomp), "--hostname", "model", "--clearenv", *system()]
    command += ["--proc", "/proc", "--dev", "/dev", "--size", str(_TMP_BYTES), "--tmpfs", "/tmp"]
    for path in devices:
        command += ["--dev-bind-try", str(path), str(path)]
    command += seen(readable)
    command += ["--remount-ro", "/", "--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8", "--chdir", "/tmp", "--"]
    return command


def isolation() -> list[str]:
    """Name spaces of its own, another user, no capabilities, and an end with the thread that starts it."""
    user = ["--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    return ["--unshare-all", "--unshare-user", *user, "--cap-drop", "ALL", "--die-with-parent", "--new-session"]


def system() -> list[str]:
    """The system's libraries and programs, and what they read."""
    command: list[str] = []
    for path in map(Path, _SYSTEM):
        if path.is_symlink():
            command += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            command += ["--ro-bind", str(path), str(path)]
    for name in _SETTINGS:
        command += ["--ro-bind-try", name, name]
    return command


def seen(readable: Iterable[Path]) -> list[str]:
    """The interpreter, and `readable`, where they lie."""
    command: list[str] = []
    for path in _outermost([*_interpreter(), *readable]):
        command += ["--ro-bind", str(path), str(path)]
    return command


def _interpreter() -> list[Path]:
    found = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent]
    return [path for path in found if not any(_is_in(path, Path(name)) for name in _SYSTEM)]


def _outermost(paths: Sequence[Path]) -> list[Path]:
    """Without those that lie in another one of them."""
    different = sorted(set(paths))
    return [path for path in different if not any(_is_in(path, other) for other in different if other != path)]


def _is_in(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


class seccomp_filter:  # noqa: N801 - used as a function is
    """A descriptor of the filter, for as long as the block lasts."""

    def __enter__(self) -> int:
        self._descriptor = os.memfd_create("outboard-seccomp", 0)
        os.write(self._descriptor, program(platform.machine()))
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def program(machine: str) -> bytes:
    """The filter as `struct sock_filter[]`. Raises KeyError for a machine whose system calls are not known here."""
    arch, clone, forks, clone3 = _CALLS[machine]
    steps: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _OTHER_ABI),
        (_RETURN, 0, 0, _EPERM),
    ]
    for number in forks:
        steps += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    steps += [
        (_JUMP_EQUAL, 0, 1, clone3),  # its arguments lie in memory, which a filter cannot read: the C library then takes clone
        (_RETURN, 0, 0, _ENOSYS),
        (_JUMP_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_ANY, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
