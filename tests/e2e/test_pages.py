"""The pages in a real browser, through nginx and uWSGI, with a real mail server: every one in both languages, both colours, at two widths."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from playwright.sync_api import Browser, ViewportSize, expect
from skimage import data as pictures

from tests.eventually import eventually
from tests.needs import needs
from tests.pages.browser import Watched, chromium, watched
from tests.processes import Process, descendants, free_port, start_up, wait_until_gone

pytestmark = [needs("nginx"), needs("chromium")]
PASSWORD = "correct horse battery"
WIDE, NARROW = ViewportSize(width=1440, height=900), ViewportSize(width=375, height=800)
ANYONES = ("/", "/ui/sign-in", "/ui/register", "/ui/verify?email=a@example.org", "/ui/reset", "/ui/nowhere")
MINE = ("/ui", "/ui/components")


class Letters:
    """What the mail server took, by address."""

    def __init__(self) -> None:
        self.taken: dict[str, str] = {}

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        body = message_from_bytes(envelope.content).get_payload(decode=True)
        assert isinstance(body, bytes)
        self.taken.update({address: body.decode() for address in envelope.rcpt_tos})
        return "250 taken"

    def code(self, address: str) -> str:
        eventually(lambda: address in self.taken, "the letter has come", 30)
        found = re.search(r"\b\d{6}\b", self.taken.pop(address))
        assert found
        return found[0]


@dataclass
class Site:
    up: Process
    letters: Letters

    @property
    def home(self) -> str:
        return self.up["http"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    letters = Letters()
    mail = Controller(letters, hostname="127.0.0.1", port=free_port())
    mail.start()
    up = start_up(
        tmp_path_factory.mktemp("pages") / "data",
        OUTBOARD_ADMIN_PASSWORD=PASSWORD,
        OUTBOARD_GATEWAY_SMTP_HOST="127.0.0.1",
        OUTBOARD_GATEWAY_SMTP_PORT=str(mail.port),
        OUTBOARD_GATEWAY_SMTP_TLS="none",
        OUTBOARD_GATEWAY_SMTP_SENDER="outboard@example.org",
    )
    try:
        yield Site(up, letters)
    finally:
        below = descendants(up.process.pid)
        code = up.stop()
        mail.stop()
    assert code == 0, up.log.read_text()
    assert not wait_until_gone(below), "processes left over"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(shutil.which("chromium") or "") as made:
        yield made


def sign_in(on: Watched, name: str = "admin", password: str = PASSWORD) -> None:
    page = on.go("/ui/sign-in")
    page.fill("#field-login", name)
    page.fill("#field-password", password)
    page.click("#sign-in button[type=submit]")
    page.wait_for_url(f"{on.home}/ui")


@pytest.mark.parametrize(
    ("language", "colours", "viewport"),
    [("en", "light", WIDE), ("en", "dark", NARROW), ("zh", "light", NARROW), ("zh", "dark", WIDE)],
    ids=["en light wide", "en dark narrow", "zh light narrow", "zh dark wide"],
)
def test_every_page(site: Site, browser: Browser, language: str, colours: str, viewport: ViewportSize) -> None:
    """No violation of WCAG AA, none of the policy, nothing from elsewhere, nothing that is wider than the window."""
    locale = {"en": "en-GB", "zh": "zh-CN"}[language]
    with watched(browser, site.home, viewport=viewport, color_scheme=colours, locale=locale) as on:
        found: dict[str, list[str]] = {}
        for number, path in enumerate((*ANYONES, *MINE)):
            if number == len(ANYONES):
                sign_in(on)
            page = on.go(path)
            assert page.get_attribute("html", "data-bs-theme") == colours
            assert (page.get_attribute("html", "lang") or "").startswith(language)
            problems = [*on.axe(), *(["too wide"] if on.too_wide() > 0 else [])]
            on.wrong = [each for each in on.wrong if not (path == "/ui/nowhere" and "404" in each)]
            if problems or on.wrong:
                found[path] = [*problems, *on.wrong]
                on.wrong = []
        assert not found, "\n".join(f"{path}: {what}" for path, wrong in found.items() for what in wrong)


@pytest.mark.parametrize(("language", "locale", "words"), [("en", "en-GB", "Welcome, ann"), ("zh", "zh-CN", "欢迎，bob")])
def test_a_new_person(site: Site, browser: Browser, language: str, locale: str, words: str) -> None:
    """Registers with a code from a letter, signs in, resets the password with another one, and signs out; with the keyboard alone."""
    name = words.split()[-1] if language == "en" else "bob"
    address = f"{name}@example.org"
    with watched(browser, site.home, locale=locale) as on:
        page = on.go("/ui/register")
        page.focus("#field-username")
        for text in (name, address, PASSWORD, PASSWORD):
            page.keyboard.type(text)
            page.keyboard.press("Tab")
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
        expect(page.locator("#notices .alert")).to_be_visible()
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
        on.context.clear_cookies()
        expect(on.page.get_by_text("You are not signed in any more")).to_be_visible(timeout=10_000)
        expect(on.page.locator("h1")).to_have_text("Welcome, admin")


def test_every_link_leads_somewhere(site: Site, browser: Browser) -> None:
    with watched(browser, site.home) as on:
        sign_in(on)
        seen, waiting = set[str](), [*ANYONES[:-1], *MINE]
        while waiting:
            path = waiting.pop()
            if path in seen:
                continue
            seen.add(path)
            answer = on.context.request.get(on.home + path)
            assert answer.status == 200, path
            if "html" in answer.headers.get("content-type", ""):
                waiting += [link for link in re.findall(r'href="(/[^"#]*)', answer.text()) if not link.startswith("/ui/static/")]
        assert {"/docs", "/openapi.json"} <= seen
