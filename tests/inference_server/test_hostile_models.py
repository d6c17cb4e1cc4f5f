"""Every hostile file is refused with a reason; nothing of it stays, nothing of it ran, the memory that it took is bounded."""

import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from idl.codes import Code, ServingError
from inference_server.executors.memory_limit import MemoryLimits
from inference_server.validation.validations import ValidationLimits, Validations
from tests.hostile_models import CANARY, TOO_SLOW, Hostile, everything, thought_of
from tests.inference_server.test_validation import parts
from tests.needs import has_box, need_box

MEMORY = 256 * 2**20
TIMEOUT_S = 4.0
ALL = list(thought_of())
"""What chance makes besides is sent over HTTP: `tests/e2e/test_hostile_uploads.py`."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trials")


@dataclass
class Outcomes:
    """What became of all of them, two at a time; `left`: files and processes afterwards, `grown`: KiB that the server's process took."""

    errors: dict[str, Exception | None]
    left: list[str]
    grown: int


@pytest.fixture(scope="module")
def outcomes(root: Path) -> Outcomes:
    limits = MemoryLimits("watch")
    host = Validations(root, limits, ValidationLimits(2, 64 * 2**20, TIMEOUT_S, MEMORY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def error(hostile: Hostile) -> Exception | None:
        try:
            host.validate(parts(*hostile.files), time.monotonic() + 60, lambda: True)
        except Exception as raised:  # noqa: BLE001  the test says which it has to be
            return raised
        return None

    tried = [each for each in ALL if not each.code or has_box()]
    with ThreadPoolExecutor(2) as pool:
        errors = dict(zip((each.name for each in tried), pool.map(error, tried), strict=True))
    for each in tried:
        if TOO_SLOW in str(errors[each.name]) and each.says not in str(errors[each.name]):
            errors[each.name] = error(each)  # alone
    until = time.monotonic() + 10
    while processes(root) and time.monotonic() < until:
        time.sleep(0.05)  # killed, and on its way out
    left = [str(path) for path in root.rglob("*")] + [f"process {pid}" for pid in processes(root)]
    host.close()
    limits.close()
    return Outcomes(errors, left, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def processes(root: Path) -> list[str]:
    """What runs for a validation below `root`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(root) in command:
                found.append(entry.name)
    return found


def test_there_are_enough_of_them_and_always_the_same() -> None:
    every = list(everything())
    assert len(ALL) >= 80 and len(every) >= 200 and len({each.name for each in every}) == len(every)
    assert [each.files for each in everything()] == [each.files for each in every] and every[: len(ALL)] == ALL


@pytest.mark.parametrize("hostile", ALL, ids=lambda each: each.name)
def test_it_is_refused_with_a_reason(outcomes: Outcomes, root: Path, hostile: Hostile) -> None:
    if hostile.name not in outcomes.errors:
        need_box()
    error = outcomes.errors[hostile.name]
    assert isinstance(error, ServingError) and error.code is Code.INVALID_MODEL, error
    assert error.message and hostile.says in error.message, error
    assert str(root) not in error.message and "Traceback" not in error.message and len(error.message) < 1000


def test_nothing_of_them_stays_and_nothing_of_them_ran(outcomes: Outcomes) -> None:
    assert outcomes.left == [] and not Path(CANARY).exists()
    assert outcomes.grown < 150_000, "KiB: theirs were hundreds of gigabytes"
