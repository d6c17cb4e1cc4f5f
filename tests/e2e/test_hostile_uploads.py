"""Every hostile file over HTTP, through nginx and uWSGI: refused with a reason, nothing of it stays, nothing of it runs, memory is bounded."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_models_http import PASSWORD, Client, kept
from tests.hostile_models import CANARY, TOO_SLOW, Hostile, everything
from tests.needs import has_box, needs
from tests.processes import Process, descendants, start_up, wait_until_gone

pytestmark = needs("nginx")
_LIMITS = {"OUTBOARD_SERVER_VALIDATION_TIMEOUT_S": "4", "OUTBOARD_SERVER_VALIDATION_MEMORY_BYTES": str(256 << 20)}
_GROWN_KB = 200_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "data"


@pytest.fixture(scope="module")
def up(data: Path) -> Iterator[Process]:
    made = start_up(data, "--no-demo", **_LIMITS)
    yield made
    below = descendants(made.process.pid)
    assert made.stop() == 0, made.log.read_text()
    assert not wait_until_gone(below), "processes left over"


@pytest.fixture(scope="module")
def ann(up: Process) -> Client:
    made = Client(up["http"])
    assert made.json("POST", "/v1/users", {"username": "ann", "password": PASSWORD})[0] == 201
    made.token = made.json("POST", "/v1/tokens", {"username": "ann", "password": PASSWORD})[1]["access_token"]
    return made


def sent(ann: Client, hostile: Hostile) -> tuple[int, Any]:
    """The first of the files is the model's for the host, whatever it is; tried again where the host was busy."""
    first, *others = hostile.files
    while True:
        status, refused = ann.send("/v1/models", name="hostile", model=first, **({"files": others[0]} if others else {}))
        if status != 429:
            return status, refused
        time.sleep(0.05)


def test_hostile_uploads_are_refused_and_leave_nothing(up: Process, ann: Client, data: Path) -> None:
    files = [each for each in everything() if not each.code or has_box()]
    assert len(files) >= 180
    before, resident = kept(data), _resident(up)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda each: sent(ann, each), files))
    for place, (hostile, (_, refused)) in enumerate(zip(files, answers, strict=True)):
        if TOO_SLOW in (said := refused.get("detail", "")) and hostile.says not in said:
            answers[place] = sent(ann, hostile)  # alone
    for hostile, (status, refused) in zip(files, answers, strict=True):
        # a name that no file may have is the sender's mistake, and said before anything is tried
        assert status == 422 or (status == 400 and refused["code"] == "invalid_input"), (hostile.name, status, refused)
        assert refused["detail"] and not re.search(r"Traceback|/tmp/|/root/|site-packages", refused["detail"]), (hostile.name, refused)
        assert status != 422 or hostile.says in refused["detail"], (hostile.name, refused)
    assert kept(data) == before and not Path(CANARY).exists()
    assert not [path for path in (data / "user-models").rglob("*") if path.is_file()], "nor on the model host"
    assert ann.json("GET", "/v1/models?owner=ann", None)[1]["items"] == []
    assert ann.ask("GET", "/readyz")[0] == 200
    assert _resident(up) - resident < _GROWN_KB, "theirs were hundreds of gigabytes"


def _resident(up: Process) -> int:
    """KiB of all processes of it."""
    total = 0
    for pid in descendants(up.process.pid):
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon"))
    return total
