"""The web side: a Flask application that authenticates, validates and asks the model hosts. `create_app` wires it.

What is named here is imported when it is asked for: who only reads `gateway.settings` does not pay for Flask.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.application import build_services, create_app, default_services

__all__ = ["build_services", "create_app", "default_services"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gateway import application

    return getattr(application, name)
