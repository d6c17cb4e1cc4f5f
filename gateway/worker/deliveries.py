"""Sends notices: a few at a time, each on a connection of its own, to an address that was looked up once and may be connected to."""

import contextlib
import http.client
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

from gateway.context import Services
from gateway.operations import task_notices, webhook_targets, webhooks
from gateway.operations.webhook_targets import Place
from gateway.settings import Settings
from gateway.storage.webhooks import DELIVERED, FAILED, PENDING, Attempt, Due
from idl.codes import ServingError
from idl.trace_export import version

_log = logging.getLogger(__name__)
SCHEDULE_S = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""The waits between attempts (Standard Webhooks, "Deliverability and reliability"), with up to a tenth more by chance."""
_AT_ONCE = 32
_TIMES = 2
"""The lease is so many times as long as a receiver may take: a name may have to be looked up before."""
LOOK_EVERY_S = 1.0
_DATABASE_PAUSE_S = 0.5
_MOST_FAILURES = 20
"""Notices in a row that are given up before a webhook is turned off."""
_LEASE_MARGIN_S = 10.0
_MOST_READ = 4096
_UNWANTED = 410
_MOST_RETRY_AFTER_S = 86_400.0


def send_due(services: Services) -> bool:
    """Sends what is due, a round of it, and waits for that. True where there may be more."""
    due = _claim(services, _AT_ONCE, ())
    if not due:
        return False
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook") as pool:
        attempts = list(pool.map(lambda each: send(services.settings, each, services.now().timestamp()), due))
    _settle(services, list(zip(due, attempts, strict=True)))
    return True


def _claim(services: Services, limit: int, held: Sequence[tuple[int, str]]) -> list[Due]:
    lease_s = _TIMES * services.settings.webhook_timeout_s + _LEASE_MARGIN_S
    return services.storage.webhooks.claim(services.now(), lease_s, limit, held)


def _settle(services: Services, over: Sequence[tuple[Due, Attempt]]) -> None:
    services.storage.webhooks.settle([attempt for _, attempt in over], services.now(), _MOST_FAILURES)
    for due, attempt in over:
        services.metrics.count("delivery", due.delivery.event, attempt.state if attempt.state != PENDING else "put off")


class Deliveries:
    """A `Part` of a worker: a thread keeps the books, others send. Each that ends makes room for the next one at once."""

    name = task_notices.JOB

    def __init__(self, services: Services) -> None:
        self._services = services
        self._changed = threading.Condition()
        self._rung = True
        self._stopping = self._given_up = False
        self._held: dict[str, Due] = {}
        self._over: list[tuple[Due, Attempt]] = []
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook")
        self._thread = threading.Thread(target=self._run, name="deliveries", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ring(self) -> None:
        with self._changed:
            self._rung = True
            self._changed.notify()

    def ask_to_stop(self) -> None:
        with self._changed:
            self._stopping = self._rung = True
            self._changed.notify()

    def join(self, timeout_s: float) -> bool:
        """What is still being sent then is sent again by the next worker."""
        self._thread.join(timeout_s)
        has_ended = not self._thread.is_alive()
        with self._changed:
            self._given_up = True
            self._changed.notify()
        self._pool.shutdown(wait=False, cancel_futures=True)
        return has_ended

    def _run(self) -> None:
        pause_s = 0.0
        while True:
            with self._changed:
                if not (self._over or self._rung or self._given_up):
                    self._changed.wait(pause_s)
                if self._given_up or (self._stopping and not self._held):
                    return
                over, self._over = self._over, []
                self._rung = False
            try:
                pause_s = self._step(over)
            except Exception as error:  # noqa: BLE001 - whatever it is: what was sent is not forgotten
                if not isinstance(error, ServingError):
                    _log.exception("deliveries_failed")
                with self._changed:
                    self._over = over + self._over
                    self._changed.wait_for(lambda: False, _DATABASE_PAUSE_S)  # a ring does not mend it

    def _step(self, over: list[tuple[Due, Attempt]]) -> float:
        """Returns the seconds to wait for a ring."""
        if over:
            _settle(self._services, over)
            for sent, _ in over:
                self._held.pop(sent.delivery.id, None)
            over.clear()
        room = 0 if self._stopping else _AT_ONCE - len(self._held)
        due = _claim(self._services, room, [(each.user_id, each.delivery.webhook_id) for each in self._held.values()]) if room > 0 else []
        for each in due:
            self._held[each.delivery.id] = each
        for each in due:
            self._pool.submit(self._send, each)
        return LOOK_EVERY_S

    def _send(self, due: Due) -> None:
        attempt = send(self._services.settings, due, self._services.now().timestamp())
        with self._changed:
            self._over.append((due, attempt))
            self._changed.notify()


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
        return Attempt(delivery.id, delivery.webhook_id, delivery.attempts, DELIVERED, 0.0, status, "")
    unwanted = status == _UNWANTED
    if unwanted or delivery.attempts >= settings.webhook_attempts:
        return Attempt(delivery.id, delivery.webhook_id, delivery.attempts, FAILED, 0.0, status, error, unwanted)
    pause_s = SCHEDULE_S[min(delivery.attempts, len(SCHEDULE_S)) - 1]
    pause_s = max(pause_s, min(retry_after_s, _MOST_RETRY_AFTER_S)) * random.uniform(1.0, 1.1)
    return Attempt(delivery.id, delivery.webhook_id, delivery.attempts, PENDING, now + pause_s, status, error)


def _post(target: Place, address: str, head: dict[str, str], body: bytes, timeout_s: float) -> tuple[int, float]:
    """(status, seconds that the receiver asks to wait). The time is for all of it. Raises OSError, HTTPException."""
    until = time.monotonic() + timeout_s
    sock = socket.create_connection((address, target.port), timeout=timeout_s)
    connection = http.client.HTTPConnection(target.host, target.port, timeout=timeout_s)
    # a receiver that sends a byte now and then would otherwise never be too late. A descriptor of its own: TLS takes the socket's away
    own = sock.dup()
    alarm = threading.Timer(timeout_s, _cut, [own])
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
        own.close()


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
