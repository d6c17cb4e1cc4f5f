"""What `outboard doctor` looks at of the machine."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

from outboard import certificates, nginx
from outboard.doctor import OK, PROBLEM, WARNING, Check, Finding, Place
from outboard.models_table import size_text

PYTHON = (3, 11)
FILES, LISTEN_QUEUE = 4096, 1024
LEAST_DISK, LITTLE_DISK = 1 << 30, 5 << 30
SOON = timedelta(days=30)
_LONGEST_SOCKET_PATH = 107
_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
_PARTS = {"server": ("onnxruntime", "prometheus_client", "grpc_health"), "gateway": ("flask", "PIL", "argon2", "sqlite_utils", "pyuwsgi")}
_CERTIFICATES = "TLS_CERTIFICATE", "TLS_CLIENT_CA"


def python(place: Place, version: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Finding]:
    text = ".".join(map(str, version))
    if version < PYTHON:
        yield Finding(PROBLEM, "python", f"{text} is too old", f"install Python {PYTHON[0]}.{PYTHON[1]} or newer")
    else:
        yield Finding(OK, "python", text)
    for part, modules in _PARTS.items():
        missing = [name for name in modules if find_spec(name) is None]
        if missing:
            yield Finding(
                WARNING,
                f"packages of the {part}",
                f"{', '.join(missing)} missing",
                f"pip install -e '.[{part}]' in the checkout, to run it here",
            )
        else:
            yield Finding(OK, f"packages of the {part}", "installed")


def web_server(place: Place) -> Iterator[Finding]:
    binary = nginx.find()
    if binary is None:
        yield Finding(
            WARNING, "nginx", "is not installed", "install it (Debian: apt install nginx-light): HTTP and gRPC are slower without"
        )
        return
    said = subprocess.run([binary, "-v"], capture_output=True, text=True, timeout=10, check=False)
    version = said.stderr.strip().rpartition("/")[2]
    if said.returncode:
        yield Finding(PROBLEM, "nginx", f"does not run (status {said.returncode})", "install it anew, or start with --nginx off")
    else:
        yield Finding(OK, "nginx", version)


def folders(place: Place) -> Iterator[Finding]:
    data = place.data
    there = next(path for path in (data, *data.parents) if path.exists())
    if not there.is_dir():
        yield Finding(PROBLEM, "data folder", f"{there} is not a folder", "choose another one with --data")
    elif not os.access(there, os.W_OK | os.X_OK):
        yield Finding(
            PROBLEM, "data folder", f"{there} cannot be written by this user", "change its owner, or choose another one with --data"
        )
    else:
        yield Finding(OK, "data folder", f"{data} can be written")
    size = len(os.fsencode(data / "run" / "x10000000.lane"))
    if size > _LONGEST_SOCKET_PATH:
        text = f"unix sockets in {data / 'run'} would have paths of {size} bytes, of {_LONGEST_SOCKET_PATH} that are possible"
        yield Finding(PROBLEM, "socket paths", text, "choose a shorter --data")
    else:
        yield Finding(OK, "socket paths", f"{size} bytes of {_LONGEST_SOCKET_PATH}")
    free = shutil.disk_usage(there).free
    level = PROBLEM if free < LEAST_DISK else WARNING if free < LITTLE_DISK else OK
    yield Finding(level, "disk", f"{size_text(free)} free at {there}", "" if level == OK else "make room, or choose another --data")


def limits(place: Place, somaxconn: Path = _SOMAXCONN) -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        advice = f"raise it to {FILES} or more (ulimit -n, LimitNOFILE= of systemd)"
        yield Finding(WARNING, "open files", f"at most {hard} for a process", advice)
    else:
        yield Finding(OK, "open files", "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard} for a process")
    try:
        queue = int(somaxconn.read_text())
    except (OSError, ValueError):
        yield Finding(WARNING, "listen queue", "the kernel does not say how long it may be", "look at net.core.somaxconn")
        return
    if queue < LISTEN_QUEUE:
        text = f"{queue} connections: more at once are turned away"
        yield Finding(WARNING, "listen queue", text, f"sysctl -w net.core.somaxconn={LISTEN_QUEUE} (or 4096)")
    else:
        yield Finding(OK, "listen queue", f"{queue} connections")


def memory_limits(place: Place) -> Iterator[Finding]:
    from inference_server import control_groups
    from inference_server.executors.memory_groups import delegated

    group = control_groups.own("memory")
    if place.environ.get("OUTBOARD_SERVER_MEMORY_LIMITS") == "watch":
        yield Finding(OK, "memory limits", "are kept by watching, as was set")
    elif group is None or not (os.access(group.folder, os.W_OK) and delegated(group.folder)):
        advice = "run the server as a systemd service with Delegate=yes for limits that the kernel keeps"
        yield Finding(WARNING, "memory limits", "are kept by watching: no control group is this user's to divide", advice)
    else:
        yield Finding(OK, "memory limits", "are kept by control groups")


def sandbox(place: Place) -> Iterator[Finding]:
    from inference_server.executors import sandbox

    if why := sandbox.unusable():
        until = "all models that are code, and scripts, are refused"
        if place.environ.get("OUTBOARD_SERVER_SANDBOX") != "required":
            until = (
                "operators' models that are code run without a box and may do what the server may; users' models and scripts are refused"
            )
        advice = f"install it, or allow user namespaces; until then {until}"
        yield Finding(WARNING, "box for Python models", why, advice)
    else:
        yield Finding(OK, "box for Python models", "bubblewrap works")


def certificates_of(place: Place, now: datetime | None = None) -> Iterator[Finding]:
    now = now or datetime.now(UTC)
    named = {key: text for key, text in place.environ.items() if key.startswith("OUTBOARD_") and key.endswith(_CERTIFICATES) and text}
    for key, text in sorted(named.items()):
        try:
            end = certificates.ends_at(Path(text))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            yield Finding(PROBLEM, "certificate", f"{key}={text}: {why}", "name a PEM file that this user may read")
            continue
        when = f"{key} ends on {end:%Y-%m-%d}"
        if end <= now:
            yield Finding(PROBLEM, "certificate", f"{when}: it is over", "renew it: the server reads the files again by itself")
        elif end - now < SOON:
            yield Finding(WARNING, "certificate", f"{when}, in {(end - now).days} days", "renew it")
        else:
            yield Finding(OK, "certificate", when)


CHECKS: tuple[Check, ...] = (python, web_server, folders, limits, memory_limits, sandbox, certificates_of)
