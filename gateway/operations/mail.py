"""Letters: from the outbox to a mail server, with retries, by the task worker."""

import logging
import smtplib
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from email.errors import MessageError
from email.message import EmailMessage
from email.policy import SMTPUTF8
from email.utils import format_datetime, make_msgid

from gateway import clock
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.outbox import KEPT, OutboxRecord

TIMEOUT_S = 15.0
LEASE_S = 120.0
"""How long nobody else tries a letter that is being sent: longer than a mail server may take."""
_PAUSES_S = (5, 15, 30, 60, 120, 300)
_log = logging.getLogger(__name__)

Connect = Callable[[Settings], smtplib.SMTP]


class Mail:
    """What is in the outbox, sent. Thread-safe, also with workers in other processes."""

    def __init__(self, storage: Storage, settings: Settings, now: clock.Clock = clock.now) -> None:
        self._outbox = storage.outbox
        self._settings = settings
        self._now = now

    def send_due(self) -> int:
        """Sends what is due, over one connection; how many letters it tried. Without a mail server nothing is ever due.

        A letter may arrive twice, where a worker is killed between the server's word and its own note of it.
        """
        self._outbox.forget(self._now() - KEPT)
        if not self._settings.smtp_host:
            return 0
        count = 0
        server: smtplib.SMTP | None = None
        try:
            while (letter := self._outbox.claim(self._now(), LEASE_S)) is not None:
                count += 1
                server = self._send(server, letter)
        finally:
            _leave(server)
        return count

    def _send(self, server: smtplib.SMTP | None, letter: OutboxRecord) -> smtplib.SMTP | None:
        """The connection for the next one, None where it broke."""
        now = self._now()
        if letter.until <= now.timestamp():
            self._outbox.failed(letter.id, letter.error or "it was too late to send it", now, None)
            return server
        try:
            message = _message(letter, self._settings.smtp_sender, now)
            message.as_bytes(policy=SMTPUTF8)
        except Exception as error:  # noqa: BLE001 - whatever `email` makes of an odd address: it must hold up no other letter
            self._outbox.failed(letter.id, "no letter can be made to this address", now, None)
            _log.warning(
                "mail_failed", extra={"letter": letter.id, "attempt": letter.attempts, "reason": type(error).__name__, "final": True}
            )
            return server
        try:
            server = server or connect(self._settings)
            server.send_message(message, self._settings.smtp_sender, [letter.address])
        except (smtplib.SMTPException, OSError, MessageError, ValueError) as error:
            self._failed(letter, error, now)
            _leave(server)
            return None
        self._outbox.sent(letter.id, self._now())
        return server

    def _failed(self, letter: OutboxRecord, error: Exception, now: datetime) -> None:
        again_at: float | None = now.timestamp() + _PAUSES_S[min(letter.attempts, len(_PAUSES_S)) - 1]
        if _is_final(error) or again_at is None or again_at >= letter.until:
            again_at = None
        reason = _reason(error)
        self._outbox.failed(letter.id, reason, now, again_at)
        _log.warning("mail_failed", extra={"letter": letter.id, "attempt": letter.attempts, "reason": reason, "final": again_at is None})


def connect(settings: Settings) -> smtplib.SMTP:
    """A signed-in connection to the mail server. Raises SMTPException and OSError."""
    context = ssl.create_default_context(cafile=settings.smtp_ca or None) if settings.smtp_tls != "none" else None
    server: smtplib.SMTP
    if settings.smtp_tls == "tls":
        server = smtplib.SMTP_SSL(settings.smtp_host, settings.smtp_port, timeout=TIMEOUT_S, context=context)
    else:
        server = smtplib.SMTP(settings.smtp_host, settings.smtp_port, timeout=TIMEOUT_S)
    try:
        if settings.smtp_tls == "starttls":
            server.starttls(context=context)  # raises where the server cannot: nothing is sent in clear instead
        if settings.smtp_user:
            server.login(settings.smtp_user, settings.smtp_password)
    except BaseException:
        server.close()
        raise
    return server


def _message(letter: OutboxRecord, sender: str, now: datetime) -> EmailMessage:
    message = EmailMessage()
    message["From"] = sender
    message["To"] = letter.address
    message["Subject"] = letter.subject
    message["Date"] = format_datetime(now)
    message["Message-ID"] = make_msgid(f"outbox-{letter.id}", sender.rpartition("@")[2] or "localhost")
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834, section 5: no vacation notes in return
    message.set_content(letter.body)
    return message


def _leave(server: smtplib.SMTP | None) -> None:
    if server is not None:
        with suppress(smtplib.SMTPException, OSError):
            server.quit()
        server.close()


def _is_final(error: Exception) -> bool:
    """Whether the same letter would be refused again (RFC 5321, section 4.2.1: 5yz); a refused sign-in is the settings' fault."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return all(500 <= status < 600 for status, _ in error.recipients.values())
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return False
    if isinstance(error, smtplib.SMTPResponseException):
        return 500 <= error.smtp_code < 600 and not isinstance(error, smtplib.SMTPConnectError)
    return isinstance(error, (smtplib.SMTPNotSupportedError, MessageError, ValueError)) and not isinstance(error, OSError)


def _reason(error: Exception) -> str:
    """What a person can act on, without the letter's text."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        error = smtplib.SMTPResponseException(*next(iter(error.recipients.values())))
    if isinstance(error, smtplib.SMTPResponseException):
        said = error.smtp_error.decode("utf-8", "replace") if isinstance(error.smtp_error, bytes) else str(error.smtp_error)
        return f"the mail server said {error.smtp_code} {said}"[:300]
    if isinstance(error, OSError) and not isinstance(error, smtplib.SMTPException):
        return f"the mail server cannot be reached: {error.strerror or error}"[:300]
    return str(error)[:300] or type(error).__name__
