"""Lists of deployments as somebody looks through them: what is wanted of one, and its SQL."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

MINE, TEAMS, PUBLIC, ALL = "mine", "teams", "public", "all"
WHOSE = (MINE, TEAMS, PUBLIC, ALL)
ORDERS = {"newest": ("", True), "oldest": ("", False), "name": ("lower(d.name)", False), "called": ("coalesce(d.last_call_at, '')", True)}
"""Order -> (what is compared before the id, "" for the id alone; whether the largest is first)."""
Key = tuple[str, int]
"""Where a page ends: what is compared, and the id."""


@dataclass(frozen=True, slots=True)
class Browsed:
    """What a list is of, for the user `user_id` who is in `teams`. `whose`: his own, those of his teams, public ones, or all that he sees;
    `everything`: that is all there are. `text`: stands in the name, the owner's or the model's. "" and None: any. `order`: one of ORDERS."""

    user_id: int
    teams: Collection[int] = ()
    everything: bool = False
    whose: str = MINE
    text: str = ""
    state: str = ""
    model_id: int | None = None
    order: str = "newest"


def clauses(wanted: Browsed, key: Key | None, limit: int, *, backwards: bool = False) -> tuple[str, Sequence[Any]]:
    """Everything from "where" on. `key`: after that one, or with `backwards` before it, and then the nearest to it first."""
    where, given = ["d.deleted_at is null"], list[Any]()
    seen, arguments = _whose(wanted)
    if seen:
        where.append(seen)
        given += arguments
    if wanted.text:
        where.append("(instr(lower(u.name || '.' || d.name), ?) or instr(lower(m.name), ?))")
        given += [wanted.text.lower()] * 2
    if wanted.state:
        where.append("d.state = ?")
        given.append(wanted.state)
    if wanted.model_id is not None:
        where.append("d.model_id = ?")
        given.append(wanted.model_id)
    column, falls = ORDERS[wanted.order]
    falls = falls != backwards
    if key is not None:
        where.append(f"({column or '0'}, d.id) {'<' if falls else '>'} (?, ?)")
        given += [key[0] if column else 0, key[1]]
    turn = "desc" if falls else "asc"
    order = f"{column} {turn}, d.id {turn}" if column else f"d.id {turn}"
    return f"where {' and '.join(where)} order by {order} limit ?", [*given, limit]


def _whose(wanted: Browsed) -> tuple[str, list[Any]]:
    marks = ", ".join("?" * len(wanted.teams))
    of_teams = f"(d.visibility <> 'private' and d.team_id in ({marks}))" if wanted.teams else "0"
    if wanted.whose == MINE:
        return "d.owner_id = ?", [wanted.user_id]
    if wanted.whose == TEAMS:
        return of_teams, [*wanted.teams]
    if wanted.whose == PUBLIC:
        return "d.visibility = 'public'", []
    if wanted.everything:
        return "", []
    return f"(d.owner_id = ? or d.visibility = 'public' or {of_teams})", [wanted.user_id, *wanted.teams]
