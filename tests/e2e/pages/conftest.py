"""One site for all tests of pages, with things to look at, a mail server, and a browser."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from playwright.sync_api import Browser

from tests.e2e.test_deployments import BOUNDARY, PASSWORD, Caller, upload, upload_rows
from tests.eventually import eventually
from tests.gateway.deployed_host import within
from tests.needs import has_box, needs, program
from tests.onnx_models import times
from tests.pages.browser import CHROMIUM, chromium
from tests.processes import Process, descendants, free_port, start_up, wait_until_gone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            for mark in (needs("nginx"), needs(CHROMIUM)):
                item.add_marker(mark)


AROUND = """def preprocess(inputs):
    return {"x": inputs["x"] * 1}
"""


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
    """A running site. `owner` has the model `m` with two versions, its deployment `d`, a task and a batch that are done; see `seed`."""

    up: Process
    letters: Letters
    owner: Caller
    task: str = ""
    batch: str = ""
    webhook: str = ""

    @property
    def home(self) -> str:
        return self.up["http"]


@contextmanager
def running(folder: Path) -> Iterator[Site]:
    """A site that is started and stopped here, with nothing on it but its owner's account."""
    letters = Letters()
    mail = Controller(letters, hostname="127.0.0.1", port=free_port())
    mail.start()
    up = start_up(
        folder / "data",
        OUTBOARD_ADMIN_PASSWORD=PASSWORD,
        OUTBOARD_GATEWAY_SMTP_HOST="127.0.0.1",
        OUTBOARD_GATEWAY_SMTP_PORT=str(mail.port),
        OUTBOARD_GATEWAY_SMTP_TLS="none",
        OUTBOARD_GATEWAY_SMTP_SENDER="outboard@example.org",
    )
    try:
        yield Site(up, letters, Caller(up, "owner"))
    finally:
        below = descendants(up.process.pid)
        code = up.stop()
        mail.stop()
    assert code == 0, up.log.read_text()
    assert not wait_until_gone(below), "processes left over"


def of_script(source: str) -> bytes:
    """A form with the file `script`."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="script"; filename="script.py"\r\n\r\n'
    return f"{head}{source}\r\n--{BOUNDARY}--\r\n".encode()


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("pages")
    with running(folder) as made:
        seed(made, folder)
        yield made


def seed(site: Site, folder: Path) -> None:
    """One of everything that a page shows."""
    owner = site.owner
    owner("POST", "/v1/models", upload(times(folder / "2.onnx", 2), name="m", description="twice", card="# Twice"), 201)
    owner("POST", "/v1/models/m/versions", upload(times(folder / "5.onnx", 5)), 201)
    owner("POST", "/v1/deployments", {"name": "d", "model": "m", "version": 1}, 201)
    assert owner("POST", "/v1/deployments/d/predictions", {"inputs": {"x": [[2, 0]]}})["outputs"] == {"y": [[4, 0]]}
    owner.asked("POST", "/v1/deployments/d/predictions", {"inputs": {"x": [["wrong", 0]]}})
    if has_box():
        for source in (AROUND, AROUND.replace("* 1", "* 2")):
            owner("POST", "/v1/scripts/d/versions" if source != AROUND else "/v1/scripts?name=d", of_script(source), 201)
    _, task = owner.asked("POST", "/v1/deployments/d/predictions", {"inputs": {"x": [[3, 0]]}}, Prefer="respond-async")
    site.task = task["id"]
    site.batch = owner("POST", "/v1/batches", upload_rows("a,b\n1,2\n3,x\n5,6\n", deployment="d"), 202)["id"]
    site.webhook = owner("POST", "/v1/webhooks", {"url": "https://example.com/hook", "events": ["task.expired"]}, 201)["id"]
    owner("POST", "/v1/teams", {"name": "crew"}, 201)
    for path in (f"/v1/tasks/{site.task}", f"/v1/batches/{site.batch}"):
        within(30, lambda path=path: owner("GET", path)["state"] in ("succeeded", "failed"))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium(program(CHROMIUM)) as made:
        yield made
