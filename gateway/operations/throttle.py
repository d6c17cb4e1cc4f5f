"""How often a sign-in may fail: per user and address, per address whatever the user, and per user whatever the address. How often other things
may be asked for."""

import hashlib
import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta

from gateway.settings import Settings
from gateway.storage import Storage
from idl.codes import Code, ServingError

_ADDRESS_FACTOR = 10
"""How many times more may fail from one address over all users: an address may stand for a whole office."""
_USER_FACTOR = 20
"""How many times more may fail for one user over all addresses from which nobody has signed in as that user: guessing from a thousand
addresses is no quicker than that, and does not lock out whoever signs in from where they did before."""
_HOME = timedelta(days=30)
"""How long an address counts as such a one after a sign-in."""


@dataclass(frozen=True, slots=True)
class _Bucket:
    key: str
    burst: int
    interval_s: float


class Throttle:
    """Attempts are counted before the password is looked at, so that many at once cannot slip through, and uncounted on success."""

    def __init__(self, storage: Storage, settings: Settings) -> None:
        self._attempts = storage.attempts
        self._burst = settings.sign_in_failures
        self._interval_s = settings.sign_in_failure_interval_s

    def take(self, user: str, address: str, now: datetime) -> None:
        """Counts an attempt. Raises overloaded, with the time to wait, where too many failed before."""
        taken: list[_Bucket] = []
        buckets = self._buckets(user, address)
        if not self._is_home(user, address, now):
            buckets = (*buckets, self._of_user(user))
        for bucket in buckets:
            wait_s = self._attempts.take(bucket.key, now.timestamp(), burst=bucket.burst, interval_s=bucket.interval_s)
            if wait_s > 0:
                for other in taken:
                    self._attempts.give_back(other.key, other.interval_s)
                raise ServingError(Code.OVERLOADED, "too many attempts", retry_after_ms=int(wait_s * 1000) + 1)
            taken.append(bucket)

    def succeeded(self, user: str, address: str, now: datetime) -> None:
        """The password was right: this user's failures from this address are forgiven, the address's and the user's other ones are not."""
        own, shared = self._buckets(user, address)
        self._attempts.forgive(own.key)
        self._attempts.give_back(shared.key, shared.interval_s)
        if not self._is_home(user, address, now):
            of_user = self._of_user(user)
            self._attempts.give_back(of_user.key, of_user.interval_s)
        if not self._is_home(user, address, now + _HOME / 2):
            self._attempts.hold(_key("home", user.lower(), _network(address)), (now + _HOME).timestamp())

    def _is_home(self, user: str, address: str, now: datetime) -> bool:
        return self._attempts.holds(_key("home", user.lower(), _network(address)), now.timestamp())

    def _of_user(self, user: str) -> _Bucket:
        return _Bucket(_key("anywhere", user.lower()), self._burst * _USER_FACTOR, self._interval_s / _USER_FACTOR)

    def _buckets(self, user: str, address: str) -> tuple[_Bucket, ...]:
        network = _network(address)
        return (
            _Bucket(_key("user", user.lower(), network), self._burst, self._interval_s),
            _Bucket(_key("address", network), self._burst * _ADDRESS_FACTOR, self._interval_s / _ADDRESS_FACTOR),
        )


class Rate:
    """`burst` at once, then one more every `interval_s`, of whoever is counted; over all workers."""

    def __init__(self, storage: Storage, name: str, burst: int, interval_s: float) -> None:
        self._attempts = storage.attempts
        self._name = name
        self._burst = burst
        self._interval_s = interval_s

    def take(self, whose: str, now: datetime) -> None:
        """Counts one of `whose`, an address of the network or anything else. Raises overloaded, with the time to wait."""
        key = _key("rate", self._name, _network(whose.lower()))
        wait_s = self._attempts.take(key, now.timestamp(), burst=self._burst, interval_s=self._interval_s)
        if wait_s > 0:
            raise ServingError(Code.OVERLOADED, "too many attempts", retry_after_ms=int(wait_s * 1000) + 1)


def _key(*parts: str) -> str:
    # hashed: people type passwords into the name field
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _network(address: str) -> str:
    """One customer's addresses: a single IPv4 address, or the /64 that an IPv6 host can choose from."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 6:
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(parsed)
