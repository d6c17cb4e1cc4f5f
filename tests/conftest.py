"""Options of the whole suite, and the figures that the proofs measure."""

from collections.abc import Callable

import pytest

FIGURES = pytest.StashKey[list[str]]()

Record = Callable[[str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    proofs = parser.getgroup("proofs")
    proofs.addoption("--long", action="store_true", help="the long form of tests/proofs: hours instead of minutes")
    proofs.addoption("--soak-s", type=float, default=600.0, metavar="S", help="with --long, how long the soak lasts (default 600 seconds)")


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
    lines = config.stash[FIGURES]
    if lines and config.getoption("--long"):
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.line(line)
