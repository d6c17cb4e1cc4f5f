"""The repository on disk, and what may be written into it."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from idl.codes import Code, ServingError
from inference_server import model_settings
from inference_server.model_settings import VersionPolicy
from inference_server.repository import Repository
from inference_server.setting_checks import InvalidModelSettings
from inference_server.types import FileHeader

DATA = b"model bytes" * 1000
HASH = hashlib.sha256(DATA).hexdigest()


def header(**changes: object) -> FileHeader:
    values: dict[str, object] = {"model_name": "m", "version": 1, "file_name": "model.onnx", "size": len(DATA), "sha256": HASH}
    return FileHeader(**{**values, **changes})  # type: ignore[arg-type]


def chunks(data: bytes = DATA) -> Iterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


def refused(repository: Repository, made: FileHeader, data: Iterator[bytes]) -> ServingError:
    with pytest.raises(ServingError) as caught:
        repository.put_file(made, data)
    return caught.value


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_a_file_arrives_whole_and_again_is_the_same(tmp_path: Path) -> None:
    repository = Repository([tmp_path])
    assert not repository.put_file(header(), chunks()).existed
    assert (tmp_path / "m" / "1" / "model.onnx").read_bytes() == DATA
    assert repository.put_file(header(), chunks()).existed
    assert files(tmp_path) == ["m", "m/1", "m/1/model.onnx"]
    model = repository.read("m")
    assert model is not None and model.versions == (1,) and repository.names() == ("m",)


def test_other_bytes_never_replace_a_file(tmp_path: Path) -> None:
    repository = Repository([tmp_path])
    repository.put_file(header(), chunks())
    error = refused(repository, header(size=3, sha256=hashlib.sha256(b"new").hexdigest()), chunks(b"new"))
    assert error.code is Code.ALREADY_EXISTS and "version 1" in error.message
    assert (tmp_path / "m" / "1" / "model.onnx").read_bytes() == DATA


@pytest.mark.parametrize(
    "changes",
    [
        {"model_name": "../x"},
        {"model_name": ""},
        {"model_name": ".hidden"},
        {"model_name": "a/b"},
        {"model_name": "a\0b"},
        {"model_name": "x" * 195},
        {"file_name": "../model.onnx"},
        {"file_name": ""},
        {"file_name": "a/b"},
        {"file_name": "model.onnx.part"},
        {"version": -1},
        {"version": 0, "file_name": "3"},
        {"sha256": "abc"},
        {"sha256": HASH.upper()},
        {"sha256": "0" * 64},
        {"size": len(DATA) + 1},
        {"size": len(DATA) - 1},
    ],
)
def test_a_wrong_announcement_is_refused_and_leaves_nothing(tmp_path: Path, changes: dict[str, object]) -> None:
    assert refused(Repository([tmp_path]), header(**changes), chunks()).code is Code.INVALID_INPUT
    assert files(tmp_path) == []


def test_a_copy_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield DATA[:1000]
        raise ServingError(Code.CANCELLED, "the caller went away")

    repository = Repository([tmp_path])
    repository.put_file(header(version=2), chunks())
    assert refused(repository, header(), broken()).code is Code.CANCELLED
    assert files(tmp_path) == ["m", "m/2", "m/2/model.onnx"]


def test_no_room_is_said_before_the_copy(tmp_path: Path) -> None:
    assert refused(Repository([tmp_path]), header(size=2**62), chunks()).code is Code.INSUFFICIENT_CAPACITY
    assert files(tmp_path) == []


def test_two_copies_of_one_version_at_once(tmp_path: Path) -> None:
    repository, results = Repository([tmp_path]), []
    both = threading.Barrier(2)

    def slow() -> Iterator[bytes]:
        both.wait()
        yield from chunks()

    threads = [threading.Thread(target=lambda: results.append(repository.put_file(header(), slow()).existed)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, True]
    assert files(tmp_path) == ["m", "m/1", "m/1/model.onnx"]


def test_left_over_parts_go_after_an_hour_and_are_no_version(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    old, young = folder / ".model.onnx.1-1.part", folder / ".model.onnx.2-2.part"
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    repository = Repository([tmp_path])
    assert repository.read("m") is None
    repository.put_file(header(), chunks())
    assert not old.exists() and young.exists()


def test_the_first_root_wins_and_pushes_go_where_the_model_is(tmp_path: Path) -> None:
    ours, theirs, pushed = tmp_path / "ours", tmp_path / "theirs", tmp_path / "pushed"
    Repository([ours]).put_file(header(), chunks())
    Repository([theirs]).put_file(header(version=5), chunks())
    Repository([theirs]).put_file(header(model_name="other"), chunks())
    repository = Repository([ours, theirs], push_root=pushed)
    assert repository.names() == ("m", "other")
    model = repository.read("m")
    assert model is not None and model.versions == (1,)
    repository.put_file(header(model_name="other", version=2), chunks())
    assert (theirs / "other" / "2" / "model.onnx").exists()
    repository.put_file(header(model_name="fresh"), chunks())
    assert (pushed / "fresh" / "1" / "model.onnx").exists()


def test_folders_that_are_no_version_are_passed_over(tmp_path: Path) -> None:
    for name in ("1", "02", "-3", "x", "4"):
        (tmp_path / "m" / name).mkdir(parents=True)
        if name != "4":
            (tmp_path / "m" / name / "model.onnx").touch()
    model = Repository([tmp_path]).read("m")
    assert model is not None and model.versions == (1,)


def settings(tmp_path: Path, text: str) -> model_settings.ModelSettings:
    (tmp_path / "model.toml").write_text(text)
    return model_settings.read(tmp_path)


def test_model_toml_as_documented(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('["cat", "dog"]')
    made = settings(
        tmp_path,
        """
public = false
description = "two animals"
max_batch_size = 16
max_queue_delay_us = 2000
max_queue_size = 256
instances = 1
executor = "process"
cpus = 1.0
memory = "2GiB"
version_policy = { specific = [3, 1] }
[labels]
probabilities = "labels.json"
top_k = 3
[inputs.image]
kind = "image"
size = [224, 224]
resize_short = 256
crop = "center"
layout = "NCHW"
colour = "RGB"
mean = [127, 127, 127]
std = [128, 128, 128]
""",
    )
    assert made.memory == 2 * 2**30 and made.version_policy == VersionPolicy(specific=(1, 3)) and not made.public
    assert made.top_k == 3
    assert made.published()["labels"] == {"probabilities": ["cat", "dog"]} and made.inputs["image"]["std"] == [128, 128, 128]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("colour = 1", "colour"),
        ("public = 1", "public"),
        ("public = ", "not TOML"),
        ("labels = " + "[" * 100_000, "model.toml"),
        ("#" * (2**20 + 1), "more than"),
        ("batching = 1", "batching"),
        ("preferred_batch_sizes = 4", "preferred_batch_sizes"),
        ("preferred_batch_sizes = [0]", "preferred_batch_sizes"),
        ("max_batch_size = 4\npreferred_batch_sizes = [8]", "preferred_batch_sizes has 8"),
        ("priority_levels = 17", "priority_levels"),
        ("priority_levels = 2\ndefault_priority = 3", "default_priority = 3"),
        ("default_timeout_us = -1", "default_timeout_us"),
        ("canary_percent = 10", "canary_percent = 10"),
        ("canary_percent = 101", "canary_percent"),
        ("version_labels = { 3 = 3 }", "version_labels"),
        ("version_labels = { stable = 0 }", "version_labels.stable"),
        ('device = "tpu"', "device"),
        ("threads = -1", "threads"),
        ('model_file = "../model.onnx"', "model_file"),
        ("onnxruntime = 3", "onnxruntime"),
        ("[onnxruntime]\nmode = 3", "onnxruntime has an unknown key 'mode'"),
        ('[onnxruntime]\nexecution_mode = "fast"', "onnxruntime.execution_mode"),
        ("top_k = 1", "top_k"),
        ("[labels]\ntop_k = 0", "labels.top_k"),
        ("[labels]\ntop_k = true", "labels.top_k"),
        ('memory = "much"', "memory"),
        ("memory = 5", "memory"),
        ("cpus = -1", "cpus"),
        ("cpus = inf", "cpus"),
        ('executor = "fibre"', "executor"),
        ("instances = 0", "instances"),
        ('version_policy = "some"', "version_policy"),
        ("version_policy = { latest = 0 }", "version_policy"),
        ("version_policy = { latest = 1, specific = [1] }", "version_policy"),
        ("labels = 5", "labels"),
        ('[labels]\ny = "../secret"', "labels.y"),
        ('[labels]\ny = "absent.txt"', "absent.txt"),
        ('[labels]\ny = "bad.json"', "bad.json"),
        ("[inputs.x]\nshape = 3", "inputs.x"),
        ('[inputs.x]\nkind = "smell"', "inputs.x.kind"),
        ("[inputs.x]\nsize = [224]", "inputs.x.size"),
        ("[inputs.x]\nstd = [1, 0, 1]", "inputs.x.std"),
        ("inputs = 3", "inputs"),
    ],
)
def test_a_wrong_model_toml_names_the_key(tmp_path: Path, text: str, names: str) -> None:
    (tmp_path / "bad.json").write_text("[1, 2")
    with pytest.raises(InvalidModelSettings, match=names):
        settings(tmp_path, text)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").touch()
    model = Repository([tmp_path.parent]).read(tmp_path.name)
    assert model is not None and model.problem and not model.settings.public


def test_version_policies() -> None:
    have = (1, 2, 10)
    assert VersionPolicy().choose(have) == (10,)
    assert VersionPolicy(latest=2).choose(have) == (2, 10)
    assert VersionPolicy(latest=0).choose(have) == have
    assert VersionPolicy(specific=(2, 3)).choose(have) == (2,)
