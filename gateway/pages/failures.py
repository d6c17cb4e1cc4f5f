"""What a reader is told about an error, in words for people: what it means here, and what to do. The codes' own words are for programs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flask_babel import lazy_gettext as later

from idl.codes import Code


@dataclass(frozen=True, slots=True)
class Failure:
    """`again`: the same request may do later. `by_itself`: the page looks whether it does."""

    picture: str
    title: Any
    advice: Any
    again: bool = False
    by_itself: bool = False


_FORBIDDEN = Failure(
    "lock", later("This is not open to your account"), later("Ask its owner or an administrator, or sign in with another account.")
)
_MISSING = Failure(
    "map-search",
    later("There is nothing here"),
    later("It may be deleted, renamed, or shared with another account. Check the address, or look for it from the home page."),
)
_CONFLICT = Failure(
    "arrows-split-2",
    later("That does not fit what is there now"),
    later("It may have changed while you looked. Go back, load the page again, and repeat what still makes sense."),
)
_BUSY = Failure("hourglass", later("That was too much at once"), later("Nothing is lost. Wait a moment, then try again."), again=True)
_BROKEN = Failure(
    "mood-sad",
    later("Something went wrong on our side"),
    later("Try again. If it stays, tell an administrator the number of the request."),
    again=True,
)
_AWAY = Failure(
    "plug-connected-x",
    later("Not available right now"),
    later("It usually comes back by itself. This page tries again; what is in other tabs is not lost."),
    again=True,
    by_itself=True,
)
_LARGE = Failure("file-alert", later("That is too large"), later("Go back, and send less at once or a smaller file."))
_WRONG = Failure("alert-triangle", later("That could not be understood"), later("Go back, correct it, and send it again."))
_FULL = Failure(
    "server-off",
    later("There is no room for that now"),
    later("Pause or delete something, ask for less, or ask an administrator for more."),
)

FAILURES: Mapping[Code, Failure] = {
    Code.FORBIDDEN: _FORBIDDEN,
    Code.NOT_FOUND: _MISSING,
    Code.MODEL_NOT_FOUND: _MISSING,
    Code.VERSION_NOT_FOUND: _MISSING,
    Code.GONE: _MISSING,
    Code.CONFLICT: _CONFLICT,
    Code.ALREADY_EXISTS: _CONFLICT,
    Code.DEPLOYMENT_PAUSED: _CONFLICT,
    Code.OVERLOADED: _BUSY,
    Code.INTERNAL: _BROKEN,
    Code.MODEL_FAILED: _BROKEN,
    Code.UNAVAILABLE: _AWAY,
    Code.NOT_READY: _AWAY,
    Code.DEADLINE_EXCEEDED: _AWAY,
    Code.TOO_LARGE: _LARGE,
    Code.INSUFFICIENT_CAPACITY: _FULL,
}


def failure(code: Code) -> Failure:
    return FAILURES.get(code, _WRONG)
