"""Who may do what over RPC: tokens, the rights of each, and the models that it may name.

`OUTBOARD_SERVER_TOKEN` holds one or two tokens with every right. A token file has further ones, and is read again when it changes:

    [[token]]
    name = "shop"                # for the log; not a secret
    sha256 = "9f86d0..."         # of the token, 64 hexadecimal digits; or token = "..." itself
    rights = ["infer", "read"]   # of infer, read, control
    models = ["efficientnet"]    # the only ones it may name; without this line all
"""

import hashlib
import hmac
import logging
import re
import threading
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idl.codes import Code, ServingError

log = logging.getLogger("outboard.server")

INFER, READ, CONTROL = "infer", "read", "control"
RIGHTS = frozenset({INFER, READ, CONTROL})
LOOK_EVERY_S = 1.0
"""How soon a changed file counts."""
MOST_SECRETS = 2
"""In OUTBOARD_SERVER_TOKEN: the one that goes and the one that comes."""
_MOST_BYTES, _MOST_ENTRIES = 1 << 20, 1024
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_KEYS = frozenset({"name", "token", "sha256", "rights", "models"})
NONE, LATER = "", "-"
"""In place of the field with the model's name: the verb is about the whole server; the model was checked when the stream was opened."""

VERBS: Mapping[str, tuple[str, str]] = {
    "ModelInfer": (INFER, "model_name"),
    "ModelStreamInfer": (INFER, "model_name"),
    "StreamOpen": (INFER, "model_name"),
    "StreamNext": (INFER, LATER),
    "StreamClose": (INFER, LATER),
    "ModelMetadata": (READ, "name"),
    "ModelConfig": (READ, "name"),
    "ModelStatistics": (READ, "name"),
    "RepositoryIndex": (READ, NONE),
    "Capacity": (READ, NONE),
    "RepositoryModelLoad": (CONTROL, "model_name"),
    "RepositoryModelUnload": (CONTROL, "model_name"),
    "PutFile": (CONTROL, "model_name"),
    "SetInstances": (CONTROL, "model_name"),
    "SetLabels": (CONTROL, "model_name"),
    "RemoveModel": (CONTROL, "model_name"),
    "Drain": (CONTROL, NONE),
    "SystemSharedMemoryStatus": (READ, NONE),
    "CudaSharedMemoryStatus": (READ, NONE),
    "TraceSetting": (CONTROL, "model_name"),
}
"""Verb -> (the right that it needs, the field with the model's name). What is not here needs `control`, over the whole server."""
_OTHER = (CONTROL, NONE)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token stands for. `models` None: every one."""

    name: str
    rights: frozenset[str] = RIGHTS
    models: frozenset[str] | None = None

    def check(self, verb: str, model: str | None) -> None:
        """`model` None: it is not known yet. Raises forbidden."""
        right, where = VERBS.get(verb, _OTHER)
        if right not in self.rights:
            raise ServingError(Code.FORBIDDEN, f"{verb} needs a token with the right to {right}; this one has {_listed(self.rights)}")
        if self.models is None or model is None or where == LATER or model in self.models:
            return
        if not model:
            raise ServingError(Code.FORBIDDEN, f"this token is for some models only, and {verb} is asked of all of them")
        raise ServingError(Code.FORBIDDEN, f"this token may not use model {model[:128]!r}")


ALL = Grant("OUTBOARD_SERVER_TOKEN")


@dataclass(frozen=True, slots=True)
class _Tokens:
    """SHA-256 -> what it stands for; and the tokens that have been seen, so that none is hashed twice."""

    grants: Mapping[bytes, Grant]
    seen: dict[str, Grant] = field(default_factory=dict)

    def find(self, given: str) -> Grant:
        """Compares with every token, in the same time wherever two differ. Raises unauthenticated."""
        digest, found = _digest(given), None
        for known, grant in self.grants.items():
            if hmac.compare_digest(known, digest):
                found = grant
        if found is None:
            raise ServingError(Code.UNAUTHENTICATED, "a valid token is needed" if given else "a token is needed")
        self.seen[given] = found
        return found


def model_of(verb: str, request: Any) -> str:
    """The model that a request names, "" where it names none."""
    _, where = VERBS.get(verb, _OTHER)
    return "" if where in (NONE, LATER) else getattr(request, where, None) or ""


class Token:
    """The tokens of this server; without any, and without a `file`, everybody is let in. Thread-safe.

    `secret`: one token or two, between commas. Raises ValueError, with the reason, where the file cannot be used; later, when it has
    changed, the tokens of before stay and the log says why.
    """

    __slots__ = ("_complained", "_file", "_lock", "_look_at", "_open", "_secrets", "_stamp", "_tokens")

    def __init__(self, secret: str, file: str | Path = "") -> None:
        self._secrets = {_digest(each): ALL for each in secrets(secret)}
        self._file = Path(file) if str(file) else None
        self._open = not self._secrets and self._file is None
        self._lock = threading.Lock()
        self._complained = ""
        self._look_at = time.monotonic() + LOOK_EVERY_S
        self._stamp: object = None
        self._tokens = _Tokens(self._secrets)
        if self._file is not None:
            self._stamp, self._tokens = self._read(self._file)

    def check(self, given: str, verb: str, model: str | None = None) -> None:
        """Raises unauthenticated where `given` is no token of this server, forbidden where it does not reach for `verb` on `model`.

        `model`: "" for a verb, or a request, that names none; None where it is not known yet.
        """
        if self._open:
            return
        if self._file is not None and time.monotonic() >= self._look_at:
            self.look()
        # a table finds by hash, with a key of this process's own: the time of a miss says nothing of what is in it
        tokens = self._tokens
        grant = tokens.seen.get(given) or tokens.find(given)
        if grant is not ALL:
            grant.check(verb, model)

    def look(self) -> None:
        """Reads the file again where it has changed."""
        if self._file is None or not self._lock.acquire(blocking=False):
            return
        try:
            self._look_at = time.monotonic() + LOOK_EVERY_S
            stamp = _stamp(self._file)
            if stamp != self._stamp:
                self._stamp = stamp
                _, self._tokens = self._read(self._file)
                log.info("the token file was read again", extra={"fields": {"tokens": len(self._tokens.grants)}})
            self._complained = ""
        except (OSError, ValueError) as error:
            if (reason := _why(error)) != self._complained:
                self._complained = reason
                log.warning("the token file cannot be used: the tokens of before stay", extra={"fields": {"reason": reason}})
        finally:
            self._lock.release()

    def _read(self, file: Path) -> tuple[object, _Tokens]:
        try:
            stamp = _stamp(file)
            with file.open("rb") as opened:
                data = opened.read(_MOST_BYTES + 1)
            if len(data) > _MOST_BYTES:
                raise ValueError(f"it has more than {_MOST_BYTES} bytes")
            return stamp, _Tokens({**_grants(tomllib.loads(data.decode())), **self._secrets})
        except (OSError, ValueError) as error:
            raise ValueError(f"the token file {file.name} cannot be used: {_why(error)}") from None


def secrets(text: str) -> tuple[str, ...]:
    """The tokens in OUTBOARD_SERVER_TOKEN. Raises ValueError."""
    if not text:
        return ()
    found = tuple(part.strip() for part in text.split(","))
    if not all(found) or len(found) > MOST_SECRETS:
        raise ValueError(f"holds {len(found)} tokens between commas, and some may be empty: one is taken, or two while they are changed")
    return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _stamp(file: Path) -> object:
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


def _why(error: Exception) -> str:
    return (error.strerror or "it cannot be read") if isinstance(error, OSError) else str(error)


def _grants(said: Mapping[str, Any]) -> dict[bytes, Grant]:
    if unknown := said.keys() - {"token"}:
        raise ValueError(f"{_listed(unknown)} is not known there, only [[token]]")
    entries = said.get("token", [])
    if not isinstance(entries, list) or len(entries) > _MOST_ENTRIES:
        raise ValueError(f"tokens stand below [[token]], at most {_MOST_ENTRIES}")
    made: dict[bytes, Grant] = {}
    for number, entry in enumerate(entries, 1):
        digest, grant = _grant(entry, number)
        if digest in made:
            raise ValueError(f"token {number} is there twice")
        made[digest] = grant
    return made


def _grant(entry: Any, number: int) -> tuple[bytes, Grant]:
    what = f"token {number}"
    if not isinstance(entry, dict) or (unknown := entry.keys() - _KEYS):
        raise ValueError(f"{what}: {_listed(unknown) if isinstance(entry, dict) else 'this'} is not one of {_listed(_KEYS)}")
    rights, models, name = entry.get("rights", ()), entry.get("models"), entry.get("name", what)
    if not _texts(rights) or not set(rights) <= RIGHTS:
        raise ValueError(f"{what}: rights is not a list of {_listed(RIGHTS)}")
    if models is not None and not _texts(models):
        raise ValueError(f"{what}: models is not a list of names")
    if not isinstance(name, str):
        raise ValueError(f"{what}: name is not text")
    return _secret_of(entry, what), Grant(name, frozenset(rights), None if models is None else frozenset(models))


def _secret_of(entry: Mapping[str, Any], what: str) -> bytes:
    token, digest = entry.get("token"), entry.get("sha256")
    if isinstance(token, str) and token and digest is None:
        return _digest(token)
    if isinstance(digest, str) and _SHA256.fullmatch(digest) and token is None:
        return bytes.fromhex(digest)
    raise ValueError(f"{what} needs either token, a text that is not empty, or sha256, 64 hexadecimal digits")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) and each for each in value)


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))
