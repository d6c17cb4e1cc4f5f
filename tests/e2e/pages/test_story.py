"""What a new person does in a browser, from the first page to a model that answers others: in both languages, by what the pages show."""

import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.pages.conftest import Site
from tests.e2e.pages.people import PASSWORD
from tests.e2e.pages.showcase import a_classifier
from tests.pages.browser import Watched, watched
from tests.processes import ROOT

COFFEE = ROOT / "docs" / "coffee.jpg"
SLOW_MS = 60_000
"""What a model host that tries a model may take where other tests run."""


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_classifier(tmp_path_factory.mktemp("story"))


@pytest.mark.parametrize(("name", "locale", "told"), [("xenia", "en-GB", "Register"), ("wei", "zh-CN", "注册")])
def test_from_the_first_page_to_an_answer(
    site: Site, browser: Browser, classifier: Path, tmp_path: Path, name: str, locale: str, told: str
) -> None:
    with watched(browser, site.home, locale=locale) as on:
        on.page.on("dialog", lambda dialog: dialog.accept())
        on.page.set_default_timeout(20_000)
        expect(on.go("/ui/register").locator("h1")).to_contain_text(told)
        registers(on, site, name)
        uploads(on, classifier)
        tries_it(on, name)
        deploys(on)
        key = calls_it(on, name, tmp_path)
        assert key.startswith("ob_") or len(key) > 20
        runs_a_batch(on, name, tmp_path)
        pauses_and_deletes(on, name)
        deletes_and_restores(on, name)
        assert on.wrong == []


def registers(on: Watched, site: Site, name: str) -> None:
    page, address = on.page, f"{name}@example.org"
    for field, text in (("username", name), ("email", address), ("password", PASSWORD), ("again", PASSWORD)):
        page.fill(f"#field-{field}", text)
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/verify?*")
    page.fill("#field-code", site.letters.code(address))
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/sign-in?*")
    page.fill("#field-password", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{on.home}/ui")


def uploads(on: Watched, classifier: Path) -> None:
    """From the home page to the signature of what was tried."""
    page = on.page
    page.click("nav a[href='/ui/models']")
    page.click("a[data-open=upload]")
    page.set_input_files("#upload-files", classifier)
    page.fill("#upload-form #field-name", "photos")
    page.click("[data-send]")
    expect(page.locator("[data-result]")).to_contain_text("[batch, 3, 224, 224]", timeout=SLOW_MS)


def tries_it(on: Watched, name: str) -> None:
    page = on.go(f"/ui/models/{name}/photos/test")
    page.set_input_files("form[data-try] input[type=file]", COFFEE)
    page.click("form[data-try] button[type=submit]")
    expect(page.locator("[data-answer]")).to_contain_text("espresso", timeout=SLOW_MS)


def deploys(on: Watched) -> None:
    page = on.go("/ui/deployments/new?model=photos")
    page.fill("#deployment-form #field-name", "photos")
    page.click("#deployment-form button[type=submit].btn-primary")
    page.wait_for_url("**/ui/deployments/*photos*")
    expect(page.locator("#deployment-now [data-state=running]")).to_be_visible(timeout=SLOW_MS)


def calls_it(on: Watched, name: str, folder: Path) -> str:
    """Makes a key, runs the lines that the page shows as they stand, and sees the call in the charts' figures."""
    page = on.go(f"/ui/deployments/{name}.photos/use")
    page.click("form[action$='/use/key'] button")
    lines = [page.locator(each).inner_text() for each in ("#snippet-token", "#snippet-curl")]
    (folder / "picture.jpg").write_bytes(COFFEE.read_bytes())
    said = subprocess.run(["bash", "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0 and "espresso" in said.stdout, (lines, said)
    key = page.locator("#new-key").inner_text()
    page = on.go(f"/ui/deployments/{name}.photos")
    expect(page.locator("[data-figure=requests]")).not_to_have_text("0")
    expect(page.locator("[data-chart=rate] canvas")).to_be_visible()
    before = int(page.locator("[data-figure=requests]").inner_text())
    assert subprocess.run(["bash", "-c", "\n".join(lines)], cwd=folder, capture_output=True, timeout=60).returncode == 0
    expect(page.locator("[data-figure=requests]")).to_have_text(str(before + 1))
    return key


def runs_a_batch(on: Watched, name: str, folder: Path) -> None:
    with ZipFile(folder / "pictures.zip", "w") as archive:
        for each in ("one.jpg", "two.jpg"):
            archive.write(COFFEE, each)
        archive.writestr("three.jpg", b"no picture")
    page = on.go(f"/ui/batches/new?deployment={name}.photos")
    page.set_input_files("#field-file", folder / "pictures.zip")
    page.click("#new-batch button[type=submit]")
    page.wait_for_url("**/ui/batches/*")
    expect(page.locator("#batch-now [data-state=succeeded]").first).to_be_visible(timeout=SLOW_MS)
    expect(page.locator("#failed")).to_contain_text("three.jpg")
    expect(page.locator("#batch-now")).to_contain_text("espresso")
    with page.expect_download() as downloaded:
        page.click("#do-download")
    assert downloaded.value.path().read_text(encoding="utf-8").count("espresso") == 2


def pauses_and_deletes(on: Watched, name: str) -> None:
    page = on.go(f"/ui/deployments/{name}.photos")
    page.click("#deployment-now form[action$='/turn'] button")
    expect(page.locator("#deployment-now [data-state=paused]")).to_be_visible(timeout=SLOW_MS)
    page = on.go("/ui/deployments")
    page.click("[data-delete]")
    page.click("#delete button[type=submit]")
    expect(page.locator("[data-delete]")).to_have_count(0, timeout=SLOW_MS)


def deletes_and_restores(on: Watched, name: str) -> None:
    page = on.go(f"/ui/models/{name}/photos/about")
    page.click("form[action$='/delete'] button")
    page.click("form[action$='/restore'] button")
    page.wait_for_load_state()
    assert on.go(f"/ui/models/{name}/photos").locator("h1").inner_text() == "photos"
