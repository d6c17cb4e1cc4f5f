"""Sends notices: a few at a time, each on a connection of its own, to an address that was looked up once and may be connected to."""

import contextlib
import http.client
import logging
import random
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

from gateway.context import Services
from gateway.operations import task_notices, webhook_targets, webhooks
from gateway.operations.webhook_targets import Place
from gateway.settings import Settings
from gateway.storage.webhooks import DELIVERED, FAILED, PENDING, Attempt, Due
from gateway.worker.jobs import Job
from idl.codes import ServingError
from idl.trace_export import version

_log = logging.getLogger(__name__)
SCHEDULE_S = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""The waits between attempts (Standard Webhooks, "Deliverability and reliability"), with up to a tenth more by chance."""
_AT_ONCE = 8
_ROUNDS = 2
_MOST_FAILURES = 20
"""Notices in a row that are given up before a webhook is turned off."""
_LEASE_MARGIN_S = 10.0
_MOST_READ = 4096
_UNWANTED = 410
_MOST_RETRY_AFTER_S = 86_400.0


def send_due(services: Services) -> bool:
    """Sends what is due. True where there may be more."""
    settings, hooks = services.settings, services.storage.webhooks
    due = hooks.claim(services.now(), _ROUNDS * settings.webhook_timeout_s + _LEASE_MARGIN_S, _ROUNDS * _AT_ONCE)
    if not due:
        return False
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook") as pool:
        attempts = list(pool.map(lambda each: send(settings, each, services.now().timestamp()), due))
    hooks.settle(attempts, services.now(), _MOST_FAILURES)
    for each, attempt in zip(due, attempts, strict=True):
        services.metrics.count("delivery", each.delivery.event, attempt.state if attempt.state != PENDING else "put off")
    return True


JOB = Job(task_notices.JOB, 1.0, send_due)


def send(settings: Settings, due: Due, now: float) -> Attempt:
    """One attempt, whatever comes of it."""
    body = due.delivery.payload.encode()
    status, error, retry_after_s = None, "", 0.0
    try:
        target = webhook_targets.place(due.url)
        address = webhook_targets.address_of(target, settings.webhook_addresses == "any")
        head = {
            "Host": target.authority,
            "Content-Type": "application/json",
            "User-Agent": f"outboard/{version()}",
            **webhooks.headers(due.secret, due.delivery.id, int(now), body),
        }
        status, retry_after_s = _post(target, address, head, body, settings.webhook_timeout_s)
    except ServingError as failure:
        error = failure.message
    except TimeoutError:
        error = f"no answer within {settings.webhook_timeout_s:g} s"
    except ssl.SSLError as failure:
        error = f"TLS: {failure.reason or 'failed'}"[:200]
    except (OSError, http.client.HTTPException, ValueError) as failure:
        error = f"the connection failed: {getattr(failure, 'strerror', None) or type(failure).__name__}"
    except Exception:  # noqa: BLE001 - the other notices are still to be sent
        _log.exception("webhook_failed", extra={"delivery": due.delivery.id})
        error = "the sender made a mistake"
    if status is not None and not 200 <= status < 300:
        error = f"answered {status}" + (", and redirects are not followed" if 300 <= status < 400 else "")
    return _attempt(settings, due, now, status, error, retry_after_s)


def _attempt(settings: Settings, due: Due, now: float, status: int | None, error: str, retry_after_s: float) -> Attempt:
    delivery = due.delivery
    if not error:
        return Attempt(delivery.id, delivery.webhook_id, DELIVERED, 0.0, status, "")
    unwanted = status == _UNWANTED
    if unwanted or delivery.attempts >= settings.webhook_attempts:
        return Attempt(delivery.id, delivery.webhook_id, FAILED, 0.0, status, error, unwanted)
    pause_s = SCHEDULE_S[min(delivery.attempts, len(SCHEDULE_S)) - 1]
    pause_s = max(pause_s, min(retry_after_s, _MOST_RETRY_AFTER_S)) * random.uniform(1.0, 1.1)
    return Attempt(delivery.id, delivery.webhook_id, PENDING, now + pause_s, status, error)


def _post(target: Place, address: str, head: dict[str, str], body: bytes, timeout_s: float) -> tuple[int, float]:
    """(status, seconds that the receiver asks to wait). The time is for all of it. Raises OSError, HTTPException."""
    until = time.monotonic() + timeout_s
    sock = socket.create_connection((address, target.port), timeout=timeout_s)
    connection = http.client.HTTPConnection(target.host, target.port, timeout=timeout_s)
    # a receiver that sends a byte now and then would otherwise never be too late
    alarm = threading.Timer(timeout_s, _cut, [sock])
    alarm.daemon = True
    alarm.start()
    try:
        if target.scheme == "https":
            sock.settimeout(_left(until))
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=target.host)
        sock.settimeout(_left(until))
        connection.sock = sock
        connection.putrequest("POST", target.path, skip_host=True, skip_accept_encoding=True)
        for name, value in {**head, "Content-Length": str(len(body)), "Connection": "close"}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        sock.settimeout(_left(until))
        answer = connection.getresponse()
        retry_after_s = _seconds(answer.headers.get("Retry-After", ""))
        with contextlib.suppress(OSError, http.client.HTTPException):  # the status is there, that counts
            sock.settimeout(min(1.0, _left(until)))
            answer.read(_MOST_READ)
        return answer.status, retry_after_s
    finally:
        alarm.cancel()
        connection.close()
        sock.close()


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _seconds(text: str) -> float:
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
