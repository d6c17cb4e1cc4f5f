"""Options of the whole suite, and the figures that the proofs measure."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling

from tests import stolen
from tests.alone import ALONE

FIGURES = pytest.StashKey[list[str]]()
AGAIN: list[str] = []
"""What is said of tests that were run again."""

Record = Callable[[str], None]

FIRST = ("e2e/", "proofs/", "test_docs.py", "gateway/test_uwsgi")
"""Below tests/: what takes long, so that it does not come last, when the others have nothing left to do."""


def pytest_addoption(parser: pytest.Parser) -> None:
    proofs = parser.getgroup("proofs")
    proofs.addoption("--long", action="store_true", help="the long form of tests/proofs: hours instead of minutes")
    proofs.addoption("--soak-s", type=float, default=600.0, metavar="S", help="with --long, how long the soak lasts (default 600 seconds)")
    parser.getgroup("interface").addoption(
        "--openapi-examples",
        type=int,
        default=4,
        metavar="N",
        help="requests of each operation that tests/e2e/test_openapi_http.py makes, half of them wrong ones (default 4)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        if item.path.relative_to(tests).as_posix().startswith(ALONE):
            item.add_marker("alone")
    items.sort(key=lambda item: not item.path.relative_to(tests).as_posix().startswith(FIRST))


TOGETHER = {
    "tests/e2e/pages: site": ("tests/e2e/pages/",),
    "tests/e2e: stack": (
        "tests/e2e/test_accounts_http.py",
        "tests/e2e/test_hostile.py",
        "tests/e2e/test_official_clients.py",
        "tests/e2e/test_tasks.py",
    ),
    "tests/gateway: host": (
        "tests/gateway/test_administration.py",
        "tests/gateway/test_api_keys.py",
        "tests/gateway/test_batch_runs.py",
        "tests/gateway/test_batches.py",
        "tests/gateway/test_hidden_reasons.py",
        "tests/gateway/test_hostile.py",
        "tests/gateway/test_hot_routes.py",
        "tests/gateway/test_predictions.py",
        "tests/gateway/test_task_trouble.py",
        "tests/gateway/test_task_views.py",
        "tests/gateway/test_task_waits.py",
        "tests/gateway/test_tasks.py",
        "tests/gateway/test_v2.py",
        "tests/gateway/test_v2_client.py",
        "tests/gateway/test_v2_models_rpc.py",
    ),
}
"""The fixture that takes long to start, and the files that share it: one process runs all of them, and starts it once."""


class _Together(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return next((group for group, files in TOGETHER.items() if file.startswith(files)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _Together(config, log)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # thousands of tests need not be walked through at every collection


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    stolen.run(item, nextitem)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    AGAIN.extend(stolen.notes(report))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []


@pytest.fixture(scope="session")
def long(pytestconfig: pytest.Config) -> bool:
    """Whether the long form is asked for."""
    return bool(pytestconfig.getoption("--long"))


@pytest.fixture(scope="session")
def figure(pytestconfig: pytest.Config) -> Record:
    """Keeps a line for the end of a long run: what docs/promises.md records."""
    return pytestconfig.stash[FIGURES].append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for note in AGAIN:
        terminalreporter.line(f"AGAIN {note}")
    lines = config.stash[FIGURES]
    if lines and config.getoption("--long"):
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.line(line)
