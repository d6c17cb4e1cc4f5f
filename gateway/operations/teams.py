"""Teams: who belongs to them, and who may change that."""

from gateway import clock
from gateway.errors import InvalidFields
from gateway.operations import names
from gateway.storage import Storage
from gateway.storage.audit import Doer
from gateway.storage.teams import OWNER, MemberRecord, TeamRecord
from gateway.storage.users import UserRecord
from gateway.types import Principal, Role
from idl.codes import Code, ServingError

ROLES = ("owner", "editor", "viewer")


class Teams:
    """The verbs on teams. Whoever does not belong to a team does not see that it is there; administrators see and change all."""

    def __init__(self, storage: Storage, now: clock.Clock = clock.now) -> None:
        self._teams = storage.teams
        self._users = storage.users
        self._now = now

    def create(self, caller: Principal, name: str, doer: Doer) -> TeamRecord:
        """With the caller as its owner. Raises invalid_input, already_exists, conflict for too many."""
        names.refuse("name", name)
        return self._teams.create(name, caller.user_id, self._now(), doer=doer)

    def page(self, caller: Principal, after: int, count: int, *, everybody: bool = False) -> list[TeamRecord]:
        """The caller's; with `everybody` all, for administrators."""
        if everybody and caller.role is not Role.ADMINISTRATOR:
            raise ServingError(Code.FORBIDDEN, "the teams of everybody are for administrators")
        return self._teams.page(None if everybody else caller.user_id, after, count)

    def read(self, caller: Principal, name: str) -> tuple[TeamRecord, str | None]:
        """The team, and the caller's role in it (None: an administrator's look). Raises not_found."""
        team = self._teams.by_name(name)
        role = None if team is None else self._teams.role(team.id, caller.user_id) or None
        if team is None or (role is None and caller.role is not Role.ADMINISTRATOR):
            raise ServingError(Code.NOT_FOUND, f"there is no team {name!r}")
        return team, role

    def rename(self, caller: Principal, name: str, new_name: str, revision: int | None, doer: Doer) -> TeamRecord:
        """Raises forbidden for members who do not own it; the rest as `create`."""
        names.refuse("name", new_name)
        return self._teams.rename(self._owned(caller, name).id, new_name, self._now(), revision, doer)

    def delete(self, caller: Principal, name: str, doer: Doer) -> None:
        """What was shared with it is its owners' alone again. Raises as `rename`."""
        self._teams.delete(self._owned(caller, name).id, self._now(), doer)

    def members(self, caller: Principal, name: str, after: int, count: int) -> list[MemberRecord]:
        return self._teams.members(self.read(caller, name)[0].id, after, count)

    def set_member(self, caller: Principal, name: str, username: str, role: str, doer: Doer) -> bool:
        """Adds somebody, or gives them another role; whether they were added. Raises not_found, conflict where no owner would be left."""
        team, user = self._owned(caller, name), self._account(username)
        if role not in ROLES:
            raise InvalidFields({"role": f"must be one of {', '.join(ROLES)}"})
        return self._teams.set_member(team.id, user.id, role, self._now(), doer)

    def remove_member(self, caller: Principal, name: str, username: str, doer: Doer) -> None:
        """Owners may remove anybody, everybody may leave. Raises as `set_member`."""
        leaves = username.lower() == caller.name.lower()
        team = self.read(caller, name)[0] if leaves else self._owned(caller, name)
        if not self._teams.remove_member(team.id, self._account(username).id, self._now(), doer):
            raise ServingError(Code.NOT_FOUND, f"{username!r} is no member of team {name!r}")

    def _owned(self, caller: Principal, name: str) -> TeamRecord:
        team, role = self.read(caller, name)
        if role != OWNER and caller.role is not Role.ADMINISTRATOR:
            raise ServingError(Code.FORBIDDEN, f"team {name!r}: only its owners may do this")
        return team

    def _account(self, username: str) -> UserRecord:
        user = self._users.by_name(username)
        if user is None:
            raise ServingError(Code.NOT_FOUND, f"there is no user {username[:80]!r}")
        return user
