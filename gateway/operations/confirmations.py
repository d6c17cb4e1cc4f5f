"""Codes of six digits, sent to an e-mail address: they show that it is somebody's, and let who forgot a password choose another.

Whoever asks for a code learns nothing about accounts: what is done, written and answered is the same whether or not an account has the
address; only the letter is missing.
"""

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable
from datetime import timedelta

from sqlite_utils import Database as SqliteDatabase

from gateway import clock
from gateway.errors import InvalidFields
from gateway.operations import passwords
from gateway.operations.throttle import Rate
from gateway.settings import Settings
from gateway.storage import Storage, account_rows
from gateway.storage.audit import Doer
from gateway.storage.codes import ADDRESS, RESET, VERIFY, CodeRecord
from gateway.storage.outbox import Letter
from gateway.storage.users import UserRecord
from idl.codes import ServingError

TTL = timedelta(minutes=10)
TRIES = 5
MAIL_JOB = "mail"
"""The task worker's job that sends what is in the outbox."""
MAX_EMAIL = 254
_BEYOND = "\u0080-\U0010ffff"
_EMAIL = re.compile(
    rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~{_BEYOND}-]{{1,64}}@[A-Za-z0-9{_BEYOND}](?:[A-Za-z0-9.{_BEYOND}-]{{0,251}}[A-Za-z0-9{_BEYOND}])?"
)
"""RFC 5321, section 4.1.2, and RFC 6531 for what is beyond ASCII; without quoted names and literal addresses, which nobody's mailbox has."""
_NETWORK_FACTOR = 10
_TRIES_AT_ONCE, _TRY_INTERVAL_S = 50, 6.0
_WRONG = "is not right, was used or tried too often, or has expired"
_log = logging.getLogger(__name__)

_TEXTS = {
    VERIFY: ("confirm your e-mail address", "确认您的邮箱地址"),
    ADDRESS: ("confirm your new e-mail address", "确认您的新邮箱地址"),
    RESET: ("choose a new password", "设置新密码"),
}


def reason_against_email(email: str | None) -> str:
    """Why this cannot be an address; "" where it can, and for none."""
    if email is None or (len(email) <= MAX_EMAIL and _EMAIL.fullmatch(email) and email.isprintable()):
        return ""
    return "is not an e-mail address"


class Confirmations:
    """The verbs on codes. Thread-safe."""

    def __init__(self, storage: Storage, settings: Settings, now: clock.Clock, ring: Callable[[str], None]) -> None:
        self._storage = storage
        self._codes = storage.codes
        self._users = storage.users
        self._settings = settings
        self._now = now
        self._ring = ring
        burst, interval_s = settings.code_requests, settings.code_request_interval_s
        self._by_mailbox = Rate(storage, "codes to", burst, interval_s)
        self._by_network = Rate(storage, "codes from", burst * _NETWORK_FACTOR, interval_s / _NETWORK_FACTOR)
        self._tries = Rate(storage, "code tries", _TRIES_AT_ONCE, _TRY_INTERVAL_S)

    def count(self, email: str, address: str) -> None:
        """Counts one code to a mailbox, asked for from an address. Raises overloaded where too many were."""
        if address:
            self._by_network.take(address, self._now())
        self._by_mailbox.take(email, self._now())

    def welcome(self, user: UserRecord) -> None:
        """The code of a new account. Where its mailbox got too many already, none: it can be asked for later."""
        if user.email is not None and user.email_verified_at is None:
            try:
                self.count(user.email, "")
            except ServingError:
                return
            self._issue(VERIFY, user, user.email)

    def send_address(self, user: UserRecord) -> None:
        """The code of an address that was changed a moment ago; whoever calls has counted it."""
        if user.pending_email is not None:
            self._issue(ADDRESS, user, user.pending_email)
        elif user.email is not None:
            self._issue(VERIFY, user, user.email)

    def resend(self, email: str, address: str) -> None:
        """Another code for an address that was not confirmed. Raises overloaded."""
        self.count(email, address)
        user = self._users.by_email(email)
        self._issue(VERIFY, user if user is not None and user.email_verified_at is None else None, email)

    def verify(self, email: str, code: str, origin: Doer) -> None:
        """The address is its account's. Raises invalid_input for a wrong code, overloaded after too many tries, already_exists where somebody
        else has the address by now."""

        def apply(db: SqliteDatabase, record: CodeRecord) -> bool:
            return record.user_id is not None and account_rows.confirm_email(db, record.user_id, email, self._now(), origin)

        self._redeem((VERIFY, ADDRESS), email, code, apply, origin)

    def ask_reset(self, email: str, address: str) -> None:
        """A code for a new password. Raises overloaded."""
        self.count(email, address)
        self._issue(RESET, self._users.by_email(email), email)

    def reset(self, email: str, code: str, password: str, origin: Doer) -> None:
        """A new password, which ends every session. Raises as `verify`."""
        if reason := passwords.reason_against(password):
            raise InvalidFields({"password": reason})
        self._tries.take(origin.address, self._now())
        password_hash = passwords.hash_password(password)  # also for a wrong code: it takes as long

        def apply(db: SqliteDatabase, record: CodeRecord) -> bool:
            if record.user_id is None:
                return False
            return account_rows.reset_password(db, record.user_id, email, password_hash, self._now(), origin)

        self._redeem((RESET,), email, code, apply, None)
        self._storage.principals.change()

    def _redeem(
        self, purposes: tuple[str, ...], email: str, code: str, apply: Callable[[SqliteDatabase, CodeRecord], bool], counted: Doer | None
    ) -> None:
        if counted is not None:
            self._tries.take(counted.address, self._now())

        def fits(record: CodeRecord) -> bool:
            right = hmac.compare_digest(record.code_hash, self._digest(record.purpose, record.user_id, email, code))
            return right and record.user_id is not None

        if not self._codes.redeem(purposes, email, fits, apply, self._now()):
            raise InvalidFields({"code": _WRONG})

    def _issue(self, purpose: str, user: UserRecord | None, email: str) -> None:
        """`user` None: all of it but the letter, for nobody."""
        code = f"{secrets.randbelow(10**6):06d}"
        user_id = None if user is None else user.id
        letter = Letter(email, *_text(purpose, user.name if user else "", code))
        now = self._now()
        self._codes.issue(purpose, user_id, letter, self._digest(purpose, user_id, email, code), now, now + TTL, TRIES)
        if self._settings.smtp_host:
            self._ring(MAIL_JOB)
        elif user is not None:
            # nobody else could tell them: this is the way of an installation without a mail server
            _log.info("code_not_mailed", extra={"address": email, "purpose": purpose, "code": code})

    def _digest(self, purpose: str, user_id: int | None, email: str, code: str) -> str:
        """Keyed: a million codes are tried in a second, and this must be of no use to whoever reads the database alone."""
        text = "\0".join((purpose, str(user_id), email.lower(), code))
        key = (self._settings.secret_key or self._storage.secret()).encode()
        return hmac.new(key, f"code\0{text}".encode(), hashlib.sha256).hexdigest()


def _text(purpose: str, name: str, code: str) -> tuple[str, str]:
    """Subject and body, in English and Chinese: nothing here knows which of them its reader reads."""
    english, chinese = _TEXTS[purpose]
    minutes = int(TTL.total_seconds() // 60)
    body = (
        f"{code}\n\n"
        f"is the code to {english}, for the account {name}. It is good for {minutes} minutes. If you have not asked for it, do nothing.\n\n"
        f"以上是账号 {name} 的验证码，用于{chinese}，{minutes} 分钟内有效。如果不是您本人操作，请忽略此邮件。\n"
    )
    return f"Outboard: {english} / {chinese}", body
