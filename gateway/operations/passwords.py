"""Password hashes: argon2id."""

import base64
import hashlib
import secrets
import unicodedata

import argon2

MIN_LENGTH = 8
MAX_LENGTH = 1024
_TIME_COST = 2
_MEMORY_KIB = 32 * 1024
_LANES = 1
"""Above the least that OWASP's password storage sheet asks of argon2id (19 MiB, 2 passes, 1 lane); one lane, because the workers are
what uses the other cores."""

_hasher = argon2.PasswordHasher(_TIME_COST, _MEMORY_KIB, _LANES)


def reason_against(password: str) -> str:
    """Why this cannot be a password; "" where it can."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        return f"must have {MIN_LENGTH} to {MAX_LENGTH} characters, not {len(password)}"
    return ""


def hash_password(password: str) -> str:
    return _hasher.hash(_normal(password))


def verify(password_hash: str, password: str) -> bool:
    """Takes the same time for a wrong password as for the right one."""
    if len(password) > MAX_LENGTH:
        return False
    try:
        return _hasher.verify(password_hash, _normal(password))
    except (argon2.exceptions.VerifyMismatchError, argon2.exceptions.InvalidHashError):  # no password fits what is no hash
        return False


def is_outdated(password_hash: str) -> bool:
    """True where today's parameters differ from those that the hash was made with."""
    return _hasher.check_needs_rehash(password_hash)


def impossible_hash() -> str:
    """A hash that no password fits: verifying against it costs what verifying against a real one does."""
    salt, digest = (base64.b64encode(secrets.token_bytes(size)).rstrip(b"=").decode() for size in (16, 32))
    return f"$argon2id$v=19$m={_MEMORY_KIB},t={_TIME_COST},p={_LANES}${salt}${digest}"


def _normal(password: str) -> str:
    # RFC 8265, OpaqueString: keyboards differ in how they spell an accented letter
    return unicodedata.normalize("NFC", password)


def token_hash(token: str) -> str:
    """What is kept of a random token: it has too many bits to be guessed, so a fast hash without salt is enough."""
    return hashlib.sha256(token.encode()).hexdigest()
