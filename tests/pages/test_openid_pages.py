"""Sign-in at an OpenID provider by pages: the whole way, with a real provider, and what must not work."""

from collections.abc import Iterator
from typing import Any

import pytest

from gateway.operations.browsers import SESSION
from tests.gateway import test_openid
from tests.gateway.openid_provider import Provider
from tests.gateway.test_openid import end, gateway, provider, visit  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:JWS algorithm")


def at_the_provider(client: Any, where: str = "/ui") -> str:
    """Begins at the page and goes to the provider: the address that the browser is sent back to."""
    sent = client.get(f"/ui/sign-in/openid?next={where}")
    assert sent.status_code == 302 and sent.headers["Cache-Control"] == "no-store", sent.text
    return visit(sent.headers["Location"])


def back(client: Any, address: str) -> Any:
    """Through the address that the provider knows to the page."""
    onward = end(client, address)
    assert onward.status_code == 303 and onward.headers["Location"].startswith("/ui/sign-in/openid/back?")
    return client.get(onward.headers["Location"])


@pytest.fixture
def browser(gateway: Any) -> Iterator[Any]:  # noqa: F811
    yield gateway()[0]


def test_a_browser_that_began_at_the_page_ends_signed_in(browser: Any) -> None:
    assert "Continue with 127.0.0.1" in browser.get("/ui/sign-in").text
    done = back(browser, at_the_provider(browser, "/ui/components%3Fx=1"))
    assert done.status_code == 303 and done.headers["Location"] == "/ui/components?x=1"
    cookie = browser.get_cookie(SESSION)
    assert cookie is not None and cookie.http_only and cookie.same_site == "Lax"
    page = browser.get("/ui")
    assert page.status_code == 200 and ">ann<" in page.text
    assert not [name for name in ("outboard_oidc_page", "outboard_oidc_next") if browser.get_cookie(name, path="/ui/sign-in")]


def test_what_began_at_the_page_never_ends_as_tokens(browser: Any) -> None:
    address = at_the_provider(browser)
    assert browser.get_cookie("outboard_oidc", path="/v1/oidc") is None
    browser.delete_cookie("outboard_oidc_by_page", path="/v1/oidc")
    refused = end(browser, address)
    assert refused.status_code == 401 and "not begun in this browser" in refused.get_json()["detail"]


def test_clients_of_the_interface_still_get_tokens(browser: Any) -> None:
    at_the_provider(browser)  # and given up
    assert "access_token" in test_openid.sign_in(browser).get_json()
    assert browser.get_cookie(SESSION) is None


def test_an_attempt_is_of_one_browser_and_ends_once(browser: Any) -> None:
    address = at_the_provider(browser)
    stranger = browser.application.test_client()
    stranger.set_cookie("outboard_oidc_by_page", "1", path="/v1/oidc")
    refused = back(stranger, address)
    assert refused.status_code == 401 and refused.mimetype == "text/html" and "not begun in this browser" in refused.text
    assert stranger.get_cookie(SESSION) is None
    onward = end(browser, address).headers["Location"]
    assert browser.get(onward).status_code == 303
    assert browser.get(onward).status_code == 401, "a code is for once"


@pytest.mark.parametrize("change", ["nonce", "state", "error"])
def test_what_is_not_right_is_said_on_the_page_to_sign_in(browser: Any, provider: Provider, change: str) -> None:  # noqa: F811
    if change == "nonce":
        provider.spoil = lambda claims, headers, key: (claims | {"nonce": "another"}, headers, key)
    address = at_the_provider(browser, "/ui/components")
    if change == "state":
        address = address.replace("state=", "state=x")
    elif change == "error":
        address = address.partition("?")[0] + "?error=access_denied"
    refused = back(browser, address)
    assert refused.status_code == 401 and 'role="alert"' in refused.text and 'id="sign-in"' in refused.text
    assert 'value="/ui/components"' in refused.text, "the next try leads there as well"
    assert browser.get_cookie(SESSION) is None
    if change == "error":
        assert "access_denied" in refused.text


def test_a_provider_that_is_away(gateway: Any) -> None:  # noqa: F811
    client, _ = gateway(oidc_issuer="http://127.0.0.1:9")
    away = client.get("/ui/sign-in/openid")
    assert away.status_code == 503 and "cannot be used" in away.text and 'id="sign-in"' in away.text


def test_the_way_begins_at_the_address_that_is_come_back_to(gateway: Any) -> None:  # noqa: F811
    client, _ = gateway(public_url="https://models.example.org")
    moved = client.get("/ui/sign-in/openid?next=/ui/components")
    assert moved.status_code == 303
    assert moved.headers["Location"] == "https://models.example.org/ui/sign-in/openid?moved=1&next=%2Fui%2Fcomponents"


@pytest.mark.parametrize("where", ["//evil.example", "https://evil.example/ui", "/v1/me"])
def test_nobody_is_sent_elsewhere(browser: Any, where: str) -> None:
    assert back(browser, at_the_provider(browser, where)).headers["Location"] == "/ui"


def test_without_a_provider_there_is_no_button(client: Any) -> None:
    assert "openid" not in client.get("/ui/sign-in").text
    none = client.get("/ui/sign-in/openid")
    assert none.status_code == 404 and "no OpenID provider" in none.text
