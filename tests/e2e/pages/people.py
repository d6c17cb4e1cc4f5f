"""Whoever uses the pages in tests."""

import re

from tests.e2e.test_deployments import PASSWORD
from tests.pages.browser import Watched

__all__ = ["PASSWORD", "sign_in"]


def sign_in(on: Watched, name: str = "admin", password: str = PASSWORD) -> None:
    """Without a page, which takes a browser a second: test_first_pages.py has the form."""
    requests = on.context.request
    token = re.search(r'name="form_token" value="([^"]+)"', requests.get(f"{on.home}/ui/sign-in").text())
    assert token is not None
    sent = {"form_token": token[1], "login": name, "password": password}
    answer = requests.post(f"{on.home}/ui/sign-in", form=sent, max_redirects=0)
    assert answer.status == 303 and answer.headers["location"] == "/ui", answer.text()
