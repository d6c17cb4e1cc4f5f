"""Why a version of a deployment was refused, as pages show it: by which pinned request, and how far its answer was from the pinned one."""

import re
from dataclasses import dataclass

_REFUSED = re.compile(r"version (?P<version>\d+) was refused: (?:golden request '(?P<request>[^']*)': )?(?P<reason>.*)", re.DOTALL)
_DIFFERS = re.compile(
    r"output '(?P<output>.*)' differs(?: by (?P<by>\S+))? at element (?P<element>\d+) \((?P<now>.*), and was (?P<was>.*)\)"
    r" \(tolerance (?P<tolerance>[^)]*)\)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """`request` "": it was no pinned request. `reason`: in words; the rest, where numbers or texts were compared, is "" otherwise."""

    version: str
    request: str
    reason: str
    output: str = ""
    by: str = ""
    element: str = ""
    now: str = ""
    was: str = ""
    tolerance: str = ""


def refusal(notice: str) -> Refusal | None:
    """What the reconciler has written beside a deployment; None where it is something else."""
    found = _REFUSED.fullmatch(notice)
    if found is None:
        return None
    differs = _DIFFERS.fullmatch(found["reason"])
    more = {name: text or "" for name, text in differs.groupdict().items()} if differs is not None else {}
    return Refusal(found["version"], found["request"] or "", found["reason"], **more)
