"""Tests that fail while the host of a virtual machine takes its processors away ("steal" in /proc/stat) are run again, and said so.

Whole tenths of a second in which nothing of ours ran are no finding about ours: a promise about time can neither be kept nor broken in
them. What fails on a machine that has its processors fails at once, and what is wrong for another reason fails again.
"""

import os
import time
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

STAT = Path("/proc/stat")
TAKEN = 0.10
"""The share of the processors' time from which on a failure may come from there."""
TAKEN_S = 1.0
"""Of processors' time: in a long test that is no great share, and may have been one moment that counted."""
TAKEN_AT_LEAST = 0.03
"""The share below which it is not asked how long that was."""
MOST = 3
"""Times that a test is run again."""
LONGEST_WAIT_S = 30.0
"""For a second in which less than that is taken."""
NOTE = "run again"
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Meter:
    """How much of all processors' time was taken since it was made; 0 where the system does not say."""

    def __init__(self) -> None:
        self._begun = _ticks()

    def share(self) -> float:
        taken, total = self._since()
        return taken / total if total else 0.0

    def is_much(self) -> bool:
        taken, _ = self._since()
        return self.share() >= TAKEN or (self.share() >= TAKEN_AT_LEAST and taken / _TICKS_A_SECOND >= TAKEN_S)

    def _since(self) -> tuple[int, int]:
        taken, total = (now - then for now, then in zip(_ticks(), self._begun, strict=True))
        return taken, total


def _ticks() -> tuple[int, int]:
    """(taken, total) since the machine's start."""
    try:
        counts = [int(word) for word in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return (counts[7], sum(counts)) if len(counts) == 8 else (0, 0)


def run(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """`item` with its setup and its teardown, as often as it takes; only the last time counts."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    notes: list[str] = []
    while True:
        meter = Meter()
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        failed = next((report for report in reports if report.failed), None)
        if failed is None or not meter.is_much() or len(notes) == MOST:
            break
        notes.append(f"{item.nodeid} failed while {meter.share():.0%} of the processors' time was taken from this machine: {_why(failed)}")
        notes[-1] += _begin_anew(item)
        _wait()
    reports[0].user_properties += [(NOTE, note) for note in notes]
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _why(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = (crash.message if crash else str(report.longrepr)).strip().splitlines()
    return str(lines[0][:200]) if lines else ""


def _begin_anew(item: pytest.Item) -> str:
    """Ends the fixtures that other tests share too: what the failed one has left in them would make it fail again. What went wrong there."""
    said = ""
    try:
        item.session._setupstate.teardown_exact(None)
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - of a fixture that the failure has left in whatever state
        said = f"; then, at the end of its fixtures: {error!r:.200}"
    for fixtures in item._fixtureinfo.name2fixturedefs.values():  # type: ignore[attr-defined]
        for fixture in fixtures:
            if fixture.cached_result is not None and fixture.cached_result[2] is not None:
                fixture.cached_result = None
    return said


def _wait() -> None:
    end = time.monotonic() + LONGEST_WAIT_S
    while time.monotonic() < end:
        meter = Meter()
        time.sleep(1.0)
        if meter.share() < TAKEN:
            return


def notes(report: pytest.TestReport) -> list[str]:
    """What is to be said of the times before."""
    return [str(text) for name, text in report.user_properties if name == NOTE]
