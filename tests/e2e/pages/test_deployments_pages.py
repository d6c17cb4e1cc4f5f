"""Deployments as a person uses their pages: made, watched, changed, refused, and deleted, without loading a page again."""

import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.pages.conftest import Site
from tests.e2e.pages.people import sign_in
from tests.pages.browser import Watched, watched


def unexpected(on: Watched, *statuses: str) -> list[str]:
    """What was wrong besides refusals, which a browser's console tells of."""
    return [each for each in on.wrong if not any(f"{status}" in each for status in statuses)]


def state(page: Page, name: str) -> None:
    expect(page.locator(f"#deployment-now [data-state={name}]")).to_be_visible()


def pin(page: Page, name: str, body: str) -> None:
    page.fill("#field-pin-name", name)
    page.fill("#pin-body", body)
    page.click("#pin-form button")


@pytest.fixture
def on(site: Site, browser: Browser) -> Iterator[Watched]:
    with watched(browser, site.home, locale="en-GB") as made:
        made.page.set_default_timeout(20_000)
        made.page.on("dialog", lambda dialog: dialog.accept())
        sign_in(made, site.owner.name)
        yield made


def test_a_version_is_deployed_refused_and_tried(on: Watched) -> None:
    page = on.go("/ui/deployments/new?model=m")
    expect(page.locator("#fit")).to_contain_text("Measured for version 2")
    page.select_option("#field-version", "1")
    expect(page.locator("#fit")).to_contain_text("Measured for version 1")
    page.fill("#field-cpus", "4000")
    expect(page.locator("#fit")).to_contain_text("more than is free")
    page.fill("#field-name", "shop")
    page.click("#deployment-form button.btn-primary")
    expect(page.locator("#error-capacity")).to_contain_text("it would reserve 4000 cores")
    page.click("[data-fill-cpus]")
    page.click("#deployment-form button.btn-primary")
    page.wait_for_url("**/ui/deployments/owner.shop")
    state(page, "running")
    page = on.go("/ui/deployments/owner.shop/settings")
    page.click("#pin summary")
    pin(page, "first", '{"inputs": {"x": [[2, 0, 1]]}}')
    expect(page.locator("#pin-wrong")).to_contain_text("has shape")
    pin(page, "first", '{"inputs": {"x": [[2, 0]]}}')
    page.click("#part-golden li summary")
    expect(page.locator("#part-golden pre")).to_have_text('{"y": [[4.0, 0.0]]}')
    page.select_option("#change-version", "2")
    page.click("#version-go")
    refused = page.locator("#settings-now .alert")
    expect(refused).to_contain_text("Version 2 was refused; version 1 goes on")
    expect(refused).to_contain_text("1.5")
    expect(page.locator("#part-golden pre")).to_be_visible()
    page.fill("#field-golden_tolerance", "10")
    page.click("#save-golden")
    expect(page.locator("#part-golden .saved")).to_have_text("Saved")
    page.locator("#canary-percent").fill("25")
    expect(page.locator("#canary-shown")).to_have_text("25 %")
    page.click("#canary-go")
    expect(page.locator("#deployment-now")).to_contain_text("canary v2, 25 %")
    page.click("text=Promote version 2")
    expect(page.locator("#settings-now")).to_contain_text("Version 2 serves")
    page.click("#roll-back")
    expect(page.locator("#settings-now")).to_contain_text("Version 1 serves")
    assert unexpected(on, "400", "507") == []


def test_states_change_while_one_looks(on: Watched, site: Site) -> None:
    """Within two seconds, and neither the focus nor what is opened or typed is lost."""
    site.owner("POST", "/v1/deployments", {"name": "watched", "model": "m", "version": 1}, 201)
    page = on.go("/ui/deployments")
    page.fill("#filter-q", "watched")
    row = page.locator("#deployments tbody tr")
    expect(row).to_have_count(1)
    expect(row.locator("[data-state=running]")).to_be_visible()
    page.focus("[id^=turn-]")
    page.keyboard.press("Enter")
    expect(row.locator("[data-state=paused]")).to_be_visible()
    assert page.evaluate("document.activeElement.id").startswith("turn-")
    site.owner("PATCH", "/v1/deployments/watched", {"desired_state": "running"})
    expect(row.locator("[data-state=running]")).to_be_visible()
    assert page.evaluate("document.activeElement.id").startswith("turn-")
    page = on.go("/ui/deployments/owner.watched/settings")
    page.click("#pin summary")
    page.fill("#field-pin-name", "half a na")
    took = []
    for wanted, on_the_way in (("paused", "pausing"), ("running", "starting"), ("paused", "pausing")):
        begun = time.monotonic()
        site.owner("PATCH", "/v1/deployments/watched", {"desired_state": wanted})
        expect(page.locator(f"#deployment-now [data-state={on_the_way}], #deployment-now [data-state={wanted}]")).to_be_visible()
        took.append(time.monotonic() - begun)
        state(page, wanted)
    assert sorted(took)[1] < 2.5, took
    assert page.evaluate("document.activeElement.id") == "field-pin-name" and page.input_value("#field-pin-name") == "half a na"
    page = on.go("/ui/deployments?q=watched")
    page.click("[data-delete]")
    expect(page.locator("#delete")).to_contain_text("owner.watched")
    page.keyboard.press("Escape")
    expect(page.locator("#delete")).to_be_hidden()
    page.click("[data-delete]")
    page.click("#delete .btn-danger")
    expect(page.get_by_text("No deployment fits")).to_be_visible()
    assert unexpected(on) == []
