"""The page of one deployment, used as its owner does: it is seen at work, its script is written and tried, a key is made and used."""

import json
import time
import urllib.request

from playwright.sync_api import Browser, expect

from tests.e2e.pages.conftest import Site
from tests.e2e.pages.people import sign_in
from tests.gateway.deployed_host import within
from tests.needs import boxed
from tests.pages.browser import watched

BODY = {"inputs": {"x": [[2, 0]]}}


def test_what_is_called_is_seen_within_two_seconds(site: Site, browser: Browser) -> None:
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, "owner")
        page = on.go("/ui/deployments/owner.d?range=15m")
        requests = page.locator("[data-figure=requests]")
        expect(page.locator("[data-chart=rate] canvas")).to_be_visible()
        took = []
        for _ in range(3):
            before = int(requests.inner_text().replace(",", ""))
            site.owner("POST", "/v1/deployments/d/predictions", BODY)
            called = time.monotonic()
            expect(requests).to_have_text(f"{before + 1:,}")
            took.append(time.monotonic() - called)
        assert sorted(took)[1] < 2, took
        wrong = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [2]}]}
        site.owner.asked("POST", "/v2/models/owner.d/infer", wrong, **{"X-Request-Id": "seen-1"})
        expect(page.locator("#failed tbody tr").first.locator("code").last).to_have_text("seen-1", timeout=5000)
        expect(page.locator("[data-chart=errors] .chart-key").get_by_text("invalid_input")).to_be_visible()
        assert "Requests/s" in (page.locator("[data-chart=rate] .chart-canvas").get_attribute("aria-label") or "")
        page.locator("[data-chart=latency] .u-over").hover()
        expect(page.locator("[data-chart=latency] .chart-tip-row")).to_have_count(3)
        page.get_by_role("button", name="p99").click()
        expect(page.get_by_role("button", name="p99")).to_have_attribute("aria-pressed", "false")
        page.get_by_text("The same figures as a table").click()
        cells = page.locator("#as-table tbody tr").first.locator("td")
        assert int(cells.nth(0).inner_text()) >= 1 and "invalid_input 1" in page.locator("#as-table tbody").inner_text()
        page.get_by_role("link", name="1 hour").click()
        page.wait_for_url("**range=1h")
        expect(requests).not_to_have_text("0")
        on.context.clear_cookies()
        expect(page.locator("#late a")).to_be_visible(timeout=5000)
        assert [each for each in on.wrong if "401" not in each] == []


@boxed
def test_a_script_is_written_tried_and_put_into_use(site: Site, browser: Browser) -> None:
    site.owner("POST", "/v1/deployments", {"name": "scripted", "model": "m", "version": 1}, 201)
    within(20, lambda: site.owner("GET", "/v1/deployments/scripted")["state"] == "running")
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, "owner")
        page = on.go("/ui/deployments/owner.scripted/script")
        page.focus("#script-source")
        page.keyboard.type("def postprocess(outputs):\nreturn {'z': outputs['y'] +")
        page.keyboard.press("Tab")
        assert page.input_value("#script-source").endswith("\n    return {'z': outputs['y'] + "), "Enter and Tab indent"
        expect(page.locator(".editor-shown .code-keyword").first).to_have_text("def")
        page.keyboard.press("Escape")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # Check
        expect(page.locator("#script-said")).to_contain_text("line 2")
        expect(page.locator(".editor-lines .wrong")).to_have_text("2")
        page.get_by_role("button", name="Go to line 2").click()
        page.keyboard.press("End")
        page.keyboard.type("1}")
        page.locator("form[data-try] button[type=submit]").click()
        expect(page.locator("[data-answer]")).to_contain_text("z", timeout=15_000)
        assert site.owner("POST", "/v1/deployments/scripted/predictions", BODY)["outputs"] == {"y": [[4, 0]]}
        page.get_by_role("button", name="Save and use").click()
        page.wait_for_url("**/script?name=scripted&version=1")
        expect(page.get_by_text("this version is in use")).to_be_visible()
        assert not page.evaluate("Object.keys(sessionStorage).filter((name) => name.startsWith('draft'))"), "it was saved"
        within(20, lambda: site.owner("POST", "/v1/deployments/scripted/predictions", BODY)["outputs"] == {"z": [[5, 1]]})
        on.page.on("dialog", lambda dialog: dialog.accept())
        saved = page.input_value("#script-source")
        page.fill("#script-source", f"{saved}# more")
        page.goto(page.url)
        expect(page.locator(".editor-shown")).to_contain_text("# more")
        page.get_by_role("button", name="Discard it").click()
        assert page.input_value("#script-source") == saved
        page.goto(page.url)
        expect(page.locator("#script-source")).to_have_value(saved)
        page.get_by_role("button", name="Take off").click()
        expect(page.get_by_text("not in use")).to_be_visible()
        assert [each for each in on.wrong if "400" not in each] == [], "what was wrong with the script"


def test_a_key_is_made_shown_once_and_good_for_calls(site: Site, browser: Browser) -> None:
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, "owner")
        page = on.go("/ui/deployments/owner.d/use")
        expect(page.locator("#snippet-token")).to_have_text("export TOKEN=YOUR_KEY")
        page.get_by_role("button", name="Make a key").click()
        key = page.locator("#new-key").inner_text()
        expect(page.locator("#snippet-token")).to_have_text(f"export TOKEN={key}")
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        asked = urllib.request.Request(f"{site.home}/v1/deployments/owner.d/predictions", json.dumps(BODY).encode(), headers)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert json.load(answer)["outputs"] == {"y": [[4, 0]]}
        on.go("/ui/deployments/owner.d/use")
        expect(page.locator("#snippet-token")).to_have_text("export TOKEN=YOUR_KEY")
        page = on.go("/ui/deployments/owner.d/try")
        page.locator("form[data-try] button[type=submit]").click()
        expect(page.locator("[data-answer]")).to_contain_text("y")
        assert not on.wrong
