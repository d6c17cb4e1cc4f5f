"""Copies of files to a model host, through its RPC port or over SSH: beside first, verified, then under the final name in one step."""

import contextlib
import hashlib
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from inference_client import Client
from outboard.models_host import Refused

Progress = Callable[[int, int], None]
_CHUNK_BYTES = 256 * 1024
_BAR = 30
_REASON_LINES = 4
_UNITS = ("B", "kB", "MB", "GB")
_TAKEN = 17
"""Exit status of the remote script where other bytes have the name: EEXIST."""


class Meter:
    """Says how far a copy is: a bar on a terminal, elsewhere a line at each quarter."""

    def __init__(self, label: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._label = label
        self._stream = stream
        self._clock = clock
        self._bar = stream.isatty()
        self._begun = clock()
        self._said = -1

    def __call__(self, sent: int, size: int) -> None:
        percent = sent * 100 // size if size else 100
        step = percent if self._bar else percent // 25
        if step == self._said:
            return
        self._said = step
        seconds = self._clock() - self._begun
        rate = f"{_size(int(sent / seconds))}/s" if seconds > 0 else ""
        text = f"{percent:3d} %  {_size(sent)} of {_size(size)}  {rate}"
        if not self._bar:
            print(f"{self._label}: {text.strip()}", file=self._stream, flush=True)
            return
        filled = percent * _BAR // 100
        end = "\n" if sent >= size else ""
        print(f"\r{self._label} [{'#' * filled}{'.' * (_BAR - filled)}] {text}\x1b[K", end=end, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar's line where the copy did not get to its end."""
        if self._bar and 0 <= self._said < 100:
            print(file=self._stream)


def over_rpc(client: Client, file: Path, model: str, version: int, name: str, progress: Progress) -> bool:
    """True where the same bytes were there already. Raises ServingError (already_exists for other bytes), OSError."""
    return client.put_file(file, model, version, name, progress).existed


def over_ssh(login: str, config: str, file: Path, folders: Sequence[str], name: str, progress: Progress) -> bool:
    """Copies to the last of `folders` on the machine that `login` names, with one SSH session; that side needs sh and sha256sum.

    `folders`: those of the model, outermost first, made where they are missing and removed again where the copy fails. A session that
    ends early leaves no file, as what came until then has another hash. Raises Refused, OSError; returns as `over_rpc`.
    """
    with file.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
        source.seek(0)
        script = _remote_script(folders, name, digest)
        command = ["ssh", *(["-F", config] if config else []), "--", login, f"sh -c {shlex.quote(script)}"]
        ssh = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            _feed(ssh, source.read, file.stat().st_size, progress)
            said, complained = ssh.communicate()
        finally:
            _end(ssh)
    if ssh.returncode == _TAKEN:
        raise Refused(f"already_exists: {name} is there with other bytes; push a new version")
    if ssh.returncode != 0:
        reason = "; ".join(complained.decode(errors="replace").strip().splitlines()[-_REASON_LINES:])
        raise Refused(f"the copy over SSH failed: {reason or f'exit status {ssh.returncode}'}")
    return said.strip() == b"existed"


def _feed(ssh: "subprocess.Popen[bytes]", read: Callable[[int], bytes], size: int, progress: Progress) -> None:
    assert ssh.stdin is not None
    sent = 0
    try:
        while chunk := read(_CHUNK_BYTES):
            ssh.stdin.write(chunk)
            sent += len(chunk)
            progress(sent, size)
    except BrokenPipeError:
        return  # the remote side has ended: its exit status says why


def _end(ssh: "subprocess.Popen[bytes]") -> None:
    """Leaves no process and no pipe, whether the session came to its end or was interrupted."""
    if ssh.poll() is None:
        ssh.terminate()
        ssh.wait()
    for pipe in (ssh.stdin, ssh.stdout, ssh.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _remote_script(folders: Sequence[str], name: str, digest: str) -> str:
    """Reads the file from standard input. `ln`, where it can, and not `mv`: it refuses to replace what another copy has put there."""
    inner_first = " ".join(shlex.quote(folder) for folder in reversed(folders))
    return f"""set -eu
folder={shlex.quote(folders[-1])}
target="$folder"/{shlex.quote(name)} part="$folder"/{shlex.quote(f".{name}.")}$$.part
same() {{ [ "$(sha256sum <"$1" | cut -c 1-64)" = {digest} ]; }}
taken() {{ same "$target" || exit {_TAKEN}; echo existed; exit 0; }}
if [ -e "$target" ]; then taken; fi
mkdir -p "$folder"
clean() {{ rm -f "$part"; rmdir {inner_first} 2>/dev/null || :; }}
trap clean EXIT
trap 'exit 1' HUP INT TERM
cat >"$part"
same "$part" || {{ echo 'the SHA-256 of what arrived is another one' >&2; exit 1; }}
sync "$part" 2>/dev/null || sync
ln "$part" "$target" 2>/dev/null || {{ if [ -e "$target" ]; then taken; fi; mv -n "$part" "$target"; }}
"""


def _size(size: float) -> str:
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.{min(unit, 1)}f} {_UNITS[unit]}"
