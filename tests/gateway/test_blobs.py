"""Files under their SHA-256: whole or not there, never gone while a row names them."""

import hashlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.storage import Storage, blobs
from gateway.types import Role
from idl.codes import Code, ServingError

NOW = datetime(2026, 11, 21, tzinfo=UTC)
LATER = NOW + timedelta(hours=2)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    made = Storage(tmp_path / "state")
    yield made
    made.close()


def files(storage: Storage) -> list[str]:
    return sorted(path.name for path in storage.blobs.path("00" + "0" * 62).parent.parent.rglob("*") if path.is_file())


def test_what_was_put_is_there_once(storage: Storage) -> None:
    sha256, size = storage.blobs.put([b"ab", b"", b"c"], NOW)
    assert (sha256, size) == (hashlib.sha256(b"abc").hexdigest(), 3)
    assert storage.blobs.put([b"abc"], NOW) == (sha256, 3)
    assert files(storage) == [sha256] and storage.blobs.read(sha256) == b"abc"
    assert storage.blobs.put([], NOW)[1] == 0
    with storage.blobs.open(sha256) as file:
        assert file.read() == b"abc"


def test_a_writer_that_breaks_off_leaves_nothing(storage: Storage) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        storage.blobs.put(pieces(), NOW)
    assert files(storage) == []


def test_an_adopted_file(storage: Storage, tmp_path: Path) -> None:
    for _ in range(2):
        (tmp_path / "upload").write_bytes(b"abc")
        storage.blobs.adopt(tmp_path / "upload", hashlib.sha256(b"abc").hexdigest(), 3, NOW)
        assert not (tmp_path / "upload").exists()
    assert len(files(storage)) == 1


def test_a_sweep_takes_what_nobody_names(storage: Storage) -> None:
    user = storage.users.create("ann", None, "x", Role.USER, NOW)
    kept, _ = storage.blobs.put([b"kept"], NOW)
    gone, _ = storage.blobs.put([b"gone"], NOW)
    young, _ = storage.blobs.put([b"young"], LATER)
    with storage.database.write() as db:
        db.execute("update users set avatar_sha256 = ? where id = ?", [kept, user.id])
    limit = NOW + timedelta(hours=1)
    assert storage.blobs.sweep(limit, dry_run=True) == (1, 4) and len(files(storage)) == 3
    assert storage.blobs.sweep(limit) == (1, 4)
    assert files(storage) == sorted([kept, young])
    with pytest.raises(ServingError) as caught:
        storage.blobs.read(gone)
    assert caught.value.code is Code.GONE
    assert storage.blobs.put([b"gone"], LATER) == (gone, 4) and storage.blobs.read(gone) == b"gone"


def test_a_sweep_lets_others_write_in_between(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files go: whoever signs in or sends a task meanwhile would wait for the whole of it."""
    monkeypatch.setattr(blobs, "_PIECE", 3)
    for number in range(10):
        storage.blobs.put([f"nobody names {number}".encode()], NOW)
    other = Storage(tmp_path / "state")
    left: list[int] = []
    path = storage.blobs.path

    def looked_at(sha256: str) -> Path:
        with other.database.read() as db:
            left.append(db.execute("select count(*) from blobs").fetchone()[0])
        return path(sha256)

    monkeypatch.setattr(storage.blobs, "path", looked_at)
    try:
        assert storage.blobs.sweep(LATER)[0] == 10
    finally:
        other.close()
        monkeypatch.undo()
    assert left == [10] * 3 + [7] * 3 + [4] * 3 + [1] and files(storage) == []


def test_what_comes_to_be_named_while_it_is_looked_for_stays(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    user = storage.users.create("ann", None, "x", Role.USER, NOW)
    sha256, _ = storage.blobs.put([b"a picture"], NOW)
    remove = storage.blobs._remove

    def meanwhile(found: list[str], older_than: datetime) -> list[int]:
        storage.users.set_avatar(user.id, sha256, NOW)
        return remove(found, older_than)

    monkeypatch.setattr(storage.blobs, "_remove", meanwhile)
    assert storage.blobs.sweep(LATER) == (0, 0) and files(storage) == [sha256]


def test_a_put_while_it_is_swept_is_there(storage: Storage) -> None:
    """The same bytes again and again, and a sweep that takes them away in between: whoever has put them finds them."""
    stop, failed = threading.Event(), []

    def sweep() -> None:
        while not stop.is_set():
            storage.blobs.sweep(LATER - timedelta(hours=1))

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for _ in range(60):
            storage.blobs.put([b"same"], NOW)  # old at once
            sha256, _ = storage.blobs.put([b"same"], LATER)
            failed += [] if storage.blobs.path(sha256).exists() else [sha256]
    finally:
        stop.set()
        sweeper.join()
    assert not failed


def test_everything_that_names_a_blob_is_known(storage: Storage) -> None:
    with storage.database.read() as db:
        tables = [row["name"] for row in db.execute("select name from sqlite_master where type = 'table'")]
        columns = {(table, row["name"]) for table in tables for row in db.execute(f"pragma table_info({table})")}
        keys = {
            (table, row["from"]) for table in tables for row in db.execute(f"pragma foreign_key_list({table})") if row["table"] == "blobs"
        }
    assert {pair for pair in columns if pair[1].endswith("sha256")} - {("blobs", "sha256"), ("uploads", "sha256")} == set(blobs._NAMED_BY)
    assert keys == set(blobs._NAMED_BY), "no blob goes away under a row that names it"


def test_a_full_disk_is_said(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blobs.os, "fsync", fail)
    with pytest.raises(ServingError) as caught:
        storage.blobs.put([b"abc"], NOW)
    assert caught.value.code is Code.INSUFFICIENT_CAPACITY and "No space left" in caught.value.message
    assert files(storage) == []
