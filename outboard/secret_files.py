"""Secrets that stand in files, as container engines and systemd hand them over: a folder whose files are named as the variables that they set."""

from collections.abc import Mapping
from pathlib import Path

FOLDER = "OUTBOARD_SECRETS"
"""The variable that names the folder."""
PREFIX = "OUTBOARD_"
_MOST_BYTES = 65_536


class InvalidSecret(ValueError):
    """A secret's file cannot be used; the message names it, and never says what is in it."""


def with_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with what the folder's files hold, and without OUTBOARD_SECRETS.

    Files whose names do not begin with OUTBOARD_ are somebody else's. One line break at a file's end is no part of the secret. Raises
    InvalidSecret: the folder or a file cannot be read; a variable is set as well; a file is empty, has more than 64 KiB or more than one
    line, or is no UTF-8 text.
    """
    found = dict(environ)
    folder = found.pop(FOLDER, "")
    if not folder:
        return found
    try:
        files = sorted(path for path in Path(folder).iterdir() if path.name.startswith(PREFIX))
    except (OSError, ValueError) as error:
        raise InvalidSecret(f"{FOLDER}: the folder {folder!r} cannot be read: {_why(error)}") from None
    for file in files:
        if found.get(file.name) or file.name == FOLDER:
            raise InvalidSecret(f"{file.name} is set, and {FOLDER} has a file of that name: one of them is enough")
        found[file.name] = _read(file)
    return found


def _read(file: Path) -> str:
    where = f"{FOLDER}: the file {file.name}"
    try:
        with file.open("rb") as opened:
            raw = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InvalidSecret(f"{where} cannot be read: {_why(error)}") from None
    if len(raw) > _MOST_BYTES:
        raise InvalidSecret(f"{where} has more than {_MOST_BYTES} bytes")
    try:
        text = raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise InvalidSecret(f"{where} is no UTF-8 text") from None
    if not text:
        raise InvalidSecret(f"{where} is empty")
    if any(character < " " or character == "\x7f" for character in text):
        raise InvalidSecret(f"{where} has more than one line, or control characters")
    return text


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
