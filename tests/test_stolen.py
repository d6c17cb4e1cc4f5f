"""Which failures are run again: those beside which the machine's processors were taken away, and no others."""

from pathlib import Path

import pytest

from tests import stolen

pytest_plugins = ["pytester"]

CONFTEST = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from tests import stolen

stolen.STAT, stolen.LONGEST_WAIT_S = Path("stat"), 0.0
taken = iter(range(0, 10**9, STEP))

def pytest_runtest_protocol(item, nextitem):
    stolen.run(item, nextitem)
    return True

def pytest_runtest_logreport(report):
    for note in stolen.notes(report):
        print("AGAIN", note)

def pytest_runtest_setup(item):
    stolen.STAT.write_text(f"cpu  {{100 * next(taken)}} 0 0 0 0 0 0 {{SHARE * next(taken)}} 0 0\\n")
"""
TESTS = """
import pytest

made, asked, tried = [], [], []

@pytest.fixture(scope="module")
def shared():
    tried.append(1)
    if len(tried) < 2:
        raise RuntimeError("not yet")

@pytest.fixture
def own():
    made.append(2)
    yield
    made.append(-2)

def test_third_time(own):
    asked.append(1)
    assert len(asked) == 3, "too early"

def test_never():
    assert False, "wrong"

left = []

@pytest.fixture(scope="module")
def served():
    left.clear()
    yield left
    if "wrong" in left:
        raise RuntimeError("of no use any more")

def test_before(served):
    served.append("before")

def test_what_is_left_in_a_fixture(served):
    assert "wrong" not in served
    served.append("wrong")
    asked.append(1)
    assert len(asked) == 5, "too early"

def test_after(served):
    assert served == ["wrong"]
    served.clear()

def test_right():
    assert made.count(2) == made.count(-2)

def test_a_fixture_of_the_module(shared):
    pass
"""


def outcome(pytester: pytest.Pytester, share: int) -> tuple[dict[str, int], list[str]]:
    (pytester.path / "stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    pytester.makeconftest(CONFTEST.replace("STEP", "1").replace("SHARE", str(share)))
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:schemathesis", "-p", "no:anyio")
    return result.parseoutcomes(), [line for line in result.outlines if "AGAIN" in line]


def test_where_it_is_taken_a_failure_is_run_again(pytester: pytest.Pytester) -> None:
    counts, again = outcome(pytester, 50)
    assert counts == {"passed": 6, "failed": 1}
    assert sum("test_third_time" in line for line in again) == 2 and sum("test_never" in line for line in again) == 3
    assert sum("test_a_fixture_of_the_module" in line for line in again) == 1
    assert sum("at the end of its fixtures: RuntimeError('of no use any more')" in line for line in again) == 1
    assert "too early" in "".join(again) and "of the processors' time was taken" in again[0]


def test_where_nothing_is_taken_it_stands(pytester: pytest.Pytester) -> None:
    counts, again = outcome(pytester, 0)
    assert counts == {"passed": 2, "failed": 4, "errors": 2} and not again


def test_a_moment_of_a_long_test_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stolen, "STAT", tmp_path / "stat")
    taken = stolen._TICKS_A_SECOND * stolen.TAKEN_S
    for ticks, others, is_much in ((taken, 20 * taken, True), (taken - 1, 20 * taken, False), (taken, 40 * taken, False)):
        stolen.STAT.write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
        meter = stolen.Meter()
        stolen.STAT.write_text(f"cpu  {others:.0f} 0 0 0 0 0 0 {ticks:.0f} 0 0\n")
        assert meter.is_much() == is_much
