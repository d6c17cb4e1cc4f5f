"""Who may see what somebody owns: `visibility` and `team` as a change says them, as columns."""

from collections.abc import Mapping
from typing import Any

from gateway.errors import InvalidFields
from gateway.storage import Storage
from gateway.types import Principal, Role

VISIBILITIES = ("private", "team", "public")


def columns(storage: Storage, principal: Principal, values: Mapping[str, Any], visibility: str, team_id: int | None) -> dict[str, Any]:
    """What of `values` is about sharing, as columns; `visibility` and `team_id` are as they were. Raises invalid_input."""
    if "visibility" not in values and "team" not in values:
        return {}
    visibility = values.get("visibility", visibility)
    if "team" in values:
        team_id = None if values["team"] is None else _team(storage, principal, values["team"])
    if visibility == "team" and team_id is None:
        raise InvalidFields({"team": "is missing: visibility team needs one"})
    return {"visibility": visibility, "team_id": None if visibility == "private" else team_id}


def _team(storage: Storage, principal: Principal, name: str) -> int:
    team = storage.teams.by_name(name)
    if team is not None and principal.role is Role.ADMINISTRATOR:
        return team.id
    if team is None or storage.teams.role(team.id, principal.user_id) not in ("owner", "editor"):
        raise InvalidFields({"team": f"{name!r} is no team that you are an owner or editor of"})
    return team.id
