"""Settings of traces that change while processes trace: seen at once, counted by all of them together."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from idl import trace_control
from idl.trace_control import CELLS, FOLDER, LOOK_S, SETTINGS, Followed, Published
from idl.traces import Tracer
from tests.test_traces import HEADER, Kept

QUIET = HEADER[:-1] + "0"


class Clock:
    """Stands still."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Published]:
    made = Published(tmp_path)
    yield made
    made.close()
    assert not (tmp_path / FOLDER).exists()
    made.close()


def tracer(folder: Path, rate: float = 1.0) -> Tracer:
    return Tracer(Kept(), rate, lambda: 0.5, Followed(folder))


def entered(made: Tracer, model: str = "m", header: str = "") -> bool:
    return made.enter(header, model) is not None


def test_nothing_is_changed_where_nothing_was_said(tmp_path: Path, published: Published) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        made = tracer(folder, 0.0)
        assert not entered(made) and entered(made, header=HEADER) and not entered(made, header=QUIET)
        assert made.begin().sampled is False and made.begin(HEADER, "m").sampled is True


def test_a_change_is_seen_by_the_next_request(tmp_path: Path, published: Published) -> None:
    made = tracer(tmp_path)
    assert entered(made)
    published.publish({"": {"level": "OFF"}, "n": {"level": "TIMESTAMPS"}}, {})
    assert not entered(made) and not entered(made, header=HEADER) and entered(made, "n"), "OFF goes before a caller's flag"
    assert not made.begin(HEADER, "m").sampled and not made.begin(HEADER).sampled and made.begin(HEADER, "n").sampled
    published.publish({"": {}}, {})
    assert entered(made) and made.begin(HEADER).sampled


def test_every_so_many_th_request(tmp_path: Path, published: Published) -> None:
    made = tracer(tmp_path)
    published.publish({"": {"rate": 3}}, {})
    assert [entered(made) for _ in range(4)] == [True, False, False, True]
    assert [entered(made, name) for name in "nmn"] == [False, False, True], "models without a rate of their own are counted together"
    assert entered(made, header=HEADER) and not entered(made, header=QUIET), "who comes with a trace is not counted"
    published.publish({"": {"rate": 3}, "m": {"rate": 2}, "o": {"rate": 0}}, {})
    assert [entered(made) for _ in range(3)] == [True, False, True] and not entered(made, "o")
    assert [entered(made, "n") for _ in range(3)] == [False, False, True], "an unchanged rate goes on counting"
    assert made.begin().sampled, "what is no inference is left to the process's own rate"


def test_a_count_is_for_everybody_and_begins_anew_when_it_is_set(tmp_path: Path, published: Published) -> None:
    one, other = tracer(tmp_path), tracer(tmp_path)
    published.publish({"": {"count": 1}, "m": {"count": 2}}, {1: 3, 2: 1})
    assert [entered(one), entered(other)] == [True, False] and published.left(2) == 0
    assert [entered(one, "n"), entered(other, "o", HEADER), entered(one, "n"), entered(one, "n", HEADER)] == [True, True, True, False]
    assert not one.begin().sampled and not one.begin(HEADER).sampled, "what is no inference takes none"
    assert one.below(HEADER) is not None, "what lies below a trace that was taken takes none again"
    published.publish({"": {"count": 1}, "m": {"count": 0}}, {1: 1})
    assert entered(one, "m") and entered(one, "m") and entered(other, "n") and not entered(one, "n")


def test_a_count_that_changes_between_the_look_and_the_lock(tmp_path: Path, published: Published) -> None:
    published.publish({"": {"count": 1}}, {1: 5})
    followed = Followed(tmp_path)
    rule = followed.rule("m")
    published.publish({"": {}, "other": {"count": 1}}, {1: 5})
    assert rule is not None and rule.take() is None and published.left(1) == 5, "the cell is another's by now"


COUNTING = """
import sys, threading
from idl.trace_control import Followed
from idl.traces import Tracer
class Nobody:
    add = close = lambda *_: None
tracer = Tracer(Nobody(), 1.0, control=Followed(sys.argv[1]))
print("there", flush=True)
sys.stdin.readline()
found = []
threads = [threading.Thread(target=lambda: [found.append(1) for _ in range(2000) if tracer.enter("", "m") is not None]) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found), flush=True)
"""


def test_several_processes_with_several_threads_take_no_more_than_there_are(tmp_path: Path, published: Published) -> None:
    published.publish({"": {"count": 7}}, {7: 4000})
    many = [
        subprocess.Popen([sys.executable, "-c", COUNTING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for each in many:
        assert each.stdout is not None and each.stdout.readline() == "there\n"
    for each in many:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    taken = [int(each.communicate(timeout=60)[0]) for each in many]
    assert sum(taken) + published.left(7) == 4000, taken
    assert sum(taken) > 0, "whoever finds the lock held for long goes without, and may be unlucky"


def test_a_process_that_has_the_lock_keeps_nobody_waiting(tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    published.publish({"": {"count": 1}}, {1: 5})
    monkeypatch.setattr(trace_control, "_PATIENCE_S", 0.02)
    made = tracer(tmp_path)
    with (tmp_path / FOLDER / CELLS).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not entered(made) and published.left(1) == 5
        with pytest.raises(TimeoutError):
            published.publish({"": {"level": "OFF"}}, {1: 9})
    assert entered(made) and published.left(1) == 4


def test_who_may_only_read_takes_none(tmp_path: Path, published: Published) -> None:
    published.publish({"": {"count": 1}}, {1: 5})
    followed = Followed(tmp_path)
    assert followed.rule("m") is not None
    view = followed._view
    assert view is not None
    view.shared.writable = False  # as `_attached` finds it; tests may run as root, whom no mode keeps away
    assert Tracer(Kept(), 1.0, control=followed).enter("", "m") is None and published.left(1) == 5


def test_a_server_that_comes_after_another(tmp_path: Path) -> None:
    clock = Clock()
    followed = Followed(tmp_path, clock)
    assert followed.rule("m") is None
    first = Published(tmp_path)
    first.publish({"": {"level": "OFF"}}, {})
    assert followed.rule("m") is None
    clock.now += LOOK_S
    found = followed.rule("m")
    assert found is not None and found.off
    second = Published(tmp_path)  # the first was killed
    clock.now += LOOK_S
    found = followed.rule("m")
    assert found is not None and not found.off, "its settings went with it"
    second.publish({"m": {"level": "OFF"}}, {})
    assert followed.rule("m").off and not followed.rule("n").off  # type: ignore[union-attr]
    second.close()
    clock.now += LOOK_S
    assert followed.rule("m") is None
    first.close()


@pytest.mark.parametrize("text", ["", "[]", '{"": 5}', '{"": {"rate": -1}}', '{"": {"count": 4000}}', '{"": {"rate": "5"}}', "\xff"])
def test_a_file_that_somebody_spoilt_changes_nothing(tmp_path: Path, published: Published, text: str) -> None:
    made = tracer(tmp_path)
    published.publish({"": {"level": "OFF"}}, {})
    assert not entered(made)
    (tmp_path / FOLDER / SETTINGS).write_text(text, encoding="latin-1")
    published._shared.cells[0] += 1
    assert not entered(made), "what held before holds"
    assert entered(tracer(tmp_path)), "and who comes now has none"


def test_files_that_are_gone_or_half_there(tmp_path: Path, published: Published) -> None:
    made = tracer(tmp_path)
    published.publish({"": {"level": "OFF"}}, {})
    assert not entered(made)
    shutil.rmtree(tmp_path / FOLDER)
    published._shared.cells[0] += 1
    assert not entered(made)
    with pytest.raises(OSError, match="No such file"):
        published.publish({}, {})


def test_modes_let_the_group_count(tmp_path: Path, published: Published) -> None:
    published.publish({}, {})
    assert json.loads((tmp_path / FOLDER / SETTINGS).read_text()) == {}
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / FOLDER, tmp_path / FOLDER / CELLS, tmp_path / FOLDER / SETTINGS)]
    assert modes[1:] == [0o660, 0o640] and not modes[0] & 0o007


def test_followers_leave_no_descriptors(tmp_path: Path, published: Published) -> None:
    before = len(os.listdir("/proc/self/fd"))
    followed = Followed(tmp_path)
    threads = [threading.Thread(target=followed.rule, args=("m",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del followed, threads
    assert len(os.listdir("/proc/self/fd")) == before
