"""A model's page as its owner uses it: the form and the JSON beside it, the graph, and snippets that are really run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.pages.conftest import Site
from tests.e2e.pages.people import sign_in
from tests.pages.browser import watched

COFFEE = Path(__file__).resolve().parents[3] / "docs" / "coffee.jpg"
_BODY = '{"inputs": {"x": %s}}'


def json_of(page: Page) -> str:
    return page.input_value("#try-json").replace("\n", "").replace("  ", "")


def test_the_form_and_the_json_are_one(site: Site, browser: Browser) -> None:
    """Typed, pasted and written as JSON; an error stands beside its input, and what was typed is kept over a new page."""
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, "owner")
        page = on.go("/ui/models/owner/m/test?version=1")
        cells = page.locator(".try-cells input")
        cells.nth(0).fill("3")
        cells.nth(1).fill("-1.5")
        assert '"x": [[3, -1.5]]' in json_of(page)
        page.keyboard.press("Control+Enter")
        expect(page.locator(".try-table td").nth(1)).to_have_text("-3", timeout=20_000)
        expect(page.locator(".try-times dt")).to_have_text(["Queue", "Model", "On the server", "There and back"])
        cells.nth(0).focus()
        page.evaluate("""() => { const data = new DataTransfer(); data.setData("text", "a\\tb\\n1\\t2\\n3\\t4");
            document.activeElement.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })); }""")
        assert "[1, 2],[3, 4]" in json_of(page), "a first row of names is left out"
        page.fill("#try-json", _BODY % "[[7, 8], [9, 10], [11, 12]]")
        expect(cells).to_have_count(6)
        expect(cells.nth(5)).to_have_value("12")
        page.reload()
        expect(cells.nth(5)).to_have_value("12")
        cells.nth(5).fill("twelve")
        page.click("form.try button[type=submit]")
        expect(page.locator(".try-field .invalid-feedback")).to_have_text("Every cell needs a number.")
        page.fill("#try-json", _BODY % "[[1, 2, 3]]")
        expect(page.locator(".try-field .invalid-feedback")).to_have_text("This value is sent as it stands in the JSON.")
        page.click("form.try button[type=submit]")
        expect(page.locator(".try-field .invalid-feedback")).to_contain_text("has shape [1, 3]")
        page.fill("#try-json", "{")
        expect(page.locator("[data-json-error]")).to_contain_text("This is not JSON.")
        assert [each for each in on.wrong if "400" not in each] == []


def test_what_the_server_refuses_is_said_in_the_pages_language(site: Site, browser: Browser) -> None:
    with watched(browser, site.home, locale="zh-CN") as on:
        sign_in(on, "owner")
        page = on.go("/ui/models/owner/m/test?version=1")
        page.fill("#try-json", _BODY % "[[1, 2, 3]]")
        page.click("form.try button[type=submit]")
        expect(page.locator(".try-field .invalid-feedback")).to_contain_text("的形状为 [1, 3]，模型需要")
        page = on.go("/ui/models/-/efficientnet-lite0/test")
        page.set_input_files(
            ".try-field input[type=file]", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": COFFEE.read_bytes()[:999]}
        )
        page.click("form.try button[type=submit]")
        expect(page.locator("[data-problem]")).to_contain_text("文件不完整或已损坏")


def test_a_picture_and_a_session_that_has_ended(site: Site, browser: Browser) -> None:
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, "owner")
        page = on.go("/ui/models/-/efficientnet-lite0/test")
        page.click("form.try button[type=submit]")
        expect(page.locator(".try-field .invalid-feedback")).to_have_text("Choose a picture.")
        page.set_input_files(".try-field input[type=file]", COFFEE)
        assert '{"b64": "@coffee.jpg"}' in json_of(page)
        page.fill("#try-top-k", "3")
        page.click("form.try button[type=submit]")
        expect(page.locator("[data-answer] .bars dt")).to_have_count(3, timeout=20_000)
        expect(page.locator("[data-answer] .bars dt").first).to_have_text("espresso")
        assert on.axe() == [] and on.wrong == []
        page = on.go("/ui/models/owner/m/test")
        on.context.clear_cookies()
        page.click("form.try button[type=submit]")
        expect(page.locator("[data-problem]")).to_contain_text("You are not signed in any more")


def test_the_graph(site: Site, browser: Browser) -> None:
    """Drawn only when it is asked for; moved with the keyboard; each operator described, from the drawing and from the list."""
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, "owner")
        asked: list[str] = []
        on.page.on("request", lambda request: asked.append(request.url))
        page = on.go("/ui/models/owner/m")
        assert not [url for url in asked if "graph_" in url or "/graph?" in url]
        page.click("[data-graph-open]")
        expect(page.locator(".graph-node text").first).to_have_text("Mul")
        expect(page.locator("[data-graph-range]")).to_have_text("Operators 1 to 1 of 1")
        moved = page.locator(".graph-stage svg > g")
        before = moved.get_attribute("transform")
        page.locator(".graph-stage").press("+")
        page.locator(".graph-stage").press("ArrowLeft")
        assert moved.get_attribute("transform") != before
        page.fill("#graph-find", "mul")
        page.keyboard.press("Enter")
        expect(page.locator("[data-graph-details]")).to_contain_text("factor")
        page.click(".graph-node.graph-end >> nth=0")
        expect(page.locator("[data-graph-details]")).to_contain_text("input or output of the model")
        page.click("[data-graph-inside] details summary")
        page.click("[data-graph-rows] button")
        expect(page.locator("[data-graph-details] h3")).to_have_text("Mul")
        assert on.axe() == [] and on.wrong == []


@pytest.mark.parametrize(
    ("path", "token", "wanted"),
    [
        ("/ui/models/owner/m/use", True, r"1(\.0?)?[, ]+2(\.0?)?\]"),
        ("/ui/models/-/efficientnet-lite0/use", False, "espresso"),
        ("/ui/models/-/dialogue/use", False, "know"),
    ],
    ids=["a deployment", "a picture", "a dialogue"],
)
def test_every_snippet_runs(site: Site, browser: Browser, tmp_path: Path, path: str, token: bool, wanted: str) -> None:
    """As they stand on the page, in an empty folder with a picture and the interface's file."""
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, "owner")
        page = on.go(path)
        shown = {key: page.locator(f"#snippet-{key}").text_content() or "" for key in ("curl", "python", "javascript", "grpc", "thrift")}
        page.get_by_role("tab", name="Thrift").click()
        expect(page.locator("#panel-thrift")).to_be_visible()
        expect(page.locator("#panel-curl")).to_be_hidden()
        thrift = on.context.request.get(f"{site.home}/ui/idl/inference.thrift").body()
        assert on.axe() == [] and on.wrong == []
    (tmp_path / "inference.thrift").write_bytes(thrift)
    shutil.copy(COFFEE, tmp_path / "picture.jpg")
    environ = {**os.environ, "NO_PROXY": "*"} | ({"TOKEN": site.owner.headers["Authorization"].split()[1]} if token else {})
    running = {}
    for key, command in (
        ("curl", ["bash", "-c", shown["curl"]]),
        ("javascript", ["node", "--input-type=module", "-e", shown["javascript"]]),
    ):
        if key == "curl" or shutil.which("node"):
            running[key] = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=-1, stderr=-1, text=True)
    for key in ("python", "grpc", "thrift"):
        running[key] = subprocess.Popen([sys.executable, "-c", shown[key]], cwd=tmp_path, env=environ, stdout=-1, stderr=-1, text=True)
    for key, process in running.items():
        said, errors = process.communicate(timeout=60)
        assert process.returncode == 0, (key, shown[key], errors)
        assert re.search(wanted if key in ("curl", "python", "javascript") or token else "", said), (key, said)
