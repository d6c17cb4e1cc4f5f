"""Every hostile file is refused with a reason; nothing of it stays, nothing of it ran, the memory that it took is bounded."""

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from idl.codes import Code, ServingError
from inference_server.executors import sandbox
from inference_server.executors.memory_limit import MemoryLimits
from inference_server.validation.validations import ValidationLimits, Validations
from tests.eventually import eventually
from tests.hostile_models import CANARY, Hostile, everything
from tests.inference_server.test_validation import parts

MEMORY = 256 * 2**20
TIMEOUT_S = 2.0
ALL = list(everything())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trials")


@pytest.fixture(scope="module")
def host(root: Path) -> Iterator[Validations]:
    limits = MemoryLimits("watch")
    made = Validations(root, limits, ValidationLimits(2, 64 * 2**20, TIMEOUT_S, MEMORY))
    made._fresh._keeper.submit(int).result()  # its thread is there from now on
    yield made
    made.close()
    limits.close()


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
    assert len(ALL) >= 80 and len({each.name for each in ALL}) == len(ALL)
    assert [each.files for each in everything()] == [each.files for each in ALL]


@pytest.mark.parametrize("hostile", ALL, ids=lambda each: each.name)
def test_it_is_refused_and_nothing_of_it_stays(host: Validations, root: Path, hostile: Hostile) -> None:
    if hostile.code and sandbox.unusable():
        pytest.skip("no sandbox")
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ServingError) as caught:
        host.validate(parts(*hostile.files), time.monotonic() + 60, lambda: True)
    error = caught.value
    assert (error.code, hostile.says in error.message) == (Code.INVALID_MODEL, True), error
    assert error.message and str(root) not in error.message and "Traceback" not in error.message and len(error.message) < 1000
    assert list(root.iterdir()) == [] and not Path(CANARY).exists()
    eventually(lambda: not processes(root), "its process has gone")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB that it took in the server"
    assert time.monotonic() - begun < 20 + TIMEOUT_S
