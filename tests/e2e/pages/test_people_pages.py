"""The account and administration, used as a person would: a picture that is cut out, a key that works, a session that is ended, an invitation."""

import json
import re
import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, expect
from skimage import data as pictures

from tests.e2e.pages.conftest import Site
from tests.e2e.pages.people import PASSWORD, sign_in
from tests.e2e.test_deployments import Caller
from tests.pages.browser import watched


def test_a_picture_and_a_key(site: Site, browser: Browser) -> None:
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, "owner")
        page = on.go("/ui")
        page.click("a.me")
        page.click("[data-picture]")
        page.set_input_files("#picture-file", Path(pictures.__file__).parent / "coffee.png")
        expect(page.locator("#picture")).to_be_visible()
        page.focus("#crop canvas")
        before = page.evaluate("document.querySelector('#crop canvas').toDataURL()")
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("document.querySelector('#crop canvas').toDataURL()") != before, "the keyboard moves it"
        page.click("#crop [type=submit]")
        expect(page.locator("a.me img")).to_have_js_property("naturalWidth", 256)
        page.click("form[action='/ui/account/picture'] button")
        expect(page.locator("a.me img")).to_have_count(0)

        page.click("nav.side >> text=API keys")
        page.fill("#field-name", "nightly import")
        page.click("#key [type=submit]")
        secret = page.locator("#made")
        expect(secret).to_contain_text("obk_")
        expect(page.locator("[data-secret]")).to_be_focused()
        request = urllib.request.Request(f"{site.home}/v1/me", headers={"Authorization": f"Bearer {secret.text_content()}"})
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["username"] == "owner"
        page.reload()
        expect(secret).to_have_count(0)
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("tr:has-text('nightly import') >> text=Revoke")
        expect(page.locator("tr:has-text('nightly import')")).to_have_count(0)
        assert not on.wrong


def test_another_session_is_ended(site: Site, browser: Browser) -> None:
    Caller(site.up, "walker")  # not the owner, whose token the other tests use
    with watched(browser, site.home, locale="en-GB") as one, watched(browser, site.home, locale="zh-CN") as other:
        sign_in(one, "walker")
        sign_in(other, "walker")
        page = one.go("/ui/account/sessions")
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("text=End all others")
        expect(page.locator("[data-session]")).to_have_count(1)
        other.go("/ui/account/keys")
        expect(other.page).to_have_url(re.compile("/ui/sign-in"))
        assert not one.wrong


def test_an_administrator_at_work(site: Site, browser: Browser) -> None:
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on)
        page = on.go("/ui/admin/hosts")
        expect(page.locator("meter").first).to_be_visible()
        page.click("nav.side >> text=Users")
        page.fill("#field-search", "OWNER")
        rows = page.locator("#found tbody tr")
        expect(rows).to_have_count(1)
        expect(page).to_have_url(re.compile("search=OWNER"))
        expect(page.locator("#field-search")).to_be_focused()
        rows.locator("a").click()
        page.fill("#field-quota_bytes", "a lot")
        page.click("#quota [type=submit]")
        expect(page.locator("#error-quota_bytes")).to_be_visible()
        page.fill("#field-quota_bytes", "20 GB")
        page.click("#quota [type=submit]")
        expect(page.locator("#field-quota_bytes")).to_have_value("20000000000")
        page.click("nav.side >> text=Clean-up")
        page.click("text=See what would go")
        expect(page.locator("#cleaned")).to_be_visible()
        page.goto(f"{site.home}/ui/admin/invitations")
        page.select_option("#field-role", "operator")
        page.click("#invite [type=submit]")
        expect(page.locator("#made")).to_contain_text("#invitation=")
        link = page.locator("#made").text_content() or ""
        on.wrong = [each for each in on.wrong if "400" not in each]  # what was no size
        assert not on.wrong
    with watched(browser, site.home, locale="en-GB") as on:
        page = on.go(link.removeprefix(site.home))
        expect(page.locator("#field-invitation")).to_have_value(link.rpartition("=")[2])
        assert "invitation" not in page.url
        for name, text in {"username": "invited", "password": PASSWORD, "again": PASSWORD}.items():
            page.fill(f"#field-{name}", text)
        page.click("#register [type=submit]")
        page.wait_for_url("**/ui/sign-in?*")
        sign_in(on, "invited")
        on.go("/ui")
        expect(page.locator("nav.places >> text=Hosts")).to_be_visible()
        assert not on.wrong
