"""What everybody meets first: registering, signing in, the example on the first page, choices, a session that ends."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from skimage import data as pictures

from tests.e2e.pages.conftest import Site
from tests.e2e.pages.people import PASSWORD, sign_in
from tests.eventually import eventually
from tests.pages.browser import watched


@pytest.mark.parametrize(("language", "locale", "words"), [("en", "en-GB", "Welcome, ann"), ("zh", "zh-CN", "欢迎，bob")])
def test_a_new_person(site: Site, browser: Browser, language: str, locale: str, words: str) -> None:
    """Registers with a code from a letter, signs in, resets the password with another one, and signs out; with the keyboard alone."""
    name = words.split()[-1] if language == "en" else "bob"
    address = f"{name}@example.org"
    with watched(browser, site.home, locale=locale) as on:
        page = on.go("/ui/register")
        page.focus("#field-username")
        for text in (name, address, PASSWORD):
            page.keyboard.type(text)
            page.keyboard.press("Tab")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/ui/verify?*")
        again = page.locator("[data-wait]")
        expect(again).to_be_disabled()
        page.fill("#field-code", "000000")
        page.keyboard.press("Enter")
        expect(page.locator("#error-code")).to_be_visible()
        page.fill("#field-code", site.letters.code(address))
        page.keyboard.press("Enter")
        page.wait_for_url("**/ui/sign-in?*")
        expect(page.locator("#field-login")).to_have_value(address)
        page.fill("#field-password", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{site.home}/ui")
        expect(page.locator("h1")).to_have_text(words)
        page.click("form[action='/ui/sign-out'] button")
        page.wait_for_url(f"{site.home}/")
        page = on.go("/ui/reset")
        page.fill("#field-email", address)
        page.keyboard.press("Enter")
        page.fill("#field-code", site.letters.code(address))
        page.fill("#field-password", "another horse battery")
        page.click("#reset button[type=submit]")
        page.wait_for_url("**/ui/sign-in?*")
        sign_in(on, name, "another horse battery")
        on.wrong = [each for each in on.wrong if "400" not in each]  # the wrong code
        assert not on.wrong


def test_a_picture_on_the_first_page(site: Site, browser: Browser) -> None:
    picture = Path(pictures.__file__).parent / "coffee.png"
    with watched(browser, site.home) as on:
        page = on.go("/")
        page.set_input_files("#picture", picture)
        expect(page.locator("#answer dt").first).to_have_text("espresso", timeout=20_000)
        assert page.locator("#answer meter").count() == 5
        page.set_input_files("#picture", {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"})
        expect(page.locator("#answer .alert")).to_be_visible()
        expect(page.locator("#preview")).to_be_hidden()
        assert [each for each in on.wrong if "400" not in each and "ERR_" not in each] == []


def test_choices_are_kept_without_losing_the_place(site: Site, browser: Browser) -> None:
    with watched(browser, site.home, locale="en-GB") as on:
        page = on.go("/ui/verify?email=a@example.org")
        page.select_option("#choice-language", "zh")
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        expect(page.locator("#field-email")).to_have_value("a@example.org")
        page.select_option("#choice-theme", "dark")
        expect(page.locator("html")).to_have_attribute("data-bs-theme", "dark")
        page.reload()
        expect(page.locator("html")).to_have_attribute("data-bs-theme", "dark")
        assert not on.wrong


def test_a_session_that_ends_while_one_types(site: Site, browser: Browser) -> None:
    """What changes by itself says that nobody is signed in any more; the page stays as it is."""
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on)
        on.go("/ui")
        on.context.clear_cookies()
        expect(on.page.get_by_text("You are not signed in any more")).to_be_visible(timeout=10_000)
        expect(on.page.locator("h1")).to_have_text("Welcome, admin")
        expect(on.page.locator("#now")).to_be_attached()
        token = on.page.locator("meta[name=form-token]")
        before = token.get_attribute("content")
        with on.context.expect_page() as opened:
            on.page.get_by_role("link", name="Sign in in a new tab").click()
        opened.value.fill("#field-login", "owner")
        opened.value.fill("#field-password", PASSWORD)
        opened.value.keyboard.press("Enter")
        opened.value.wait_for_url(f"{site.home}/ui")
        expect(on.page.get_by_text("Somebody else is signed in now")).to_be_visible(timeout=10_000)
        expect(on.page.get_by_text("You are not signed in any more")).to_have_count(0)
        assert token.get_attribute("content") == before, "this page does nothing for the other account"
        on.page.bring_to_front()
        on.page.get_by_role("button", name="Load the page again").click()
        expect(on.page.locator("h1")).to_have_text("Welcome, owner")


def test_registering_and_signing_in_without_leaving_the_first_page(site: Site, browser: Browser) -> None:
    """In one dialog: the form, its errors, the code from the letter, and the sign-in."""
    with watched(browser, site.home, locale="en-GB") as on:
        page = on.go("/")
        page.get_by_role("link", name="Register").click()
        dialog = page.locator("#account")
        expect(dialog).to_have_attribute("open", "")
        expect(page.locator("#field-username")).to_be_focused()
        for field, text in (("username", "owner"), ("email", "eve@example.org"), ("password", PASSWORD), ("again", PASSWORD)):
            page.fill(f"#field-{field}", text)
        page.keyboard.press("Enter")
        expect(page.locator("#error-username")).to_be_visible()
        expect(page.locator("#field-username")).to_be_focused()
        assert not on.axe() and on.too_wide() <= 0
        page.fill("#field-username", "eve")
        page.fill("#field-password", PASSWORD)
        page.fill("#field-again", PASSWORD)
        page.keyboard.press("Enter")
        expect(page.locator("#account-title")).to_have_text("Confirm your address")
        expect(page.locator("#account [data-wait]")).to_be_disabled()
        page.fill("#field-code", site.letters.code("eve@example.org"))
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("Your address is confirmed")
        assert page.url == f"{site.home}/", "it is still the first page"
        expect(page.locator("#field-password")).to_be_focused()  # the name is there already
        page.fill("#field-password", "wrong wrong")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_contain_text("the password is wrong")
        on.context.set_offline(True)
        page.fill("#field-password", PASSWORD)
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert").first).to_contain_text("no connection")
        on.context.set_offline(False)
        expect(page.locator("#offline")).to_be_hidden()
        page.locator("#field-password").press("Enter")
        page.wait_for_url(f"{site.home}/ui")
        assert not page.evaluate("Object.keys(sessionStorage).filter((name) => name.startsWith('draft'))"), "it was sent"
        on.wrong = [each for each in on.wrong if not re.search("40[19]|DISCONNECTED|Error Code|htmx:(afterRequest|sendError)", each)]
        assert not on.wrong


def test_a_sample_picture_on_the_first_page(site: Site, browser: Browser) -> None:
    with watched(browser, site.home, locale="en-GB") as on:
        page = on.go("/")
        page.get_by_role("button", name="A cat").click()
        expect(page.locator("#answer dt").first).to_contain_text("Mau", timeout=20_000)
        expect(page.locator("#preview")).to_be_visible()
        assert not on.wrong


def test_what_is_looked_at_stays_while_the_server_is_away(site: Site, browser: Browser) -> None:
    """A line says so; what nginx answers instead is not put into the page, and all goes on by itself."""
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on)
        page, line = on.go("/ui"), on.page.locator("#offline")
        for status, words in ((503, "no connection"), (500, "does not answer as it should")):
            page.route(
                "**/ui/home/now", lambda route, *, status=status: route.fulfill(status=status, body="{}", content_type="application/json")
            )
            expect(line).to_contain_text(words, timeout=10_000)
            expect(page.locator("#now")).to_be_visible()
            page.unroute("**/ui/home/now")
            expect(line).to_be_hidden(timeout=10_000)
        assert not [each for each in on.wrong if not re.search("50[03]|Error Code", each)]


def test_a_page_for_when_there_is_no_connection(site: Site, browser: Browser) -> None:
    """It stands at the address of the page that could not be loaded, in the reader's language, and gives way to it."""
    with watched(browser, site.home, locale="zh-CN", service_workers="allow") as on:
        page = on.go("/")
        eventually(lambda: page.evaluate("navigator.serviceWorker.controller !== null"), "the worker is there", 20, 0.05)
        on.context.set_offline(True)
        on.go("/ui/sign-in?next=/ui/models")
        expect(page.locator("h1")).to_have_text("没有网络连接")
        assert not on.axe("color-contrast"), "its colours are there too"
        on.context.set_offline(False)
        expect(page.locator("#field-login")).to_be_visible(timeout=10_000)
        assert page.url == f"{site.home}/ui/sign-in?next=/ui/models"
        page.select_option("#choice-language", "en")
        expect(page.locator("html")).to_have_attribute("lang", "en")
        kept = "async () => (await (await caches.match('/ui/offline')).text()).includes('There is no connection')"
        eventually(lambda: page.evaluate(kept), "the page is kept in the other language", 20, 0.05)
        assert [each for each in on.wrong if "net::ERR_" not in each] == []


def test_an_address_where_nothing_is(site: Site, browser: Browser) -> None:
    with watched(browser, site.home, locale="en-GB") as on:
        page = on.go("/nowhere/at/all")
        expect(page.locator("h1")).to_have_text("There is nothing here")
        assert not on.axe() and on.too_wide() <= 0
        page.get_by_role("link", name="Home").click()
        page.wait_for_url(f"{site.home}/")
