"""Pages over an application inside the test."""

from tests.gateway.conftest import app, cheap_passwords, client, services, settings, time_of_day  # noqa: F401
