"""Models in a browser: taken in by dropping a file, refused, sent over a connection that breaks, edited, deleted and brought back."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.e2e.pages.conftest import Site
from tests.e2e.pages.people import sign_in
from tests.onnx_models import times
from tests.pages.browser import Watched, watched

DOUBLE_CLICK_MS = 650
"""A click sooner than that after another is taken for its second half."""
PICKLE = b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtins\x94."


@pytest.fixture
def on(site: Site, browser: Browser) -> Iterator[Watched]:
    with watched(browser, site.home, locale="en-GB") as made:
        sign_in(made, site.owner.name)
        yield made
        assert not [
            each
            for each in made.wrong
            if "ERR_" not in each and "htmx:" not in each and not any(f" {code} " in each for code in (400, 401, 409, 422))
        ]


def drop(page: Page, name: str, content: bytes) -> None:
    """As somebody does who lets a file go over the dialog."""
    page.evaluate(
        """([name, text]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], name));
            document.querySelector("#upload .drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        [name, base64.b64encode(content).decode()],
    )


def test_a_file_becomes_a_model_and_the_model_is_deleted_and_restored(on: Watched, tmp_path: Path) -> None:
    page = on.go("/ui/models")
    page.click("header >> text=Upload a model")
    page.click("#upload [data-send]")
    expect(page.locator("#error-upload-files")).to_have_text("Choose a file first.")
    drop(page, "three times.onnx", times(tmp_path / "m.onnx", 3).read_bytes())
    expect(page.locator("#field-name")).to_have_value("three-times")
    page.fill("#field-name", "m")
    pieces: list[str] = []
    page.on("request", lambda asked: pieces.append(asked.url) if asked.method == "PATCH" else None)
    page.fill("#field-tags", "a, b")
    page.click("#upload [data-send]")
    expect(page.locator("#error-name")).to_have_text("there is a model 'm'", timeout=15_000)
    expect(page.locator("#field-name")).to_be_focused()
    page.fill("#field-name", "three")
    page.keyboard.press("Enter")
    expect(page.locator("[data-result]")).to_contain_text("three, version 1, was tried and is there.", timeout=30_000)
    assert len(pieces) == 1, "the file is not sent again for another name"
    expect(page.locator("[data-result]")).to_contain_text("[batch, 2]")
    assert not on.axe()
    page.click("#upload .dialog-head button")
    row = page.locator("tr[data-model='owner.three']")
    expect(row).to_contain_text("ONNX")
    page.once("dialog", lambda asked: asked.accept())
    row.get_by_role("button", name="Delete three").click()
    expect(page.get_by_text("three is deleted.")).to_be_visible()
    expect(row).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(row).to_be_visible()
    page.goto(f"{on.home}/ui/models?show=public")
    expect(page.get_by_role("link", name="efficientnet-lite0")).to_have_attribute("href", "/ui/models/-/efficientnet-lite0")
    page.goto(f"{on.home}/ui/models")
    page.fill("#search", "thr")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert "q=thr" in page.url


def test_what_is_refused_says_what_to_do(on: Watched) -> None:
    page = on.go("/ui/models/new")
    drop(page, "model.pkl", PICKLE)
    page.click("#upload [data-send]")
    expect(page.locator("#convert-command")).to_have_text("outboard models convert model.pkl", timeout=30_000)
    expect(page.locator("[data-refusal]")).to_contain_text("is a pickle")
    assert not on.axe()
    page.click(".files button")
    drop(page, "model.onnx", b"no model at all")
    expect(page.locator("#convert-command")).to_have_count(0)


def test_an_upload_goes_on_after_the_connection_broke_and_after_a_pause(on: Watched, site: Site, tmp_path: Path) -> None:
    """And a second click makes no second version."""
    page = on.go("/ui/models/owner/m/versions/new")
    pieces: list[Route] = []

    def trouble(route: Route) -> None:
        if route.request.method != "PATCH":
            route.continue_()
            return
        pieces.append(route)
        if len(pieces) == 1:
            route.abort("connectionreset")
        elif len(pieces) > 2:
            route.continue_()  # the second is on its way until it is paused

    page.route("**/v1/uploads/*", trouble)
    before = len(site.owner("GET", "/v1/models/m/versions")["items"])
    drop(page, "4.onnx", times(tmp_path / "4.onnx", 4).read_bytes())
    page.dblclick("#upload [data-send]")
    expect(page.locator("#upload [data-trouble]")).to_contain_text("goes on by itself", timeout=20_000)
    expect(page.locator("button[data-pause]")).to_have_text("Pause")
    page.click("button[data-pause]")
    expect(page.locator("[data-said]")).to_have_text("Paused")
    page.click("button[data-pause]")
    expect(page.locator("[data-result]")).to_contain_text("was tried and is there", timeout=30_000)
    assert len(pieces) == 3
    assert len(site.owner("GET", "/v1/models/m/versions")["items"]) == before + 1


def test_an_upload_goes_on_after_another_visit(on: Watched) -> None:
    page = on.go("/ui/models/new")
    big = """() => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(5e6)], "big.zip", { lastModified: 1e12 }));
        document.querySelector("#upload .drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }"""
    second = str(4 << 20)
    page.route(
        "**/v1/uploads/*", lambda route: route.abort() if route.request.headers.get("upload-offset") == second else route.continue_()
    )
    page.evaluate(big)
    page.click("#upload [data-send]")
    expect(page.locator("#upload [data-trouble]")).to_contain_text("goes on by itself", timeout=20_000)
    page.on("dialog", lambda asked: asked.accept())
    page.reload()
    page.evaluate(big)
    with page.expect_request(lambda asked: asked.method == "PATCH") as first:
        page.click("#upload [data-send]")
    assert first.value.headers["upload-offset"] == second
    with page.expect_request(lambda asked: asked.method == "DELETE"):
        page.click("button[data-cancel]")
    expect(page.locator("#upload .drop")).to_be_visible()


def test_a_card_is_written_looked_at_and_saved(on: Watched) -> None:
    page = on.go("/ui/models/owner/m/about")
    page.get_by_role("link", name="Edit").click()
    page.fill(
        "#field-card",
        "# What\n\n<img src=x onerror=alert(1)> [a](javascript:alert(1)) ![a *cat*](https://e.example/c.png)\n\n| a |\n|--:|\n| 1 |",
    )
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#preview h3")).to_have_text("What")
    page.fill("#field-name", "a b")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#error-name")).to_contain_text("must have 1 to 64 letters")
    page.fill("#field-name", "m")
    kept = on.context.cookies()
    on.context.clear_cookies()
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#edit-said")).to_contain_text("You are not signed in any more")
    on.context.add_cookies(kept)  # as signing in in another tab does
    page.route("**/edit", lambda route: route.abort(), times=1)
    page.wait_for_timeout(DOUBLE_CLICK_MS)
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#edit #offline")).to_be_visible()
    page.wait_for_timeout(DOUBLE_CLICK_MS)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("It is saved.")).to_be_visible()
    card = page.locator(".model-card").first
    expect(card).to_contain_text("<img src=x onerror=alert(1)>")
    expect(card.locator(".card-picture")).to_have_text("a cat")
    assert card.locator("img, a[href]").count() == 0
    assert not on.axe()
