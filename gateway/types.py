"""Values that cross the gateway's rooms; they know neither Flask nor the database."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a user may do besides using models: nothing, run the model hosts, or that and manage users."""

    USER = "user"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `session` is the token family of the sign-in."""

    user_id: int
    name: str
    role: Role
    session: str = ""

    @property
    def may_operate(self) -> bool:
        """True for those who may load and unload models."""
        return self.role in (Role.OPERATOR, Role.ADMINISTRATOR)
