"""Tasks and batches as somebody uses them in a browser: live states, a file that is sent, rows that failed, inputs and results."""

import base64
import time
from pathlib import Path

from playwright.sync_api import Browser, FilePayload, expect
from skimage import data as pictures

from tests.e2e.pages.conftest import Site
from tests.e2e.pages.people import sign_in
from tests.e2e.test_deployments import upload_rows
from tests.gateway.deployed_host import within
from tests.pages.browser import watched

LIVE_S = 2.5
"""A change is seen within two seconds; the rest is for a busy machine."""


def test_a_batch_from_its_file_to_its_answers(site: Site, browser: Browser) -> None:
    """With columns that do not fit first, then the right ones, and one row that fails."""
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, site.owner.name)
        page = on.go("/ui/batches/new")
        page.select_option("#field-target", "deployment:owner.d")
        expect(page.locator("#expected td code").first).to_have_text("x")
        wrong = FilePayload(name="rows.csv", mimeType="text/csv", buffer=b"a,b,c\n1,2,3\n")
        page.set_input_files("#field-file", wrong)
        expect(page.get_by_text("The model takes 2 numbers in a row, the file has 3 columns.")).to_be_visible()
        rows = "".join(f"{number},{number * number}\n" for number in range(60))
        page.set_input_files(
            "#field-file", {"name": "good <b>rows</b>.csv", "mimeType": "text/csv", "buffer": f"a,b\n{rows}x,1\n".encode()}
        )
        expect(page.get_by_text("The columns fit.")).to_be_visible()
        assert page.locator("#preview tbody tr").count() == 5
        page.get_by_role("button", name="Start the batch").dblclick()
        page.wait_for_url("**/ui/batches/0*")
        expect(page.locator("h1")).to_have_text("good <b>rows</b>.csv")
        expect(page.locator("#batch-now [aria-live] [data-state=succeeded]")).to_be_visible(timeout=20_000)
        expect(page.locator("#failures-0 tbody tr")).to_have_count(1)
        assert "'x'" in page.locator("#failures-0 tbody").inner_text()
        expect(page.locator(".histogram rect")).to_have_count(20)
        with page.expect_download() as saved:
            page.click("#do-failed")
        assert saved.value.path().read_bytes().startswith(b"row,error,a,b\r\n61,")
        assert len(site.owner("GET", "/v1/batches?limit=200")["items"]) == 2, "a double click sends one"
        assert not on.wrong


def test_states_change_while_one_looks(site: Site, browser: Browser) -> None:
    """In the list, with what the reader has chosen and where the focus is kept, and on the page of a batch; which is paused, resumed and cancelled there."""
    rows = "a,b\n" + "1,2\n" * 900_000
    batch = site.owner("POST", "/v1/batches", upload_rows(rows, deployment="d"), 202)["id"]
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, site.owner.name)
        page = on.go("/ui/batches")
        state = page.locator(f"#task-{batch} [data-state]")
        page.check(f"#pick-{batch}")
        page.focus(f"#link-{batch}")
        took = []
        for verb, wanted in (("pause", "paused"), ("resume", "running"), ("pause", "paused")):
            site.owner("POST", f"/v1/batches/{batch}/{verb}")
            within(20, lambda wanted=wanted: site.owner("GET", f"/v1/batches/{batch}")["state"] == wanted)
            begun = time.monotonic()
            expect(state).to_have_attribute("data-state", wanted)
            took.append(time.monotonic() - begun)
        assert sorted(took)[1] < LIVE_S, took
        expect(page.locator(f"#pick-{batch}")).to_be_checked()
        expect(page.locator(f"#link-{batch}")).to_be_focused()
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/ui/batches/{batch}")
        here = page.locator("#batch-now [aria-live] [data-state]").first
        expect(here).to_have_attribute("data-state", "paused")
        page.click("#do-resume")
        expect(page.locator("#do-pause")).to_be_visible()
        done = page.locator(".counts dd").first
        before = done.inner_text()
        expect(done).not_to_have_text(before, timeout=20_000)
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("#do-cancel")
        expect(here).to_have_attribute("data-state", "cancelled", timeout=20_000)
        expect(page.locator("#do-retry")).to_be_visible()
        assert not on.wrong


def test_what_went_in_and_what_came_out(site: Site, browser: Browser) -> None:
    picture = base64.b64encode((Path(pictures.__file__).parent / "coffee.png").read_bytes()).decode()
    body = {"inputs": {"image": {"b64": picture}}}
    _, seen = site.owner.asked("POST", "/v1/models/efficientnet-lite0/predictions", body, Prefer="respond-async")
    wrong = site.owner.asked("POST", "/v1/deployments/d/predictions", {"inputs": {"<b>": [[1]]}}, Prefer="respond-async")[1]
    with watched(browser, site.home, locale="en-GB") as on:
        sign_in(on, site.owner.name)
        page = on.go(f"/ui/tasks/{site.task}")
        expect(page.locator("#result td.figures")).to_have_text(["6", "0"])
        expect(page.locator("#input td.figures")).to_have_text(["3", "0"])
        page.click("#result button[data-key=json]")
        expect(page.locator("#result pre")).to_contain_text('"y": [')
        on.go(f"/ui/tasks/{seen['id']}")
        expect(page.locator("#result dt").first).to_have_text("espresso", timeout=20_000)
        image = page.locator("#input img")
        expect(image).to_have_attribute("alt", "Picture of image")
        assert (image.get_attribute("src") or "").startswith("blob:") and image.evaluate("each => each.naturalWidth") > 100
        assert on.axe() == []
        on.go("/ui/tasks?state=failed")
        page.locator(f"#link-{wrong['id']}").click()
        expect(page.locator("#task-now .alert")).to_contain_text("has no input '<b>'")
        page.click("#do-retry")
        page.wait_for_url(lambda where: wrong["id"] not in where)
        expect(page.get_by_text("Repeats")).to_be_visible()
        assert not on.wrong


def test_a_filter_and_several_at_once(site: Site, browser: Browser) -> None:
    with watched(browser, site.home, locale="en-GB", timezone_id="Asia/Shanghai") as on:
        sign_in(on, site.owner.name)
        page = on.go("/ui/tasks")
        page.select_option("#filter-kind", "batch")
        page.wait_for_url("**/ui/tasks?kind=batch")
        expect(page.locator("tbody tr .badge").first).to_have_text("Batch")
        expect(page.locator("tbody tr").filter(has_not_text="Batch")).to_have_count(0)
        page.fill("#filter-since", "2099-01-01")
        expect(page.get_by_text("No task like that")).to_be_visible()
        assert "zone=-480" in page.url
        page.get_by_role("link", name="Clear").click()
        expect(page.get_by_role("button", name="Delete chosen")).to_be_disabled()
        row = page.locator("tbody tr").filter(has_text="failed").first
        chosen = row.get_attribute("id") or ""
        row.locator("input").check()
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Delete chosen").click()
        expect(page.get_by_text("Deleted: 1.")).to_be_visible()
        expect(page.locator(f"#{chosen}")).to_have_count(0)
        assert not on.wrong
