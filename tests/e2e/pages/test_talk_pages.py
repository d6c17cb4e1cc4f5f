"""A dialogue in a real browser: with the demo's model, which streams, and with a private deployment, over the reader's session."""

from pathlib import Path

from onnx import TensorProto
from playwright.sync_api import Browser, expect

from tests.e2e.pages.conftest import Site
from tests.e2e.pages.people import sign_in
from tests.e2e.test_deployments import upload
from tests.gateway.deployed_host import within
from tests.onnx_models import identity
from tests.pages.browser import watched


def test_talking_to_the_demo(site: Site, browser: Browser) -> None:
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, "owner")
        page = on.go("/ui/dialogue?with=dialogue")
        page.get_by_role("button", name="What is Outboard?").click()
        turns, box = page.locator(".talk-turn"), page.locator("#talk-text")
        expect(turns.nth(0).locator(".talk-time")).to_contain_text("first word after", timeout=20_000)
        expect(turns.nth(0).locator(".talk-theirs .talk-text")).to_contain_text("Outboard")
        expect(page.locator("#talk-said")).to_contain_text("Answer: ")
        expect(box).to_be_focused()
        page.keyboard.type("<b>hello</b>")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("there")
        page.keyboard.press("Enter")
        expect(turns.nth(1).locator(".talk-mine .talk-text")).to_have_text("<b>hello</b>\nthere")
        expect(turns.nth(1).locator(".talk-time")).to_be_visible()
        page.keyboard.type("not sent yet")
        page.reload()
        expect(box).to_have_value("not sent yet")
        expect(turns).to_have_count(2)
        with page.expect_download() as taken:
            page.click("#talk-export")
        assert "<b>hello</b>\nthere" in Path(taken.value.path()).read_text()
        assert not on.wrong and on.too_wide() <= 0
        on.context.set_offline(True)
        box.press("Enter")
        expect(turns.nth(2).locator(".talk-trouble")).to_contain_text("no connection")
        on.context.set_offline(False)
        page.route("**/generate_stream", lambda route: None)
        page.get_by_role("button", name="Try again").click()
        page.click("#talk-stop")
        expect(turns.nth(2).locator(".talk-trouble")).to_contain_text("Stopped by you")
        page.unroute("**/generate_stream")
        page.get_by_role("button", name="Try again").click()
        expect(turns.nth(2).locator(".talk-time")).to_be_visible()
        expect(turns.nth(2).locator(".talk-trouble")).to_have_count(0)
        page.click("#talk-clear")
        page.click("#talk-clear-now")
        expect(turns).to_have_count(0)
        page.reload()
        expect(page.locator("#talk-empty")).to_be_visible()


def test_two_tabs_of_one_dialogue(site: Site, browser: Browser) -> None:
    """What one adds, answers or stops while the other is asking stays as it is."""
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, "owner")
        page = on.go("/ui/dialogue?with=dialogue")
        page.fill("#talk-text", "What is Outboard?")
        page.click("#talk-send")
        turns = page.locator(".talk-turn")
        expect(turns.nth(0).locator(".talk-time")).to_be_visible(timeout=20_000)
        other = on.context.new_page()
        other.goto(f"{on.home}/ui/dialogue?with=dialogue")
        page.route("**/generate_stream", lambda route: None)
        page.fill("#talk-text", "in one tab")
        page.click("#talk-send")
        other.fill("#talk-text", "in another")
        other.click("#talk-send")
        expect(other.locator(".talk-turn").nth(2).locator(".talk-time")).to_be_visible()
        other.route("**/generate_stream", lambda route: None)
        other.fill("#talk-text", "once more")
        other.click("#talk-send")  # it has the first tab's turn as it was before its end, and is asking when that comes
        page.click("#talk-stop")
        expect(turns).to_have_count(4)
        other.click("#talk-stop")
        expect(other.locator(".talk-turn").nth(1)).to_contain_text("Stopped by you")
        page.unroute("**/generate_stream")
        page.reload()
        expect(turns).to_have_count(4)
        expect(turns.nth(1)).to_contain_text("Stopped by you")
        expect(turns.nth(2).locator(".talk-time")).to_be_visible()
        other.close()
        assert not on.wrong


def test_talking_to_ones_own_deployment(site: Site, browser: Browser, tmp_path: Path) -> None:
    """It is private: the session of the browser asks, through nginx; once it has ended, that is said, and nothing is lost."""
    echo = identity(tmp_path / "echo.onnx", TensorProto.STRING, (1,))
    site.owner("POST", "/v1/models", upload(echo, name="echo"), 201)
    site.owner("POST", "/v1/deployments", {"name": "echo", "model": "echo", "version": 1}, 201)
    within(30, lambda: site.owner("GET", "/v1/deployments/echo")["state"] == "running")
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, "owner")
        page = on.go("/ui/dialogue")
        page.select_option("#field-with", "owner.echo")
        page.wait_for_url("**/ui/dialogue?with=owner.echo")
        page.fill("#talk-text", "Grüße, 你好")
        page.keyboard.press("Enter")
        expect(page.locator(".talk-theirs .talk-text")).to_have_text("Grüße, 你好", timeout=20_000)
        assert not on.wrong
        on.context.clear_cookies()
        page.fill("#talk-text", "once more")
        page.click("#talk-send")
        expect(page.locator(".talk-trouble")).to_contain_text("You are not signed in any more")
        expect(page.locator(".talk-mine").last).to_contain_text("once more")
