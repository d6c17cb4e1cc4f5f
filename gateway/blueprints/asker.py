"""Who asks."""

from dataclasses import dataclass

from gateway.context import client_address, request_id
from gateway.storage.audit import Doer
from gateway.types import Principal


@dataclass(frozen=True, slots=True)
class Asker:
    """`caller` None: nobody is signed in, or gave a right password where a form asks for one."""

    caller: Principal | None

    @property
    def me(self) -> Principal:
        """Who it is, in a route that is for those only who are somebody."""
        assert self.caller is not None
        return self.caller

    @property
    def doer(self) -> Doer:
        """The same for the audit log."""
        return Doer(self.me.user_id, self.me.name, client_address(), request_id())
