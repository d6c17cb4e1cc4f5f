"""`python -m gateway`: the gateway under uWSGI, configured by OUTBOARD_GATEWAY_... (see docs/configuration.md)."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from gateway import log
from gateway.settings import PREFIX, Settings, SettingsError

_ROOT = Path(__file__).resolve().parent.parent
_MASTER = "import sys; sys.path.insert(0, {root!r}); from gateway import launch; sys.exit(launch.main())"
_SURROUNDINGS = {
    # glibc keeps up to 64 MiB free in each thread once large bodies have come and gone. With both fixed it gives what is large back at once.
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
    # numpy's threads, which would be started and never used: 0.1 s of processor time
    "OPENBLAS_NUM_THREADS": "1",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Replaces this process by uWSGI's master, which ends with status 2 for a wrong setting and 1 for anything else; so does --check."""
    parser = argparse.ArgumentParser(
        prog="outboard gateway", description="The web side, under uWSGI; settings are OUTBOARD_GATEWAY_... variables."
    )
    parser.add_argument("--check", action="store_true", help="read the settings and prepare the data folder, then end")
    options = parser.parse_args(argv)
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        print(f"outboard: {error}", file=sys.stderr)
        return 2
    log.configure(settings.log_level)
    if options.check:
        status: int = import_module("gateway.launch").check(settings)
        return status
    return _become_master(settings)


def _become_master(settings: Settings) -> NoReturn:
    """What a process takes from its environment at its start, and what others could read of it there, needs a new one."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)} | settings.to_env()
    for name, value in _SURROUNDINGS.items():
        environ.setdefault(name, value)
    password = environ.pop(f"{PREFIX}ADMIN_PASSWORD", "")
    reader, writer = os.pipe()
    os.write(writer, password.encode())
    os.close(writer)
    os.set_inheritable(reader, True)
    code = _MASTER.format(root=str(_ROOT))
    # uWSGI writes its own arguments over these, and so they have to be as long
    command = [sys.executable, "-P", "-c", code, "--ini", str(settings.uwsgi_ini), str(reader)]
    os.execve(sys.executable, command, environ)


if __name__ == "__main__":
    sys.exit(main())
