"""The system's Chromium, driven by Playwright, and everything that a page must not do while it is looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
CHROMIUM = "chromium-headless-shell"
_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--in-process-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_BLOCKED = "Service Worker registration blocked by Playwright"
"""As everywhere but where a test asks for them: what a worker passes on, a test cannot see or hold."""
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


@contextmanager
def chromium(program: str) -> Iterator[Browser]:
    expect.set_options(timeout=20_000)  # a limit for what is wrong, and no promise: those are measured
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A page, and what was wrong with it: messages of scripts and of the policy, requests to other hosts, answers that are errors."""

    page: Page
    context: BrowserContext
    home: str
    wrong: list[str] = field(default_factory=list)
    expected: tuple[int, ...] = ()

    def go(self, path: str) -> Page:
        self.page.goto(self.home + path)
        return self.page

    def axe(self, only: str = "") -> list[str]:
        """What axe-core finds against WCAG 2.2 AA, by all of its rules or by one."""
        # not as a script of the page, which the policy would refuse
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found: list[dict[str, Any]] = self.page.evaluate(
            "rules => axe.run(document, {runOnly: rules, resultTypes: ['violations']}).then(found => found.violations)",
            {"type": "rule", "values": [only]} if only else {"type": "tag", "values": _RULES},
        )
        return [f"{each['id']}: {node['html'][:160]}" for each in found for node in each["nodes"]]

    def too_wide(self) -> int:
        """By how many pixels the page is wider than its window."""
        wide: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return wide


@contextmanager
def watched(browser: Browser, home: str, **options: Any) -> Iterator[Watched]:
    context = browser.new_context(**{"service_workers": "block"} | options)
    page = context.new_page()
    made = Watched(page, context, home)
    host = urlsplit(home).netloc

    def told(message: Any) -> None:
        if message.type in ("error", "warning") and message.text != _BLOCKED:
            made.wrong.append(f"console: {message.text}")

    page.on("console", told)
    page.on("pageerror", lambda error: made.wrong.append(f"script: {error}"))

    def asked(request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https") and parts.netloc != host:
            made.wrong.append(f"another host: {request.url}")

    page.on("request", asked)
    try:
        yield made
    finally:
        context.close()
