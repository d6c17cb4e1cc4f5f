"""Zip archives of strangers: what is in them comes out as it went in, and a directory is bounded before anybody reads it."""

import io
import random
import struct
import zipfile
from pathlib import Path

import pytest

from idl.archives import BadArchive, Limits, is_path, names, unpack
from tests.hostile_models import zipped


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_files_come_out_as_they_went_in(tmp_path: Path) -> None:
    files = {"model.py": b"code", "pack/__init__.py": b"", "pack/deep/w.bin": random.Random(1).randbytes(3_000_000)}
    archive = saved(tmp_path / "m.zip", zipped(dict(files)))
    assert set(names(archive)) == set(files)
    assert set(unpack(archive, tmp_path / "out")) == set(files)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files


@pytest.mark.parametrize(
    ("inside", "comes"),
    [
        (["mine/model.py", "mine/w/x"], {"model.py", "w/x"}),
        (["mine/model.py", "__MACOSX/._x", ".hidden", "mine/__pycache__/x.pyc"], {"model.py"}),
        (["model.py", "mine/x"], {"model.py", "mine/x"}),
        (["a/b/model.py"], {"b/model.py"}),
    ],
)
def test_the_one_folder_and_what_tools_leave_are_left_out(tmp_path: Path, inside: list[str], comes: set[str]) -> None:
    archive = saved(tmp_path / "m.zip", zipped(dict.fromkeys(inside, b"x")))
    assert set(unpack(archive, tmp_path / "out")) == comes


def test_folders_and_comments_are_no_trouble(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.mkdir("mine")
        archive.writestr("mine/model.py", b"x")
        archive.comment = b"made by hand PK"
    assert unpack(saved(tmp_path / "m.zip", buffer.getvalue()), tmp_path / "out") == ("model.py",)


def test_limits_are_the_callers(tmp_path: Path) -> None:
    archive = saved(tmp_path / "m.zip", zipped({f"f{number}": b"12345" for number in range(4)}))
    assert len(names(archive, Limits(4, 20))) == 4
    for limits in (Limits(3, 20), Limits(4, 19)):
        with pytest.raises(BadArchive):
            names(archive, limits)


@pytest.mark.parametrize("beside", [True, False])
def test_a_large_directory_is_not_believed_wherever_it_is_said(tmp_path: Path, beside: bool) -> None:
    """Of the two places of the 64-bit record one reader takes this one and another that: neither may say too much."""
    data = zipped({"model.py": b"x"})
    at = data.rfind(b"PK\x05\x06")
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 2**40, 0)
    harmless = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 50, 0)
    first, second = (harmless, record) if beside else (record, harmless)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    made = data[:at] + first + second + locator + data[at:]
    with pytest.raises(BadArchive, match="directory has 1099511627776 bytes"):
        names(saved(tmp_path / "m.zip", made))


def test_an_archive_of_64_bits_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("w.bin", "w", force_zip64=True) as file:
        file.write(b"x" * 1000)
    assert names(saved(tmp_path / "m.zip", buffer.getvalue())) == ("w.bin",)


def test_paths() -> None:
    assert all(is_path(name) for name in ("model.onnx", "a/b/c/d", "_x/__init__.py", "A-1.bin"))
    assert not any(
        is_path(name) for name in ("", "/a", "a/", "a//b", "../a", "a/..", ".a", "-a", "a/b/c/d/e", "a b", "a\\b", "x.part", "é", "a" * 129)
    )
