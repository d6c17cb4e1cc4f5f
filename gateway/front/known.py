"""What a request needs to know and the loop may not wait for: who a token stands for, and what a model's owner declares.

What is remembered is used; what is not, or not for much longer, is fetched by the errands' thread, for the requests to come.
"""

from gateway import wsgi_request
from gateway.context import Services
from gateway.front.errands import Errands
from gateway.hot_routes import Target
from gateway.model_declaration import Declaration
from gateway.operations.access import Can
from gateway.operations.deployments import Target as Deployment
from gateway.types import Principal


class Known:
    """Answers at once; None: not known now."""

    def __init__(self, services: Services, errands: Errands) -> None:
        self._tokens = services.tokens
        self._models = services.models
        self._deployed = services.deployed
        self._errands = errands

    def principal(self, authorization: str) -> Principal | None:
        """Who an Authorization header stands for. Raises unauthenticated for another scheme than Bearer."""
        token = wsgi_request.bearer_token(authorization)
        known = self._tokens.recall(token)
        if known is None or not known[1]:
            self._errands.look_up(("token", token), lambda: self._tokens.check(token))
        return known[0] if known is not None else None

    def deployment(self, caller: Principal | None, name: str) -> tuple[Deployment | None, Can] | None:
        """The deployment of that name and what the caller may do with it."""
        known = self._deployed.recall(caller, name)
        if known is None:
            number = None if caller is None else caller.user_id
            self._errands.look_up(("deployment", name, number), lambda: self._deployed.renew(caller, name))
        return known

    def declaration(self, target: Target) -> Declaration | None:
        known = self._models.recall_declaration(target.model, target.version)
        if known is None or not known[1]:
            self._errands.look_up(
                ("model", target.model, target.version), lambda: self._models.renew_declaration(target.model, target.version)
            )
        return known[0] if known is not None else None
