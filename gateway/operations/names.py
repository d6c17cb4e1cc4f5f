"""Names of users, teams, models and deployments, and how a path names what belongs to somebody else."""

import re
from dataclasses import dataclass

from gateway.errors import InvalidFields

PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
RULE = "must have 1 to 64 letters, digits, _ or -, and begin with a letter or digit"
_NAME = re.compile(PATTERN, re.ASCII)


def reason_against(name: str) -> str:
    """Why this cannot be a name; "" where it can."""
    return "" if _NAME.fullmatch(name) else RULE


def refuse(field: str, name: str) -> None:
    """Raises invalid_input that names the field."""
    if reason := reason_against(name):
        raise InvalidFields({field: reason})


@dataclass(frozen=True, slots=True)
class Addressed:
    """`owner` "": the caller's own. Neither part need be a name that anybody has."""

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}" if self.owner else self.name


def addressed(text: str) -> Addressed:
    """A name as it stands in a path of `/v1`: `name`, or `owner.name`."""
    owner, dot, name = text.partition(".")
    return Addressed(owner, name) if dot else Addressed("", text)
