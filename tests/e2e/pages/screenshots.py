"""Pictures of every page. `scripts/screenshots FOLDER [PART...]`: in light and dark, at both widths, of the pages whose rule has a PART in it;
`scripts/screenshots --readme`: the three that README.md shows, into docs/images.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect

from gateway.settings import Settings
from tests.e2e.pages.conftest import Site, running
from tests.e2e.pages.examples import ADMINISTRATORS, ANYONES, addresses, rules
from tests.e2e.pages.people import sign_in
from tests.e2e.pages.showcase import BUSY, Traffic, furnish
from tests.needs import program
from tests.pages.browser import CHROMIUM, Watched, chromium, watched
from tests.processes import ROOT

WIDTHS = (ViewportSize(width=1440, height=900), ViewportSize(width=375, height=800))
LOCALES = {"en": "en-GB", "zh": "zh-CN"}
README_SIZE = ViewportSize(width=1280, height=1000)
IMAGES = ROOT / "docs" / "images"
README = {
    "model.webp": "/ui/models/owner/photos/test",
    "deployment.webp": f"/ui/deployments/owner.{BUSY}?range=15m",
    "dialogue.webp": "/ui/dialogue?with=dialogue",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/screenshots", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where the pictures go; outside of git")
    parser.add_argument("part", nargs="*", help="only pages whose rule holds one of these")
    parser.add_argument("--language", choices=tuple(LOCALES), default="en")
    parser.add_argument("--readme", action="store_true", help="make the pictures of README.md")
    options = parser.parse_args(argv)
    if options.readme == bool(options.folder):
        parser.error("either a folder, or --readme")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = rules(Settings(data_dir=folder / "rules"))
        with running(folder) as site, chromium(program(CHROMIUM) or CHROMIUM) as browser:
            furnish(site, folder)
            with Traffic(site.owner):
                time.sleep(90 if options.readme else 10)  # charts need something to show
                if options.readme:
                    for_readme(site, browser)
                else:
                    wanted = {rule: path for rule, path in addresses(site, found).items() if fits(rule, options.part)}
                    every_page(site, browser, wanted, options.folder, LOCALES[options.language])
    return 0


def fits(rule: str, parts: Sequence[str]) -> bool:
    return not parts or any(part in rule for part in parts)


def every_page(site: Site, browser: Browser, wanted: dict[str, str], folder: Path, locale: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for size in WIDTHS:
        for colours in ("light", "dark"):
            for name in ("", site.owner.name, "admin"):
                mine = {rule: path for rule, path in wanted.items() if who(site, rule) == name}
                if not mine:
                    continue
                with watched(browser, site.home, viewport=size, color_scheme=colours, locale=locale) as on:
                    if name:
                        sign_in(on, name)
                    for rule, path in mine.items():
                        take(on, path, folder / f"{file_name(rule)}-{size['width']}-{colours}.png")
                    for wrong in on.wrong:
                        print(wrong, file=sys.stderr)


def who(site: Site, rule: str) -> str:
    return "" if rule in ANYONES else "admin" if rule in ADMINISTRATORS else site.owner.name


def file_name(rule: str) -> str:
    return re.sub(r"[^a-z]+", "-", rule.removeprefix("/ui").lower()).strip("-") or ("home" if rule == "/ui" else "welcome")


def take(on: Watched, path: str, file: Path) -> None:
    page = on.go(path)
    settle(page)
    page.screenshot(path=file, full_page=True)
    print(file)


def settle(page: Page) -> None:
    """Until what the page fetches by itself is there."""
    page.wait_for_timeout(700)


def for_readme(site: Site, browser: Browser) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with watched(browser, site.home, viewport=README_SIZE, color_scheme="light", locale="en-GB") as on:
        sign_in(on, site.owner.name)
        for name, path in README.items():
            page = on.go(path)
            page.set_viewport_size(README_SIZE)
            settle(page)
            if name in SHOWN:
                SHOWN[name](page)
            file = IMAGES / f"{name}.png"
            page.evaluate("window.scrollTo(0, 0)")
            page.screenshot(path=file)
            Image.open(file).convert("RGB").save(IMAGES / name, quality=80, method=6)
            file.unlink()
            print(IMAGES / name, (IMAGES / name).stat().st_size)


def _tried(page: Page) -> None:
    page.set_input_files("form[data-try] input[type=file]", ROOT / "docs" / "coffee.jpg")
    page.click("form[data-try] button[type=submit]")
    expect(page.locator("[data-answer]")).to_contain_text("espresso", timeout=30_000)
    with page.expect_response("**/v1/**"):  # the first try has loaded the model
        page.click("form[data-try] button[type=submit]")
    settle(page)
    page.set_viewport_size(ViewportSize(width=1280, height=1240))


def _talked(page: Page) -> None:
    for question in ("What is Outboard?", "How do I add my own model?"):
        page.fill("#talk-text", question)
        page.keyboard.press("Enter")
        expect(page.locator(".talk-turn").last.locator(".talk-time")).to_contain_text("first word after", timeout=30_000)


SHOWN: dict[str, Callable[[Page], None]] = {"model.webp": _tried, "dialogue.webp": _talked}
"""What is done on a page before its picture is taken."""


if __name__ == "__main__":
    sys.exit(main())
