"""Accounts: making, changing and deleting them, and checking passwords."""

import secrets
from collections.abc import Callable, Mapping
from datetime import timedelta

from gateway import clock
from gateway.errors import ChangedMeanwhile, InvalidFields
from gateway.operations import names, passwords
from gateway.operations.confirmations import Confirmations, reason_against_email
from gateway.operations.passwords import token_hash as token_hash
from gateway.operations.throttle import Rate, Throttle
from gateway.settings import Settings, SettingsError
from gateway.storage import Storage
from gateway.storage.account_rows import is_mailbox
from gateway.storage.audit import Doer
from gateway.storage.sessions import SessionRecord
from gateway.storage.users import KEPT, UserRecord
from gateway.types import Principal, Role
from idl.codes import Code, ServingError

FIRST_ADMINISTRATOR = "admin"
SIGNUP_TTL = timedelta(hours=24)
SELF = Doer(None, "")
"""Whoever the account is of, from an address that is not known."""
_WRONG = "the username or the password is wrong"
UNCONFIRMED = "the e-mail address has to be confirmed first, by the code that was sent to it"


class Users:
    """The verbs on accounts. Thread-safe."""

    def __init__(
        self, storage: Storage, settings: Settings, now: clock.Clock = clock.now, ring: Callable[[str], None] = lambda job: None
    ) -> None:
        """`ring` wakes a job of the task worker."""
        self.confirmations = Confirmations(storage, settings, now, ring)
        self._users = storage.users
        self._sessions = storage.sessions
        self._signups = storage.signups
        self._throttle = Throttle(storage, settings)
        self._registrations = Rate(storage, "registrations", settings.registrations, settings.registration_interval_s)
        self._now = now
        self._open = settings.registration == "open"
        self._needs_email = settings.email_address == "required"
        self._needs_verified = settings.unverified_sign_in == "refused"
        self._impossible_hash = passwords.impossible_hash()

    def register(self, username: str, password: str, email: str | None = None, signup_token: str = "", origin: Doer = SELF) -> UserRecord:
        """A new account; a valid sign-up token gives it the token's role. An address gets its code.

        Raises invalid_input naming each wrong field, already_exists for a name or address that is taken, forbidden for a sign-up token
        that is not valid, or for none where registration is closed, and overloaded after too many from one address.
        """
        if not self._open and not signup_token:
            raise ServingError(Code.FORBIDDEN, "registration is closed here: a new account needs a sign-up token")
        reasons = {
            "username": names.reason_against(username),
            "password": passwords.reason_against(password),
            "email": reason_against_email(email),
        }
        if self._needs_email and email is None and not signup_token:
            reasons["email"] = "is missing: no account is made without one here"
        _refuse_invalid(reasons)
        if username.lower() == FIRST_ADMINISTRATOR and not signup_token:
            raise ServingError(Code.ALREADY_EXISTS, f"username: {username!r} is taken")
        # before the costly part; the store asks again, under its lock
        if self._users.by_name(username) is not None:
            raise ServingError(Code.ALREADY_EXISTS, f"username: {username!r} is taken")
        if origin.address:
            self._registrations.take(origin.address, self._now())
        password_hash = passwords.hash_password(password)
        signup_hash = token_hash(signup_token) if signup_token else ""
        user = self._users.create(username, email, password_hash, Role.USER, self._now(), signup_hash=signup_hash, doer=origin)
        self.confirmations.welcome(user)
        return user

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
        self._signups.void(Role.ADMINISTRATOR)  # of a start before that had no password: whoever still has it shall not become one
        self._users.create(FIRST_ADMINISTRATOR, None, passwords.hash_password(password), Role.ADMINISTRATOR, self._now())
        return ""

    def verify(self, login: str, password: str, address: str) -> UserRecord:
        """The account of `login` (a name or an e-mail address) if the password is right.

        Raises unauthenticated, after the same time and in the same words whether or not the account exists, and overloaded after too
        many failures of this user from this address; forbidden, only where the password is right, for an account that is disabled, or
        whose address has to be confirmed first.
        """
        self._throttle.take(login, address, self._now())
        user = self._users.by_email(login) if "@" in login else self._users.by_name(login)
        right = passwords.verify(user.password_hash if user else self._impossible_hash, password)
        if user is None or not right:
            raise ServingError(Code.UNAUTHENTICATED, _WRONG)
        self._throttle.succeeded(login, address, self._now())
        if passwords.is_outdated(user.password_hash):
            self._users.rehash(user.id, user.password_hash, passwords.hash_password(password))
        self.refuse_barred(user)
        return user

    def refuse_barred(self, user: UserRecord) -> None:
        """Raises forbidden for an account that exists and may not sign in."""
        if user.disabled_at is not None:
            raise ServingError(Code.FORBIDDEN, "the account is disabled: ask an administrator")
        if self._needs_verified and user.email is not None and user.email_verified_at is None:
            raise ServingError(Code.FORBIDDEN, UNCONFIRMED)

    def read(self, principal: Principal) -> UserRecord:
        """Raises unauthenticated where the account was deleted meanwhile."""
        user = self._users.by_id(principal.user_id)
        if user is None:
            raise ServingError(Code.UNAUTHENTICATED, "the account does not exist any more")
        return user

    def change(
        self,
        principal: Principal,
        changes: Mapping[str, str | None],
        current_password: str,
        address: str,
        *,
        revision: int | None = None,
        doer: Doer = SELF,
    ) -> UserRecord:
        """Changes `email` (None removes it) and `password`, where they stand in `changes`. A new password ends all other sessions.

        An address takes the place of one that was confirmed when its own code has confirmed it; until then it is the pending one. Raises
        forbidden where the current password is wrong, invalid_input and already_exists as `register`, overloaded where too many codes went
        to the address, ChangedMeanwhile for another revision.
        """
        email, password = changes.get("email"), changes.get("password")
        reasons = {"email": reason_against_email(email), "password": passwords.reason_against(password) if password is not None else ""}
        if self._needs_email and "email" in changes and email is None:
            reasons["email"] = "must be there: no account is without one here"
        _refuse_invalid(reasons)
        self.confirm(principal, current_password, address)
        user = self.read(principal)
        if revision is not None and revision != user.revision:  # before a code is counted; the store looks again
            raise ChangedMeanwhile
        is_new = email is not None and not is_mailbox(user.email, email)
        if is_new:
            self.confirmations.count(str(email), address)
        changed = self._users.change_own(
            user.id,
            self._now(),
            email=email if "email" in changes else KEPT,
            password_hash=passwords.hash_password(password) if password is not None else "",
            keep_session=principal.session,
            revision=revision,
            doer=doer,
        )
        if is_new:
            self.confirmations.send_address(changed)
        return changed

    def confirm(self, principal: Principal, current_password: str, address: str) -> None:
        """Whoever is at the keyboard knows the password. Raises forbidden, and overloaded after too many tries."""
        try:
            self.verify(principal.name, current_password, address)
        except ServingError as error:
            if error.code is Code.UNAUTHENTICATED:
                raise ServingError(Code.FORBIDDEN, "current_password: it is wrong") from None
            raise

    def delete(self, principal: Principal, doer: Doer = SELF) -> None:
        """Deletes the caller's account; the name stays taken. Raises conflict for the last administrator, and the last owner of a team."""
        self._users.delete(principal.user_id, self._now(), leave_teams=True, doer=doer)

    def sign_out_everywhere(self, principal: Principal, doer: Doer = SELF) -> None:
        """Ends every session of the caller's, this one included; API keys go on."""
        self._users.end_sessions(principal.user_id, self._now(), doer=doer)

    def sessions(self, principal: Principal, count: int) -> list[SessionRecord]:
        """The caller's sign-ins that have not ended, newest first."""
        return self._sessions.page(principal.user_id, self._now(), count)

    def end_session(self, principal: Principal, session_id: str, doer: Doer = SELF) -> None:
        """Ends one of the caller's. Raises not_found for one that is somebody else's, or has ended."""
        if not self._sessions.revoke_of(principal.user_id, session_id, self._now(), doer):
            raise ServingError(Code.NOT_FOUND, "this sign-in has ended already")

    def end_other_sessions(self, principal: Principal, doer: Doer = SELF) -> None:
        """Every one of the caller's but this one."""
        self._users.end_sessions(principal.user_id, self._now(), keep=principal.session, doer=doer)


def _refuse_invalid(reasons: Mapping[str, str]) -> None:
    wrong = {field: reason for field, reason in reasons.items() if reason}
    if wrong:
        raise InvalidFields(wrong)
