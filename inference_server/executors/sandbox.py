"""A box for an owner's code: bubblewrap with no network, no capabilities, a read-only file system and no new processes.

Inside it the code sees the interpreter, this package, the system's libraries and its own version's folder; `/tmp` and `/dev/shm` are empty,
and the only places to write. What it needs of the outside are the descriptors that it is born with. System calls are filtered
(`syscall_filter`). A server that is root is root to the kernel in there as well, whatever the box says: so all of /proc is read-only, and
what only root may read there is covered.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from inference_server.executors import syscall_filter

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = tuple(ROOT / name for name in ("idl", "inference_server"))
TMP_BYTES = SHM_BYTES = 64 * 2**20
WRITABLE = ("tmp", "dev/shm")
"""Below the box's root: what is written there is memory."""
_PROGRAM = "bwrap"
_NOBODY = 65534
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
_SETTINGS = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
_CHECK_TIMEOUT_S = 10.0
_PROBE = "import sys; sys.path.insert(0, sys.argv[1]); from inference_server.executors.box_probe import main; main()"


def unusable() -> str:
    """Why code cannot be boxed here; "" where it can. Tried once."""
    return _unusable()


@lru_cache(maxsize=1)
def _unusable() -> str:
    if shutil.which(_PROGRAM) is None:
        return "bubblewrap is not installed (Debian: apt install bubblewrap)"
    if not syscall_filter.known():
        return f"there is no system call filter for {os.uname().machine}"
    with seccomp_filter() as descriptor:
        command = [*box(PACKAGES, descriptor), sys.executable, "-I", "-S", "-c", _PROBE, str(ROOT)]
        try:
            tried = subprocess.run(
                command, pass_fds=[descriptor], env={}, capture_output=True, text=True, timeout=_CHECK_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"bubblewrap cannot be run: {error}"
    if tried.returncode:
        return f"bubblewrap does not work here: {tried.stderr.strip()[:300]}"
    return f"its box does not hold here: {tried.stdout[:300]}" if tried.stdout else ""


def box(readable: Sequence[Path], seccomp: int, devices: Sequence[Path] = (), environ: Mapping[str, str] | None = None) -> list[str]:
    """The command before the command, to be started with an empty environment: its first process shows it. `seccomp`: a descriptor of
    `seccomp_filter`, to be passed on. `readable` are bound where they lie, `devices` as well, to be used. `environ`: of the code.
    """
    command = [program(), *isolation(), "--seccomp", str(seccomp), "--hostname", "model", "--clearenv"]
    for name, value in {"HOME": "/tmp", "LANG": "C.UTF-8", **(environ or {})}.items():
        command += ["--setenv", name, value]
    command += [*system(), *_proc(), "--dev", "/dev"]
    for path in devices:
        command += ["--dev-bind-try", str(path), str(path)]
    command += ["--size", str(SHM_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev", "--size", str(TMP_BYTES), "--tmpfs", "/tmp"]
    return [*command, *seen(readable), "--remount-ro", "/", "--chdir", "/tmp", "--"]


def program() -> str:
    """Where bubblewrap lies: what starts it gives it no PATH to look for itself."""
    return shutil.which(_PROGRAM) or _PROGRAM


def isolation() -> list[str]:
    """Name spaces of its own, another user, no capabilities, and an end with the thread that starts it."""
    user = ["--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    return ["--unshare-all", "--unshare-user", *user, "--cap-drop", "ALL", "--die-with-parent", "--new-session"]


def _proc() -> list[str]:
    """Its own processes, and nothing to write: with root's number the kernel would let it (proc(5): owners, not capabilities, decide)."""
    command = ["--proc", "/proc"]
    for path in _roots_own():
        command += ["--ro-bind", os.devnull, path]
    return [*command, "--remount-ro", "/proc"]


@lru_cache(maxsize=1)
def _roots_own() -> tuple[str, ...]:
    """Files of /proc itself that root alone may read, where this is root."""
    if os.geteuid():
        return ()
    found = []
    for entry in os.scandir("/proc"):
        mode = 0 if entry.name.isdigit() or entry.is_symlink() else entry.stat().st_mode
        if stat.S_ISREG(mode) and not mode & stat.S_IROTH:
            found.append(entry.path)
    return tuple(sorted(found))


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
    """A descriptor of the filter for models, for as long as the block lasts."""

    def __enter__(self) -> int:
        self._descriptor = os.memfd_create("outboard-seccomp", 0)
        os.write(self._descriptor, syscall_filter.of_models())
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
