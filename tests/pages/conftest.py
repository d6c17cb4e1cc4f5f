"""Pages over an application inside the test."""

from tests.gateway.conftest import app, cheap_passwords, client, services, settings, time_of_day  # noqa: F401
from tests.gateway.deployed_host import deployed, users_host  # noqa: F401
from tests.gateway.owners import place  # noqa: F401
