"""Polling: what is seen of a repository while others write into it, and what the server makes of it."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from idl.codes import Code, ServingError
from inference_server.engine import Engine
from inference_server.executors.process import Watcher, Zygote
from inference_server.library import Library
from inference_server.repository import Repository
from inference_server.repository_poll import Change, RepositoryPoll
from tests.engines import engine_over
from tests.inference_server.conftest import floats, request
from tests.onnx_models import times

LONG_AGO = 0
NOW = 2**63


def model(root: Path, name: str, *versions: int) -> Path:
    for version in versions:
        write(root / name / str(version) / "model.onnx", b"%d" % version)
    return root / name


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def poll(tmp_path: Path) -> RepositoryPoll:
    return RepositoryPoll(Repository([tmp_path]))


def settled(poll: RepositoryPoll) -> list[Change]:
    """Two looks: what the second one finds."""
    assert poll.step() == []
    return poll.step()


# what is seen ------------------------------------------------------------------------------------------------------------------------------


def test_a_version_counts_once_it_stands_still(poll: RepositoryPoll, tmp_path: Path) -> None:
    model(tmp_path, "m", 1)
    assert settled(poll) == [Change("m", (1,))] and poll.step() == []
    path = tmp_path / "m" / "2" / "model.onnx"
    for size in range(1, 6):
        write(path, b"x" * size)
        assert poll.step() == [] and list(poll.unfinished("m")) == [2]
    assert poll.step() == [Change("m", (1, 2))]
    assert poll.step() == [] and not poll.unfinished("m")


def test_a_first_look_takes_what_has_not_changed_for_a_while(tmp_path: Path) -> None:
    model(tmp_path, "m", 1)
    model(tmp_path, "n", 1)
    poll = RepositoryPoll(Repository([tmp_path]))
    assert poll.first(NOW) == [Change("m", (1,)), Change("n", (1,))] and poll.step() == []
    poll = RepositoryPoll(Repository([tmp_path]))
    assert poll.first(LONG_AGO) == [], "all of it may be on its way"
    assert poll.step() == [Change("m", (1,)), Change("n", (1,))]


def test_what_was_changing_at_the_first_look_is_waited_for_while_it_changes(tmp_path: Path) -> None:
    growing, still, half = model(tmp_path, "growing", 1), model(tmp_path, "still", 1), tmp_path / "half" / "1" / "model.onnx.part"
    model(tmp_path, "gone", 1)
    write(half, b"half")
    (tmp_path / "empty").mkdir()
    poll = RepositoryPoll(Repository([tmp_path]))
    assert poll.first(LONG_AGO) == [] and poll.waiting == {"growing", "still", "half", "gone"}
    write(growing / "1" / "model.onnx", b"more")
    shutil.rmtree(tmp_path / "gone")
    assert poll.step() == [Change("still", (1,))] and poll.waiting == {"growing"} and poll.dropped == {"half", "gone"}
    assert poll.step() == [Change("growing", (1,))] and not poll.waiting and not poll.dropped
    write(still / "2" / "model.onnx", b"later")
    assert poll.step() == [] and not poll.waiting, "only the first look is waited for"


def test_a_fresh_version_does_not_hide_an_old_one_at_the_first_look(tmp_path: Path) -> None:
    folder = model(tmp_path, "m", 1)
    border = max(path.stat().st_ctime_ns for path in folder.rglob("*")) + 1
    while time.time_ns() < border + 20_000_000:  # file times come from a coarser clock
        os.sched_yield()
    model(tmp_path, "m", 2)
    poll = RepositoryPoll(Repository([tmp_path]))
    assert poll.first(border) == [Change("m", (1,))]
    assert poll.step() == [Change("m", (1, 2))]


def test_what_is_written_beside_and_renamed_is_seen_whole(poll: RepositoryPoll, tmp_path: Path) -> None:
    part = tmp_path / "m" / "1" / "model.onnx.part"
    write(part, b"half")
    assert [poll.step() for _ in range(3)] == [[], [], []], "however long it stands still"
    part.rename(part.with_suffix(""))
    assert settled(poll) == [Change("m", (1,))]
    write(tmp_path / "m" / "1" / "weights.bin.part", b"half")
    assert [poll.step() for _ in range(3)] == [[], [], []], "a version that serves goes on"
    (tmp_path / "m" / "1" / "weights.bin.part").rename(tmp_path / "m" / "1" / "weights.bin")
    assert settled(poll) == [Change("m", (1,))]


def test_an_overwritten_file_is_seen_also_with_the_same_size_and_time(poll: RepositoryPoll, tmp_path: Path) -> None:
    path = model(tmp_path, "m", 1) / "1" / "model.onnx"
    settled(poll)
    before = path.stat()
    fresh = tmp_path / "fresh"
    fresh.write_bytes(b"X")
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.rename(path)
    assert settled(poll) == [Change("m", (1,))]


@pytest.mark.parametrize("name", ["model.toml", "config.pbtxt", "labels.txt", "warmup/x.raw"])
def test_what_lies_beside_the_versions_counts(poll: RepositoryPoll, tmp_path: Path, name: str) -> None:
    model(tmp_path, "m", 1, 2)
    settled(poll)
    write(tmp_path / "m" / name, b"x")
    assert settled(poll) == [Change("m", (1, 2))]
    (tmp_path / "m" / name).unlink()
    assert settled(poll) == [Change("m", (1, 2))]


def test_what_the_server_itself_writes_is_no_change(poll: RepositoryPoll, tmp_path: Path) -> None:
    folder = model(tmp_path, "m", 1)
    settled(poll)
    for name in ("serving-version", "serving-labels", ".serving-version.1-2.part"):
        write(folder / name, b"1")
    assert [poll.step() for _ in range(3)] == [[], [], []]


def test_versions_and_models_that_go(poll: RepositoryPoll, tmp_path: Path) -> None:
    folder = model(tmp_path, "m", 1, 2)
    model(tmp_path, "n", 1)
    settled(poll)
    shutil.rmtree(folder / "2")
    assert settled(poll) == [Change("m", (1,))]
    folder.rename(tmp_path / "elsewhere.m")
    assert poll.step() == [], "perhaps only between two renames"
    (tmp_path / "elsewhere.m").rename(folder)
    assert [poll.step() for _ in range(3)] == [[], [], []]
    shutil.rmtree(folder)
    assert settled(poll) == [Change("m", ())] and poll.step() == []
    shutil.rmtree(tmp_path / "n" / "1")
    assert settled(poll) == [Change("n", ())], "a folder without a version"
    model(tmp_path, "m", 3)
    assert settled(poll) == [Change("m", (3,))]


def test_a_repository_that_cannot_be_read_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "models"
    model(root, "m", 1)
    repository = Repository([root])
    poll = RepositoryPoll(repository)
    settled(poll)
    root.rename(tmp_path / "away")
    for _ in range(3):
        with pytest.raises(OSError):
            poll.step()
    root.mkdir()
    real = repository.devices()
    monkeypatch.setattr(repository, "devices", lambda: tuple(device + 1 for device in real))
    for _ in range(3):
        with pytest.raises(OSError, match="another file system"):
            poll.step()
    monkeypatch.undo()
    root.rmdir()
    (tmp_path / "away").rename(root)
    assert [poll.step() for _ in range(3)] == [[], [], []]


def test_a_change_that_is_asked_for_again_comes_again(poll: RepositoryPoll, tmp_path: Path) -> None:
    model(tmp_path, "m", 1)
    assert settled(poll) == [Change("m", (1,))]
    waits = []
    for _ in range(9):
        poll.again("m")
        looks = 1
        while not poll.step():
            looks += 1
        waits.append(looks)
    assert waits == [1, 2, 3, 5, 9, 17, 33, 65, 65], "longer each time, within a bound"
    write(tmp_path / "m" / "2" / "model.onnx", b"2")
    assert settled(poll) == [Change("m", (1, 2))], "what changes does not wait"
    poll.again("m")
    assert poll.step() == [Change("m", (1, 2))] and poll.step() == []


def test_links_are_followed_and_loops_end(poll: RepositoryPoll, tmp_path: Path) -> None:
    """A mounted volume may be a folder of links, each change another target."""
    real = tmp_path / "m" / ".data" / "a"
    write(real / "model.onnx", b"1")
    (tmp_path / "m" / "1").symlink_to(real)
    (real / "loop").symlink_to(tmp_path / "m")
    (tmp_path / "m" / "2").symlink_to(tmp_path / "absent")
    assert settled(poll) == [Change("m", (1,))]


def test_under_a_writer_nothing_half_is_ever_handed_out(poll: RepositoryPoll, tmp_path: Path) -> None:
    """Whole versions are renamed into place as fast as one can; every version that is handed out is whole."""
    done = threading.Event()
    random = np.random.default_rng(3)

    def writing() -> None:
        for number in range(1, 60):
            folder = tmp_path / "m" / str(number)
            folder.mkdir(parents=True)
            with (folder / "model.onnx.part").open("wb") as file:
                for _ in range(int(random.integers(1, 20))):
                    file.write(b"x" * 1000)
                    file.flush()
                    os.sched_yield()
                file.write(b"END")
            (folder / "model.onnx.part").rename(folder / "model.onnx")
        done.set()

    writer = threading.Thread(target=writing)
    writer.start()
    seen: set[int] = set()
    while True:
        last = done.is_set()
        for change in poll.step():
            for version in set(change.versions) - seen:
                assert (tmp_path / "m" / str(version) / "model.onnx").read_bytes().endswith(b"END")
            seen |= set(change.versions)
        if last and not poll.unfinished("m"):
            break
    writer.join()
    assert seen == set(range(1, 60))


# through the server ------------------------------------------------------------------------------------------------------------------------


@contextmanager
def polling(zygote: Zygote, watcher: Watcher, repository: Path) -> Iterator[tuple[Engine, Library]]:
    with engine_over(zygote, watcher, repository, model_control="poll") as engine:
        engine.load_all(NOW)
        yield engine, engine._library


def look(library: Library) -> None:
    library.poll()
    library.poll()


def answer(engine: Engine, name: str = "m", version: str = "") -> float:
    return floats(engine.model_infer(request(name, [[1, 1]], version=version)))[0]


def code_of(call: object) -> Code:
    with pytest.raises(ServingError) as caught:
        call()  # type: ignore[operator]
    return caught.value.code


def test_the_server_follows(zygote: Zygote, watcher: Watcher, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 1)
    with polling(zygote, watcher, repository) as (engine, library):
        assert answer(engine) == 1 and engine.server_ready()
        times(repository / "m" / "2" / "model.onnx", 2)
        times(repository / "n" / "1" / "model.onnx", 10)
        look(library)
        assert answer(engine) == 2 and answer(engine, "n") == 10
        (repository / "m" / "model.toml").write_text('version_policy = "all"\ninstances = 2\n')
        look(library)
        assert answer(engine, version="1") == 1 and engine._served["m"].versions[2].instances == 2
        shutil.rmtree(repository / "m" / "2")
        look(library)
        assert answer(engine) == 1 and code_of(lambda: answer(engine, version="2")) is Code.VERSION_NOT_FOUND
        shutil.rmtree(repository / "n")
        look(library)
        assert code_of(lambda: answer(engine, "n")) is Code.MODEL_NOT_FOUND and engine.server_ready()


def test_a_server_is_not_ready_before_what_it_found_changing_has_been_looked_at(zygote: Zygote, watcher: Watcher, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 1)
    write(repository / "half" / "1" / "model.onnx.part", b"half")
    with engine_over(zygote, watcher, repository, model_control="poll") as engine:
        engine.load_all(LONG_AGO)
        assert not engine.server_ready() and code_of(lambda: answer(engine)) is Code.NOT_READY
        engine._library.poll()
        assert answer(engine) == 1 and engine.server_ready(), "what is not whole after that look is not waited for"


def test_what_is_unchanged_is_not_loaded_again(zygote: Zygote, watcher: Watcher, repository: Path) -> None:
    (repository / "m").mkdir()
    (repository / "m" / "model.toml").write_text('version_policy = "all"\n')
    times(repository / "m" / "1" / "model.onnx", 1)
    with polling(zygote, watcher, repository) as (engine, library):
        first = engine._served["m"].versions[1].executors
        times(repository / "m" / "2" / "model.onnx", 2)
        look(library)
        assert answer(engine) == 2 and engine._served["m"].versions[1].executors == first
        pids = [executor.pid for version in engine._served["m"].versions.values() for executor in version.executors]
        for _ in range(4):
            look(library)
        assert pids == [executor.pid for version in engine._served["m"].versions.values() for executor in version.executors]


def test_a_truncated_file_is_tried_again_when_it_changes(zygote: Zygote, watcher: Watcher, repository: Path) -> None:
    whole = times(repository / "m" / "1" / "model.onnx", 1).read_bytes()
    with polling(zygote, watcher, repository) as (engine, library):
        path = repository / "m" / "2" / "model.onnx"
        write(path, whole[:-10])
        look(library)
        reasons = {index.version: index.reason for index in engine.repository_index(False)}
        assert answer(engine) == 1 and "protobuf" in reasons["2"].lower() and engine.server_ready()
        times(path, 2)
        library.poll()
        assert {index.version: index.reason for index in engine.repository_index(False)}["2"] == "its files are still changing"
        library.poll()
        assert answer(engine) == 2


def test_a_model_that_was_unloaded_stays_so_until_it_changes(zygote: Zygote, watcher: Watcher, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 1)
    with polling(zygote, watcher, repository) as (engine, library):
        engine.repository_model_unload("m", {})
        look(library)
        assert code_of(lambda: answer(engine)) is Code.NOT_READY and engine.server_ready()
        times(repository / "m" / "2" / "model.onnx", 2)
        look(library)
        assert answer(engine) == 2


def test_a_failure_that_may_pass_is_tried_again(
    zygote: Zygote, watcher: Watcher, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with polling(zygote, watcher, repository) as (engine, library):
        times(repository / "m" / "1" / "model.onnx", 1)
        started, starter = [0], library._starter.start

        def start(*arguments: object) -> object:
            started[0] += 1
            if started[0] < 3:
                raise ServingError(Code.INSUFFICIENT_CAPACITY, "no room yet")
            return starter(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(library._starter, "start", start)
        look(library)
        assert code_of(lambda: answer(engine)) is Code.NOT_READY and started[0] == 1
        library.poll()
        library.poll()
        assert started[0] == 2, "at the next look, then after one more"
        library.poll()
        assert answer(engine) == 1 and started[0] == 3


def test_a_bad_model_that_comes_later_leaves_the_server_ready(zygote: Zygote, watcher: Watcher, repository: Path) -> None:
    write(repository / "bad" / "1" / "model.onnx", b"not a model")
    with polling(zygote, watcher, repository) as (engine, library):
        assert not engine.server_ready(), "it was there at the start"
        shutil.rmtree(repository / "bad")
        look(library)
        assert engine.server_ready()
        write(repository / "worse" / "1" / "model.onnx", b"not a model")
        look(library)
        assert [index.state for index in engine.repository_index(False)] == ["UNAVAILABLE"] and engine.server_ready()


def test_the_policy_that_is_told_is_the_one_that_holds(zygote: Zygote, watcher: Watcher, repository: Path) -> None:
    times(repository / "m" / "1" / "model.onnx", 1)
    with polling(zygote, watcher, repository) as (engine, library):
        before = engine._served["m"].versions[1].executors
        (repository / "m" / "model.toml").write_text("version_policy = { latest = 3 }\n")
        look(library)
        assert engine.model_config("m", "")["version_policy"] == {"latest": {"num_versions": 3}}
        assert engine._served["m"].versions[1].executors == before, "nothing was loaded for it"


def test_labels_and_a_named_version_hold_while_polling(zygote: Zygote, watcher: Watcher, repository: Path) -> None:
    (repository / "m").mkdir()
    (repository / "m" / "model.toml").write_text("version_policy = { latest = 2 }\n")
    for number in (1, 2):
        times(repository / "m" / str(number) / "model.onnx", number)
    with polling(zygote, watcher, repository) as (engine, library):
        engine.set_labels("m", {"stable": 1}, 0)
        times(repository / "m" / "3" / "model.onnx", 3)
        look(library)
        assert answer(engine) == 1 and answer(engine, version="3") == 3, "a new version is there, and not yet what answers"
        engine.repository_model_load("m", {"version": "3"})
        look(library)
        assert answer(engine) == 3
