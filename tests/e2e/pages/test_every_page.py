"""Every page in a real browser, through nginx and uWSGI: in both languages, both colours, at two widths; and every link."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ViewportSize, expect

from gateway.settings import Settings
from tests.e2e.pages.conftest import Site
from tests.e2e.pages.examples import ADMINISTRATORS, ANYONES, addresses, rules
from tests.e2e.pages.people import sign_in
from tests.e2e.test_deployments import Caller
from tests.pages.browser import AXE, watched

WIDE, NARROW = ViewportSize(width=1440, height=900), ViewportSize(width=375, height=800)


@pytest.fixture(scope="module")
def pages(site: Site, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return addresses(site, rules(Settings(data_dir=tmp_path_factory.mktemp("rules"))))


@pytest.mark.parametrize(
    ("language", "colours", "viewport"),
    [("en", "light", WIDE), ("zh", "dark", NARROW)],
    ids=["en light wide", "zh dark narrow"],
)
def test_every_page(site: Site, browser: Browser, pages: dict[str, str], language: str, colours: str, viewport: ViewportSize) -> None:
    """No violation of WCAG AA in either colours, none of the policy, nothing from elsewhere, nothing wider than the window at either width."""
    locale = {"en": "en-GB", "zh": "zh-CN"}[language]
    found: dict[str, list[str]] = {}
    groups = {
        "": [rule for rule in pages if rule in ANYONES],
        site.owner.name: [rule for rule in pages if rule not in (*ANYONES, *ADMINISTRATORS)],
        "admin": [rule for rule in pages if rule in ADMINISTRATORS],
    }
    for name, seen in groups.items():
        with watched(browser, site.home, viewport=viewport, color_scheme=colours, locale=locale, reduced_motion="reduce") as on:
            if viewport == WIDE:
                on.context.add_init_script(path=AXE)  # once, and not as a message for each page
            if name:
                sign_in(on, name)
            for rule in seen:
                page = on.go(pages[rule])
                assert page.get_attribute("html", "data-bs-theme") == colours
                assert (page.get_attribute("html", "lang") or "").startswith(language)
                problems: list[str] = []
                if viewport == WIDE:
                    problems += on.axe()
                    page.emulate_media(color_scheme="dark")
                    expect(page.locator("html")).to_have_attribute("data-bs-theme", "dark")
                    problems += [f"dark: {each}" for each in on.axe("color-contrast")]  # the other rules do not look at colours
                    page.emulate_media(color_scheme="light")
                for size in (NARROW, WIDE) if viewport == WIDE else (WIDE, NARROW):  # back to its own
                    page.set_viewport_size(size)
                    problems += [f"too wide for {size['width']} px"] if on.too_wide() > 0 else []
                on.wrong = [each for each in on.wrong if not (rule == "/ui/<path:anything>" and "404" in each)]
                if problems or on.wrong:
                    found[rule] = [*problems, *on.wrong]
                    on.wrong = []
    assert not found, "\n".join(f"{path}: {what}" for path, wrong in found.items() for what in wrong)


@pytest.mark.parametrize("name", ["owner", "admin"])
def test_every_link_leads_somewhere(site: Site, browser: Browser, pages: dict[str, str], name: str) -> None:
    with watched(browser, site.home) as on:
        sign_in(on, name)
        mine = [path for rule, path in pages.items() if "path:anything" not in rule and (name == "admin") >= (rule in ADMINISTRATORS)]
        seen, waiting = set[str](), mine if name == "owner" else ["/ui", *(pages[rule] for rule in ADMINISTRATORS)]
        while waiting:
            path = waiting.pop()
            if path in seen:
                continue
            seen.add(path)
            answer = on.context.request.get(on.home + path)
            assert answer.status == 200, path
            if "html" in answer.headers.get("content-type", ""):
                links = re.findall(r'href="(/[^"#]*)', answer.text())
                waiting += [link.replace("&amp;", "&") for link in links if not link.startswith("/ui/static/")]
        assert {"/docs", "/openapi.json"} <= seen


def test_the_first_visit_is_light(site: Site, browser: Browser) -> None:
    """Less than 300 kB over the wire for the first page and for the home of somebody signed in, with nothing kept from before."""
    for name in ("", "owner"):
        with watched(browser, site.home) as on:
            if name:
                sign_in(on, name)
            on.context.clear_cookies() if not name else None
            session = on.context.new_cdp_session(on.page)
            session.send("Network.enable")
            session.send("Network.setCacheDisabled", {"cacheDisabled": True})
            sizes: list[float] = []
            session.on("Network.loadingFinished", lambda event, into=sizes: into.append(event["encodedDataLength"]))
            on.go("/ui" if name else "/")
            on.page.wait_for_load_state("networkidle") if not name else on.page.wait_for_timeout(500)
            assert 50_000 < sum(sizes) < 300_000, (name, sum(sizes))


def test_what_somebody_new_sees_fits_a_phone(site: Site, browser: Browser) -> None:
    """Lists with nothing in them, which say how to begin."""
    Caller(site.up, "novice")
    with watched(browser, site.home, viewport=NARROW, locale="en-GB") as on:
        sign_in(on, "novice")
        for path in ("/ui", "/ui/models", "/ui/deployments", "/ui/tasks", "/ui/batches", "/ui/teams", "/ui/account/keys"):
            on.go(path)
            assert on.too_wide() <= 0, path
        assert on.page.get_by_text("No key yet").is_visible() and not on.wrong


def test_no_page_is_forgotten(tmp_path: Path) -> None:
    """A rule that is named among the pages of somebody is still there."""
    assert {*ANYONES, *ADMINISTRATORS} <= set(rules(Settings(data_dir=tmp_path)))
