"""Values that cross the gateway's rooms; they know neither Flask nor the database."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a user may do besides using models: nothing, run the model hosts, or that and manage users."""

    USER = "user"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"


class Scope(StrEnum):
    """What an API key may be used for; who signs in has all of them, within the role."""

    READ = "read"
    CALL = "call"
    WRITE = "write"
    ADMIN = "admin"


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `session` is the token family of the sign-in, or the API key's id; `by_key`: which of the two."""

    user_id: int
    name: str
    role: Role
    session: str = ""
    scopes: frozenset[Scope] = ALL_SCOPES
    by_key: bool = False

    @property
    def may_operate(self) -> bool:
        """True for those who may load and unload models."""
        return self.role in (Role.OPERATOR, Role.ADMINISTRATOR)
