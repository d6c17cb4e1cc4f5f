"""Which models a list is of, and in which order, as SQL."""

from typing import Any

from gateway.storage.model_records import Wanted

ORDERS = {
    f"{sign}{name}": (column, "desc" if sign else "asc", "<" if sign else ">")
    for name, column in (("name", "m.name"), ("updated", "m.updated_at"), ("created", "m.created_at"), ("deleted", "m.deleted_at"))
    for sign in ("", "-")
}
"""Order -> column, direction, and how what comes after compares with what came before."""


def conditions(wanted: Wanted) -> tuple[list[str], list[Any]]:
    """What holds of the rows, and the values in that: `m` are the models, `u` their owners."""
    where, given = ["u.deleted_at is null"], list[Any]()
    if wanted.deleted:
        where.append("m.deleted_at is not null and m.owner_id = ?")
        given.append(wanted.user_id)
    else:
        where.append("m.deleted_at is null")
    if not wanted.everything and not wanted.deleted:
        teams = ", ".join("?" * len(wanted.teams))
        where.append(f"(m.visibility = 'public' or m.owner_id = ? or (m.visibility = 'team' and m.team_id in ({teams})))")
        given += [-1 if wanted.user_id is None else wanted.user_id, *wanted.teams]
    if wanted.scope:
        condition, values = _scope(wanted)
        where.append(condition)
        given += values
    if wanted.format:
        newest = "select max(number) from model_versions w where w.model_id = m.id and w.deleted_at is null"
        where.append(f"exists (select 1 from model_versions v where v.model_id = m.id and v.number = ({newest}) and v.format = ?)")
        given.append(wanted.format)
    for column, value in (("m.type", wanted.type), ("u.name", wanted.owner), ("m.visibility", wanted.visibility)):
        if value:
            where.append(f"{column} = ? collate nocase")
            given.append(value)
    if wanted.tag:
        where.append("exists (select 1 from model_tags g where g.model_id = m.id and g.tag = ?)")
        given.append(wanted.tag)
    if wanted.text:
        pattern = "%" + wanted.text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        where.append(
            "(m.name like ? escape '\\' or m.description like ? escape '\\' or m.type like ? escape '\\'"
            " or exists (select 1 from model_tags g where g.model_id = m.id and g.tag like ? escape '\\'))"
        )
        given += [pattern] * 4
    return where, given


def _scope(wanted: Wanted) -> tuple[str, list[Any]]:
    user_id = -1 if wanted.user_id is None else wanted.user_id
    match wanted.scope:
        case "mine":
            return "m.owner_id = ?", [user_id]
        case "teams":
            teams = ", ".join("?" * len(wanted.teams))
            return f"(m.owner_id <> ? and m.visibility <> 'private' and m.team_id in ({teams}))", [user_id, *wanted.teams]
    return "m.visibility = 'public'", []
