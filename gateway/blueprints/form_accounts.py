"""The form API on accounts: `/register`. (`/login` stands with what all of its routes have in common.)"""

from collections.abc import Mapping
from typing import Any

from flask import Blueprint

from gateway.blueprints.form_api import DUPLICATION, TOO_MANY, FormAsked, FormRoutes, Refused
from gateway.context import client_address, request_id, services
from gateway.storage.audit import Doer
from idl.codes import Code, ServingError

blueprint = Blueprint("form_accounts", __name__)
_routes = FormRoutes(blueprint)


@_routes.route("POST", "/register", ("user", "password"), optional=("email",), statuses=(DUPLICATION,), signs_in=False)
def register(asked: FormAsked) -> Mapping[str, Any]:
    """A new account, active at once; without an e-mail address, unless the settings require one."""
    origin = Doer(None, "", client_address(), request_id())
    try:
        services().users.register(asked["user"], asked["password"], asked.get("email"), origin=origin)
    except ServingError as error:
        if error.code is Code.OVERLOADED:
            raise Refused(TOO_MANY, error.message) from None
        raise
    return {}
