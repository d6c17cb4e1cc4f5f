"""`/v1/teams`: who shares models and deployments with whom."""

from typing import Any

from flask import Blueprint

from gateway.blueprints.account_shapes import TIME, USERNAME
from gateway.blueprints.rest import PAGE, Answer, Asked, Reply, Rest, page, page_of
from gateway.context import services
from gateway.operations.teams import ROLES, Teams
from gateway.shapes import Flag, Object, OrNull, Text, optional, required
from gateway.storage.teams import MemberRecord, TeamRecord
from gateway.types import Scope
from idl.codes import Code

blueprint = Blueprint("teams", __name__)
_rest = Rest(blueprint, "teams")
_ROLE = Text(choices=ROLES)
_FIELDS = {"name": required(USERNAME), "created_at": required(TIME), "updated_at": required(TIME)}
LISTED = Object(_FIELDS, "ListedTeam")
TEAM = Object(_FIELDS | {"role": required(OrNull(_ROLE), "the caller's; null for an administrator who is no member")}, "Team")
MEMBER = Object({"username": required(USERNAME), "role": required(_ROLE), "added_at": required(TIME)}, "Member")
_NAME = Object({"name": required(USERNAME, "unique on the platform; stays taken when the team is deleted")}, "TeamName")


@_rest.route(
    "POST",
    "/v1/teams",
    "Makes a team, of which the caller is the owner",
    {201: Answer("the team", TEAM)},
    scope=Scope.WRITE,
    body=_NAME,
    errors=(Code.ALREADY_EXISTS, Code.CONFLICT),
    creates=True,
    rate=("teams", 30, 60.0),
)
def create_team(asked: Asked) -> Reply:
    team = _teams().create(asked.me, asked.body["name"], asked.doer)
    return Reply(_body(team, "owner"), 201, {"Location": f"/v1/teams/{team.name}"}, revision=team.revision)


@_rest.route(
    "GET",
    "/v1/teams",
    "The teams that one belongs to",
    {200: Answer("a page", page_of("Teams", LISTED))},
    query=PAGE | {"everybody": optional(Flag(), "all there are; for administrators")},
)
def list_teams(asked: Asked) -> Reply:
    (after,) = asked.key(int) or (0,)
    found = _teams().page(asked.me, after, asked.limit + 1, everybody=asked.query.get("everybody", False))
    return page(found, lambda team: (team.id,), _listed, asked.limit)


@_rest.route("GET", "/v1/teams/<team>", "A team that one belongs to", {200: Answer("the team", TEAM)}, errors=(Code.NOT_FOUND,))
def read_team(asked: Asked, team: str) -> Reply:
    found, role = _teams().read(asked.me, team)
    return Reply(_body(found, role), revision=found.revision)


@_rest.route(
    "PATCH",
    "/v1/teams/<team>",
    "Gives a team another name; for its owners",
    {200: Answer("the team", TEAM)},
    scope=Scope.WRITE,
    body=_NAME,
    errors=(Code.NOT_FOUND, Code.ALREADY_EXISTS),
    matches=True,
)
def rename_team(asked: Asked, team: str) -> Reply:
    changed = _teams().rename(asked.me, team, asked.body["name"], asked.revision, asked.doer)
    return Reply(_body(changed, _teams().read(asked.me, changed.name)[1]), revision=changed.revision)


@_rest.route(
    "DELETE",
    "/v1/teams/<team>",
    "Deletes a team: what was shared with it is its owners' alone again; for its owners",
    {204: Answer("deleted")},
    scope=Scope.WRITE,
    errors=(Code.NOT_FOUND,),
)
def delete_team(asked: Asked, team: str) -> Reply:
    _teams().delete(asked.me, team, asked.doer)
    return Reply()


@_rest.route(
    "GET",
    "/v1/teams/<team>/members",
    "Who belongs to a team; for its members",
    {200: Answer("a page", page_of("Members", MEMBER))},
    query=PAGE,
    errors=(Code.NOT_FOUND,),
)
def list_members(asked: Asked, team: str) -> Reply:
    (after,) = asked.key(int) or (0,)
    return page(_teams().members(asked.me, team, after, asked.limit + 1), lambda member: (member.user_id,), _member, asked.limit)


@_rest.route(
    "PUT",
    "/v1/teams/<team>/members/<username>",
    "Adds somebody, or gives them another role; for the team's owners",
    {200: Answer("the role was changed"), 201: Answer("added")},
    scope=Scope.WRITE,
    body=Object({"role": required(_ROLE, "viewers read and call what is shared; editors change it; owners do everything")}, "MemberRole"),
    errors=(Code.NOT_FOUND, Code.CONFLICT),
)
def set_member(asked: Asked, team: str, username: str) -> Reply:
    added = _teams().set_member(asked.me, team, username, asked.body["role"], asked.doer)
    return Reply({}, 201 if added else 200)


@_rest.route(
    "DELETE",
    "/v1/teams/<team>/members/<username>",
    "Takes somebody out of a team, with what they shared with it; for its owners, and to leave oneself",
    {204: Answer("gone")},
    scope=Scope.WRITE,
    errors=(Code.NOT_FOUND, Code.CONFLICT),
)
def remove_member(asked: Asked, team: str, username: str) -> Reply:
    _teams().remove_member(asked.me, team, username, asked.doer)
    return Reply()


def _teams() -> Teams:
    return Teams(services().storage, services().now)


def _listed(team: TeamRecord) -> dict[str, Any]:
    return {"name": team.name, "created_at": team.created_at, "updated_at": team.updated_at}


def _body(team: TeamRecord, role: str | None) -> dict[str, Any]:
    return _listed(team) | {"role": role}


def _member(member: MemberRecord) -> dict[str, Any]:
    return {"username": member.name, "role": member.role, "added_at": member.added_at}
