"""Teams: who shares models and deployments with whom."""

from typing import Any
from urllib.parse import quote

from flask import request
from werkzeug.wrappers import Response

from gateway.blueprints.rest import take
from gateway.context import services
from gateway.operations.teams import ROLES, Teams
from gateway.pages import paging
from gateway.pages.forms import again, field, given
from gateway.pages.frame import Pages, doer, go, me, render
from gateway.types import Role
from idl.codes import Code, ServingError

_pages = Pages("teams")
blueprint = _pages.blueprint
LIST = "/ui/teams"


def place(team: str) -> str:
    """The address of a team's page."""
    return f"{LIST}/{quote(team, safe='')}"


@_pages.page("/ui/teams")
def teams() -> Response:
    return render("teams/list.html", **_listed(), typed={"name": ""}, reasons={}, done=request.args.get("done", ""))


@_pages.page("/ui/teams", "POST")
def make_team() -> Response:
    typed = given("name")
    try:
        take(("teams", 30, 60.0), me())
        team = _teams().create(me(), typed["name"].strip(), doer())
    except ServingError as error:
        return again("teams/list.html", error, **_listed(), typed=typed, done="")
    return go(place(team.name))


@_pages.page("/ui/teams/<team>")
def one_team(team: str) -> Response:
    return render("teams/team.html", **_one(team), reasons={})


@_pages.page("/ui/teams/<team>", "POST")
def change_team(team: str) -> Response:
    """`verb`: add somebody, give somebody a role, remove somebody, leave, rename or delete it."""
    operations, mine, typed = _teams(), me(), given("username", "role", "name")
    done = place(team)
    try:
        match field("verb"):
            case "add" | "role":
                operations.set_member(mine, team, typed["username"].strip(), typed["role"], doer())
            case "remove":
                _unless_gone(lambda: operations.remove_member(mine, team, typed["username"], doer()), team)
            case "leave":
                operations.remove_member(mine, team, mine.name, doer())
                done = f"{LIST}?done=left"
            case "rename":
                done = place(operations.rename(mine, team, typed["name"].strip(), None, doer()).name)
            case "delete":
                operations.delete(mine, team, doer())
                done = f"{LIST}?done=deleted"
    except ServingError as error:
        return _shown_again(team, error, typed)
    return go(done)


def _shown_again(team: str, error: ServingError, typed: dict[str, str]) -> Response:
    verb, values = field("verb"), _one(team) | {"typed": {"username": "", "role": "viewer", "name": team} | typed}
    if verb == "add" and error.code is Code.NOT_FOUND:
        error = ServingError(Code.NOT_FOUND, f"username: {error.message}")
    return again("teams/team.html", error, **values)


def _listed() -> dict[str, Any]:
    mine = me()
    is_administrator = mine.role is Role.ADMINISTRATOR
    everybody = is_administrator and request.args.get("everybody") == "1"
    found = _teams().page(mine, paging.number(), paging.SIZE + 1, everybody=everybody)
    return {
        "teams": paging.paged(found, lambda team: team.id),
        "roles": services().storage.teams.roles_of(mine.user_id),
        "everybody": everybody,
        "may_see_all": is_administrator,
        "place": place,
    }


def _one(name: str) -> dict[str, Any]:
    operations, mine = _teams(), me()
    team, role = operations.read(mine, name)
    found = operations.members(mine, name, paging.number(), paging.SIZE + 1)
    return {
        "team": team,
        "role": role,
        "may_change": role == "owner" or mine.role is Role.ADMINISTRATOR,
        "members": paging.paged(found, lambda member: member.user_id),
        "where": place(team.name),
        "team_roles": ROLES[::-1],
        "typed": {"username": "", "role": "viewer", "name": team.name},
    }


def _unless_gone(do: Any, team: str) -> None:
    """Who is removed twice, by two clicks, is removed."""
    try:
        do()
    except ServingError as error:
        if error.code is not Code.NOT_FOUND or "no member" not in error.message:
            raise


def _teams() -> Teams:
    return Teams(services().storage, services().now)
