"""Who may do what with something that has an owner, may be shared with a team, and may be public.

The whole rule is `Access.of`. What somebody may not even read is as if it were not there: the answer is `not found`, in the words of a name
that nobody has.
"""

from dataclasses import dataclass
from enum import Flag, auto

from gateway.storage import Storage
from gateway.types import Principal, Role, Scope
from idl.codes import Code, ServingError


class Can(Flag):
    """READ: see it and its state. CALL: have it compute. CHANGE: everything but giving it away and deleting it. OWN: these, too.
    OPERATE: start and pause it, for the host's sake."""

    READ = auto()
    CALL = auto()
    CHANGE = auto()
    OWN = auto()
    OPERATE = auto()


NOTHING = Can(0)
EVERYTHING = Can.READ | Can.CALL | Can.CHANGE | Can.OWN | Can.OPERATE
_OF_ROLE = {"viewer": Can.READ | Can.CALL, "editor": Can.READ | Can.CALL | Can.CHANGE | Can.OPERATE, "owner": EVERYTHING}


@dataclass(frozen=True, slots=True)
class Shared:
    """What counts of a thing: `visibility` private, team or public; `team_id` None: of no team."""

    owner_id: int
    visibility: str
    team_id: int | None = None


class Access:
    """Thread-safe. Asks the database for teams only where that matters."""

    def __init__(self, storage: Storage) -> None:
        self._teams = storage.teams

    def of(self, principal: Principal | None, thing: Shared) -> Can:
        """A public thing can be read and called by everybody. Its owner and administrators can do everything, the members of its team what
        their role says, whether it is public or not, and operators can see that it is there and start and pause it."""
        can = Can.READ | Can.CALL if thing.visibility == "public" else NOTHING
        if principal is None:
            return can
        if principal.user_id == thing.owner_id or principal.role is Role.ADMINISTRATOR:
            return EVERYTHING
        if principal.may_operate:
            can |= Can.READ | Can.OPERATE
        if thing.team_id is not None and thing.visibility != "private":
            can |= _OF_ROLE.get(self._teams.role(thing.team_id, principal.user_id), NOTHING)
        return can

    def require(self, principal: Principal | None, thing: Shared | None, wanted: Can, what: str, missing: Code = Code.NOT_FOUND) -> Can:
        """What the principal can do, which holds `wanted`. `thing` None: there is none; `what` names it, such as "model 'm'".

        Raises unauthenticated where nobody is signed in and it is not public, or does not exist; `missing` where it must not be seen,
        forbidden where it may be seen and not that.
        """
        can = NOTHING if thing is None else self.of(principal, thing)
        if wanted in can:
            return can
        if principal is None:
            raise ServingError(Code.UNAUTHENTICATED, f"{what}: sign in to use it")
        if Can.READ not in can:
            raise ServingError(missing, f"there is no {what}")
        raise ServingError(Code.FORBIDDEN, f"{what}: you may see it, and not do this")


def require_session(caller: Principal, why: str) -> None:
    """Raises forbidden for a caller who came by an API key: what keys are good for ends where accounts change hands."""
    if caller.by_key:
        raise ServingError(Code.FORBIDDEN, f"this needs a sign-in: {why}")


def require_scope(caller: Principal | None, scope: Scope) -> None:
    """Raises forbidden for an API key without the scope; who signs in has all of them, and nobody needs none."""
    if caller is not None and scope not in caller.scopes:
        raise ServingError(Code.FORBIDDEN, f"this needs an API key with the scope {scope.value!r}")
