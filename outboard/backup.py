"""`outboard backup` and `outboard restore`: the gateway's state in one file, and back."""

import argparse
import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from gateway.storage import backups
from gateway.storage.backups import BackupError, Told

_DATA = ("OUTBOARD_GATEWAY_DATA_DIR", "OUTBOARD_DATA")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `backup`."""
    parser.add_argument("file", metavar="FILE", help="the file to make; one that is there is never overwritten")
    _add_data(parser)


def add_restore_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `restore`."""
    parser.add_argument("file", metavar="FILE", help="a file that `outboard backup` made")
    parser.add_argument("--check", action="store_true", help="only look whether the backup is whole; changes nothing")
    _add_data(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help=f"the data folder (default: {', '.join(_DATA)}, else ./data)")


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0 made, 1 not; the reason is on standard error."""
    try:
        told = backups.write(_state(arguments), Path(arguments.file).absolute(), datetime.now(UTC))
    except (BackupError, OSError) as error:
        print(f"outboard backup: {_reason(error)}", file=sys.stderr)
        return 1
    print(f"{arguments.file}: {_described(told)}")
    return 0


def run_restore(arguments: argparse.Namespace) -> int:
    """Exit status: 0 restored (or whole, with --check), 1 not, and then nothing was changed."""
    state = _state(arguments)
    fresh = state.with_name(f"{state.name}.restoring-{secrets.token_hex(4)}")
    try:
        with ExitStack() as held:
            if not arguments.check:
                held.enter_context(_alone(state.parent / "run"))
            state.parent.mkdir(parents=True, exist_ok=True)
            try:
                told = backups.unpack(Path(arguments.file), fresh)
                kept = None if arguments.check else backups.swap(fresh, state, datetime.now(UTC))
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    except (BackupError, OSError) as error:
        print(f"outboard restore: {_reason(error)}", file=sys.stderr)
        return 1
    print(f"{arguments.file}: {'whole' if arguments.check else 'restored'}: {_described(told)}")
    if kept is not None:
        print(f"what was there before is in {kept}: remove it when all is well")
    return 0


def _state(arguments: argparse.Namespace) -> Path:
    named = arguments.data or next((os.environ[name] for name in _DATA if os.environ.get(name)), "data")
    return Path(named).absolute() / "gateway"


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """No gateway and no task worker runs on the folder, nor starts meanwhile. Raises BackupError."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for path in (run_dir / "gateway.lock", *sorted(run_dir.glob("worker-*.lock"))):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                what = "a gateway" if path.name == "gateway.lock" else "a task worker"
                raise BackupError(f"{what} runs on {run_dir.parent}: stop it first") from None
        yield


def _reason(error: Exception) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


def _described(told: Told) -> str:
    return f"made at {told.made_at}, {told.users} accounts, {told.files} files, {told.bytes} bytes"
