"""Files of batches as strangers make them: archives with more entries than memory holds, long rows, and formats cut short."""

import io
import random
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gateway.operations import batch_archive, batch_rows
from idl.codes import Code, ServingError

MOST = 1 << 20


def contents(path: Path, offset: int = 0) -> list[Any]:
    return [(row.name, row.value if row.error is None else row.error.message) for row in batch_rows.of_zip(path, offset, MOST)[1]]


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, before: bytes = b"", comment: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, content in files.items():
            made.writestr(name, content)
        made.comment = comment
    if before:
        path.write_bytes(before + path.read_bytes())
    return path


def test_what_zipfile_has_written_is_read(tmp_path: Path) -> None:
    chance = random.Random(4)
    files = {f"folder/{number}-ä.bin": chance.randbytes(chance.randrange(3000)) * chance.randrange(1, 40) for number in range(200)}
    wanted = list(files.items())
    for number, (method, before, comment) in enumerate(
        [
            (zipfile.ZIP_DEFLATED, b"", b""),
            (zipfile.ZIP_STORED, b"#!/bin/sh\n", b"a comment PK\5\6"),
            (zipfile.ZIP_DEFLATED, b"x" * 99, b"c" * 65_535),
        ]
    ):
        path = zipped(tmp_path / f"{number}.zip", files, method, before, comment)
        assert contents(path) == wanted and contents(path, 150) == wanted[150:]
        assert batch_rows.of_zip(path, 0, 1)[0] == 200


def test_zip64_folders_and_streamed_entries(tmp_path: Path) -> None:
    path = tmp_path / "long.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.mkdir("folder")
        with made.open("folder/a", "w", force_zip64=True) as file:
            file.write(b"first")
        made.writestr("b", b"second")
    assert contents(path) == [("folder/a", b"first"), ("b", b"second")]
    out = io.BytesIO()

    class Pipe(io.RawIOBase):  # cannot be gone back in: sizes come behind the content
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            return out.write(data)

    with zipfile.ZipFile(Pipe(), "w", zipfile.ZIP_DEFLATED) as made:  # type: ignore[arg-type]
        made.writestr("c", b"third" * 100)
    path.write_bytes(out.getvalue())
    assert contents(path) == [("c", b"third" * 100)]


def many(path: Path, count: int) -> Path:
    """So many names for one empty file, as fast as bytes are written."""
    local = batch_archive._LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"x"
    entry = batch_archive._ENTRY
    directory = b"".join(
        entry.pack(b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0) + b"%06d" % number for number in range(count)
    )
    end64 = batch_archive._END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), len(local))
    locator = batch_archive._LOCATOR.pack(b"PK\6\7", 0, len(local) + len(directory), 1)
    end = batch_archive._END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(local + directory + end64 + locator + end)
    return path


def test_more_files_than_memory_should_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = many(tmp_path / "many.zip", 70_000)
    with zipfile.ZipFile(path) as made:
        assert len(made.infolist()) == 70_000, "an archive as others read it"
    count, rows = batch_rows.of_zip(path, 69_990, MOST)
    assert count == 70_000 and [(row.name, row.value) for row in rows] == [(f"{number:06}", b"") for number in range(69_990, 70_000)]
    monkeypatch.setattr(batch_rows, "MOST_ROWS", 69_999)
    with pytest.raises(ServingError) as refused:
        batch_rows.of_zip(path, 0, MOST)
    assert refused.value.code is Code.TOO_LARGE


def test_an_archives_directory_is_not_kept_in_memory(tmp_path: Path) -> None:
    path = many(tmp_path / "many.zip", 8000)
    tracemalloc.start()
    assert sum(1 for _ in batch_rows.of_zip(path, 0, MOST)[1]) == 8000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20, "zipfile takes five times as much for its list"


def test_what_is_wrong_with_one_file_is_its_rows_error(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"good": b"yes", "bomb": bytes(5 << 20), "wrong": b"checksum" * 9, "last": b"end"})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as made:
        (at,) = [info.header_offset for info in made.infolist() if info.filename == "wrong"]
    data[at + 30 + len("wrong") + 2] ^= 0x55
    path.write_bytes(data)
    found = contents(path)
    assert (found[0], found[3]) == (("good", b"yes"), ("last", b"end")) and "over 1048576 bytes" in found[1][1]
    assert found[2][1].startswith("the file cannot be unpacked")
    locked = zipped(tmp_path / "locked.zip", {"secret": b"x"})
    data = bytearray(locked.read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1
    locked.write_bytes(data)
    assert contents(locked) == [("secret", "the file is encrypted")]
    other = zipped(tmp_path / "other.zip", {"a": b"x" * 100}, zipfile.ZIP_BZIP2)
    assert "deflate" in contents(other)[0][1]


def test_damaged_archives(tmp_path: Path) -> None:
    """Read or refused, with nothing else raised."""
    chance = random.Random(7)
    whole = zipped(tmp_path / "a.zip", {f"{number}.txt": chance.randbytes(40) for number in range(5)}).read_bytes()
    path = tmp_path / "b.zip"
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        try:
            for row in batch_rows.of_zip(path, 0, MOST)[1]:
                assert row.error is None or row.error.message
        except ServingError as error:
            assert error.code is Code.INVALID_INPUT and "zip archive" in error.message
    for data in (b"", b"PK", b"PK\5\6" + bytes(18), batch_archive._END.pack(b"PK\5\6", 0, 0, 1, 1, 0xFFFF, 0xFFFFFFFF, 0)):
        path.write_bytes(data)
        try:
            assert batch_rows.of_zip(path, 0, MOST)[0] == 0
        except ServingError as error:
            assert error.code is Code.INVALID_INPUT


def test_cells_as_long_as_a_row_may_be(tmp_path: Path) -> None:
    """A picture as base64, or a list of a hundred thousand numbers, is one cell."""
    long, too_long = b"x" * (batch_rows.MOST_ROW_BYTES - 10), b"y" * (batch_rows.MOST_ROW_BYTES + 10)
    rows = list(batch_rows.of_csv(io.BytesIO(b"a,b\n" + long + b',1\n"' + long + b'",2\n' + too_long + b",3\nz,4"), 0)[1])
    assert [row.value and row.value[1] for row in rows] == ["1", "2", None, "4"] and rows[0].value[0] == long.decode()
    assert rows[2].error is not None and rows[2].error.code is Code.TOO_LARGE
    with pytest.raises(ServingError) as refused:
        batch_rows.of_csv(io.BytesIO(b"a" * (batch_rows.MOST_ROW_BYTES + 10)), 0)
    assert refused.value.code is Code.TOO_LARGE
