"""Accounts: making, changing and deleting them, and checking passwords."""

import hashlib
import re
import secrets
from collections.abc import Mapping
from datetime import timedelta

from gateway import clock
from gateway.errors import InvalidFields
from gateway.operations import names, passwords
from gateway.operations.throttle import Throttle
from gateway.settings import Settings, SettingsError
from gateway.storage import Storage
from gateway.storage.users import UserRecord
from gateway.types import Principal, Role
from idl.codes import Code, ServingError

FIRST_ADMINISTRATOR = "admin"
SIGNUP_TTL = timedelta(hours=24)
MAX_EMAIL = 254
_EMAIL = re.compile(r"[^@\s\x00-\x1f\x7f]{1,64}@[^@\s\x00-\x1f\x7f]{1,253}")
_WRONG = "the username or the password is wrong"


class Users:
    """The verbs on accounts. Thread-safe."""

    def __init__(self, storage: Storage, settings: Settings, now: clock.Clock = clock.now) -> None:
        self._users = storage.users
        self._signups = storage.signups
        self._throttle = Throttle(storage, settings)
        self._now = now
        self._open = settings.registration == "open"
        self._impossible_hash = passwords.impossible_hash()

    def register(self, username: str, password: str, email: str | None = None, signup_token: str = "") -> UserRecord:
        """A new account; a valid sign-up token gives it the token's role.

        Raises invalid_input naming each wrong field, already_exists for a name or address that is taken, forbidden for a sign-up token
        that is not valid, or for none where registration is closed.
        """
        if not self._open and not signup_token:
            raise ServingError(Code.FORBIDDEN, "registration is closed here: a new account needs a sign-up token")
        _refuse_invalid(
            {"username": names.reason_against(username), "password": passwords.reason_against(password), "email": _against_email(email)}
        )
        if username.lower() == FIRST_ADMINISTRATOR and not signup_token:
            raise ServingError(Code.ALREADY_EXISTS, f"username: {username!r} is taken")
        # before the costly part; the store asks again, under its lock
        if self._users.by_name(username) is not None:
            raise ServingError(Code.ALREADY_EXISTS, f"username: {username!r} is taken")
        password_hash = passwords.hash_password(password)
        signup_hash = token_hash(signup_token) if signup_token else ""
        return self._users.create(username, email, password_hash, Role.USER, self._now(), signup_hash=signup_hash)

    def first_administrator(self, password: str) -> str:
        """Sees to it that somebody can become administrator. Returns a sign-up token to hand to that person, "" where none is needed.

        With `password` the account `admin` is made with it, once: a later change of the setting changes no account. Raises SettingsError
        for a password that no account can have.
        """
        if self._users.has_administrator():
            return ""
        if not password:
            token = secrets.token_urlsafe(32)
            self._signups.replace(token_hash(token), Role.ADMINISTRATOR, self._now(), self._now() + SIGNUP_TTL)
            return token
        if reason := passwords.reason_against(password):
            raise SettingsError(f"the first administrator's password {reason}")
        self._users.create(FIRST_ADMINISTRATOR, None, passwords.hash_password(password), Role.ADMINISTRATOR, self._now())
        return ""

    def verify(self, login: str, password: str, address: str) -> UserRecord:
        """The account of `login` (a name or an e-mail address) if the password is right.

        Raises unauthenticated, after the same time and in the same words whether or not the account exists, and overloaded after too
        many failures of this user from this address.
        """
        self._throttle.take(login, address, self._now())
        user = self._users.by_email(login) if "@" in login else self._users.by_name(login)
        right = passwords.verify(user.password_hash if user else self._impossible_hash, password)
        if user is None or not right:
            raise ServingError(Code.UNAUTHENTICATED, _WRONG)
        self._throttle.succeeded(login, address)
        if passwords.is_outdated(user.password_hash):
            self._users.rehash(user.id, user.password_hash, passwords.hash_password(password))
        return user

    def read(self, principal: Principal) -> UserRecord:
        """Raises unauthenticated where the account was deleted meanwhile."""
        user = self._users.by_id(principal.user_id)
        if user is None:
            raise ServingError(Code.UNAUTHENTICATED, "the account does not exist any more")
        return user

    def change(self, principal: Principal, changes: Mapping[str, str | None], current_password: str, address: str) -> UserRecord:
        """Changes `email` (None removes it) and `password`, where they stand in `changes`. A new password ends all other sessions.

        Raises forbidden where the current password is wrong, invalid_input and already_exists as `register`.
        """
        email, password = changes.get("email"), changes.get("password")
        reasons = {"email": _against_email(email), "password": passwords.reason_against(password) if password is not None else ""}
        _refuse_invalid(reasons)
        self._confirm(principal, current_password, address)
        if "email" in changes:
            self._users.set_email(principal.user_id, email, self._now())
        if password is not None:
            new_hash = passwords.hash_password(password)
            self._users.set_password(principal.user_id, new_hash, self._now(), keep_session=principal.session)
        return self.read(principal)

    def _confirm(self, principal: Principal, current_password: str, address: str) -> None:
        try:
            self.verify(principal.name, current_password, address)
        except ServingError as error:
            if error.code is Code.UNAUTHENTICATED:
                raise ServingError(Code.FORBIDDEN, "current_password: it is wrong") from None
            raise

    def delete(self, principal: Principal) -> None:
        """Deletes the caller's account; the name stays taken. Raises conflict for the last administrator."""
        self._users.delete(principal.user_id, self._now())


def token_hash(token: str) -> str:
    """What is kept of a random token: it has too many bits to be guessed, so a fast hash without salt is enough."""
    return hashlib.sha256(token.encode()).hexdigest()


def _against_email(email: str | None) -> str:
    if email is None or (len(email) <= MAX_EMAIL and _EMAIL.fullmatch(email) and email.isprintable()):
        return ""
    return "is not an e-mail address"


def _refuse_invalid(reasons: Mapping[str, str]) -> None:
    wrong = {field: reason for field, reason in reasons.items() if reason}
    if wrong:
        raise InvalidFields(wrong)
