"""Whoever uses the pages in tests."""

from tests.e2e.test_deployments import PASSWORD
from tests.pages.browser import Watched

__all__ = ["PASSWORD", "sign_in"]


def sign_in(on: Watched, name: str = "admin", password: str = PASSWORD) -> None:
    page = on.go("/ui/sign-in")
    page.fill("#field-login", name)
    page.fill("#field-password", password)
    page.click("#sign-in button[type=submit]")
    page.wait_for_url(f"{on.home}/ui")
