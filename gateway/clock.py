"""Time as text: UTC, ISO 8601, one width, so that comparing texts compares times."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def now() -> datetime:
    return datetime.now(UTC)


def to_text(moment: datetime) -> str:
    """`2026-11-21T04:05:06.000007Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def from_text(text: str) -> datetime:
    return datetime.fromisoformat(text)


def utc_from_text(text: str) -> datetime:
    """A time that somebody wrote, in UTC. Raises ValueError for what is none, or does not say which zone it is of."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("no zone")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("beyond what can be told") from None
