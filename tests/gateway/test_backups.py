"""Backups: of one moment while a gateway writes, verified whole before anything is replaced, and refused while somebody runs."""

import http.client
import io
import json
import os
import sqlite3
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.operations.users import Users
from gateway.settings import Settings
from gateway.storage import Storage, backups
from gateway.storage.backups import BackupError
from gateway.worker import process
from outboard.__main__ import main
from tests.eventually import eventually
from tests.gateway.conftest import PASSWORD, Gateway, SetClock
from tests.processes import free_port


@pytest.fixture
def storage(settings: Settings) -> Iterator[Storage]:
    made = Storage(settings.state_dir)
    yield made
    made.close()


def fill(storage: Storage, settings: Settings, time_of_day: SetClock, name: str = "ann") -> str:
    """An account with a picture: its file's SHA-256."""
    user = Users(storage, settings, time_of_day).register(name, PASSWORD)
    sha256, _ = storage.blobs.put([b"a picture of ", name.encode()], time_of_day())
    storage.users.set_avatar(user.id, sha256, time_of_day())
    storage.blobs.put([b"nobody names this"], time_of_day())
    storage.secret()
    return sha256


def restore(settings: Settings, file: Path, *more: str) -> int:
    return main(["restore", str(file), "--data", str(settings.data_dir), *more])


def test_what_was_backed_up_comes_back(storage: Storage, settings: Settings, time_of_day: SetClock, tmp_path: Path) -> None:
    sha256, secret = fill(storage, settings, time_of_day), storage.secret()
    file = tmp_path / "backup.tar"
    assert main(["backup", str(file), "--data", str(settings.data_dir)]) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in settings.state_dir.glob("backup-*")} == set(), "nothing is left beside the state"
    fill(storage, settings, time_of_day, "later")
    storage.close()
    (settings.state_dir / "secret").unlink()
    assert restore(settings, file) == 0
    back = Storage(settings.state_dir)
    try:
        user = back.users.by_name("ann")
        assert user is not None and user.avatar_sha256 == sha256 and back.users.by_name("later") is None
        assert back.blobs.read(sha256) == b"a picture of ann" and back.secret() == secret
        with back.database.read() as db:
            assert [row["sha256"] for row in db.execute("select sha256 from blobs")] == [sha256], "what nobody names is left out"
        assert Users(back, settings, time_of_day).verify("ann", PASSWORD, "").name == "ann"
        assert (settings.state_dir / "outboard.db").stat().st_mode & 0o777 == 0o600
        back.database.probe()
    finally:
        back.close()
    (before,) = settings.data_dir.glob("gateway.before-*")
    with closing(sqlite3.connect(before / "outboard.db")) as db:
        assert db.execute("select count(*) from users").fetchone()[0] == 2, "what was replaced is kept"


def test_a_file_that_is_there_is_not_overwritten(storage: Storage, settings: Settings, time_of_day: SetClock, tmp_path: Path) -> None:
    fill(storage, settings, time_of_day)
    (tmp_path / "backup.tar").write_text("mine")
    assert main(["backup", str(tmp_path / "backup.tar"), "--data", str(settings.data_dir)]) == 1
    assert (tmp_path / "backup.tar").read_text() == "mine"
    assert main(["backup", str(tmp_path / "other.tar"), "--data", str(tmp_path / "nothing")]) == 1
    assert main(["backup", str(tmp_path / "no" / "folder.tar"), "--data", str(settings.data_dir)]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar", "data"]


@pytest.fixture
def backup(storage: Storage, settings: Settings, time_of_day: SetClock, tmp_path: Path) -> Path:
    fill(storage, settings, time_of_day)
    backups.write(settings.state_dir, tmp_path / "backup.tar", time_of_day())
    return tmp_path / "backup.tar"


def members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def pack(path: Path, parts: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for member, content in parts:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))


def link(name: str) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return made


def with_manifest(
    parts: list[tuple[tarfile.TarInfo, bytes]], change: Callable[[dict[str, Any]], object]
) -> list[tuple[tarfile.TarInfo, bytes]]:
    head = json.loads(parts[0][1])
    change(head)
    return [(parts[0][0], json.dumps(head).encode()), *parts[1:]]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


SPOILT: dict[str, Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]]] = {
    "a bit of the database": lambda parts: [(member, flipped(data) if member.name == "outboard.db" else data) for member, data in parts],
    "a bit of a file": lambda parts: [(member, flipped(data) if "blobs/" in member.name else data) for member, data in parts],
    "a bit of the secret": lambda parts: [(member, flipped(data) if member.name == "secret" else data) for member, data in parts],
    "a file is missing": lambda parts: [part for part in parts if "blobs/" not in part[0].name],
    "a file twice": lambda parts: [*parts, parts[-1]],
    "a path out of it": lambda parts: [*parts, (tarfile.TarInfo("../outside"), b"x")],
    "a path out of it, in the list": lambda parts: with_manifest(
        [*parts, (tarfile.TarInfo("../outside"), b"")], lambda head: head["files"].update({"../outside": {"size": 0, "sha256": ""}})
    ),
    "an absolute path": lambda parts: [*parts, (tarfile.TarInfo("/tmp/outside"), b"x")],
    "a link": lambda parts: [(link("secret"), b"") if part[0].name == "secret" else part for part in parts],
    "no list": lambda parts: parts[1:],
    "the list is no JSON": lambda parts: [(parts[0][0], b"{"), *parts[1:]],
    "another format": lambda parts: with_manifest(parts, lambda head: head.update(format=2)),
    "a list without the database": lambda parts: with_manifest(parts, lambda head: head["files"].pop("outboard.db")),
    "a list with other sizes": lambda parts: with_manifest(parts, lambda head: head["files"]["secret"].update(size=1)),
    "nothing": lambda parts: [],
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_backup_that_is_not_whole_replaces_nothing(
    backup: Path, settings: Settings, storage: Storage, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(backup, SPOILT[what](members(backup)))
    storage.close()
    before = {path: path.read_bytes() for path in settings.state_dir.rglob("*") if path.is_file()}
    for more in ((), ("--check",)):
        assert restore(settings, backup, *more) == 1
    said = capsys.readouterr().err
    assert said.count("outboard restore: ") == 2 and "Traceback" not in said
    assert {path: path.read_bytes() for path in settings.state_dir.rglob("*") if path.is_file()} == before
    assert {path.name for path in settings.data_dir.iterdir()} <= {"gateway", "run"}, "nothing is left beside it"
    assert not (settings.data_dir / "outside").exists() and not Path("/tmp/outside").exists()


def test_a_backup_cut_off_anywhere_replaces_nothing(backup: Path, tmp_path: Path) -> None:
    whole = backup.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for number, length in enumerate((0, 1, 511, 512, 700, end // 2, end - 600, end - 1)):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(BackupError):
            backups.unpack(tmp_path / "cut.tar", tmp_path / f"unpacked{number}")


def test_a_database_that_does_not_fit_its_files(backup: Path, settings: Settings, time_of_day: SetClock, tmp_path: Path) -> None:
    """Whoever makes a list for it, the database itself is looked at as well."""
    import hashlib

    def spoilt(statement: str) -> Path:
        parts = members(backup)
        (tmp_path / "db").unlink(missing_ok=True)
        (tmp_path / "db").write_bytes(next(data for member, data in parts if member.name == "outboard.db"))
        with closing(sqlite3.connect(tmp_path / "db")) as db:
            db.execute(statement)
            db.commit()
        data = (tmp_path / "db").read_bytes()
        entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        parts = [(member, data if member.name == "outboard.db" else content) for member, content in parts]
        pack(tmp_path / "spoilt.tar", with_manifest(parts, lambda head: head["files"].update({"outboard.db": entry})))
        return tmp_path / "spoilt.tar"

    for number, (statement, reason) in enumerate(
        (
            ("delete from blobs", "names another|different files"),
            ("update users set avatar_sha256 = 'x'", "names another"),
            ("insert into _sqlite_migrations (migration_set, name, applied_at) values ('gateway', 'm999', 't')", "newer version"),
        )
    ):
        with pytest.raises(BackupError, match=reason):
            backups.unpack(spoilt(statement), tmp_path / f"unpacked{number}")


def test_a_damaged_file_is_told_when_it_is_backed_up(
    storage: Storage, settings: Settings, time_of_day: SetClock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A restore would refuse all of it, when it is too late."""
    path = storage.blobs.path(fill(storage, settings, time_of_day))
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert main(["backup", str(tmp_path / "backup.tar"), "--data", str(settings.data_dir)]) == 1
    said = capsys.readouterr().err
    assert path.name in said and "users.avatar_sha256" in said
    assert list(tmp_path.glob("backup*")) == []


def test_what_a_killed_backup_left_goes_with_the_next(storage: Storage, settings: Settings, time_of_day: SetClock, tmp_path: Path) -> None:
    """Its links would keep files on the disk that were removed long ago."""
    fill(storage, settings, time_of_day)
    left = settings.state_dir / "backup-0123abcd"
    (left / "blobs").mkdir(parents=True)
    (left / "outboard.db").write_bytes(b"half")
    assert main(["backup", str(tmp_path / "backup.tar"), "--data", str(settings.data_dir)]) == 0
    assert list(settings.state_dir.glob("backup-*")) == []


def test_backups_at_once_wait_for_each_other(storage: Storage, settings: Settings, time_of_day: SetClock, tmp_path: Path) -> None:
    fill(storage, settings, time_of_day)
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda number: backups.write(settings.state_dir, tmp_path / f"{number}.tar", time_of_day()), range(4)))
    assert {each.files for each in told} == {3} and list(settings.state_dir.glob("backup-*")) == []
    for number in range(4):
        assert backups.unpack(tmp_path / f"{number}.tar", tmp_path / f"unpacked{number}").files == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_restores_is_of_whoever_runs_the_gateway(backup: Path, settings: Settings) -> None:
    os.chown(settings.state_dir, 4321, 4322)
    assert restore(settings, backup) == 0
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in (settings.state_dir, *settings.state_dir.rglob("*"))}
    assert owners == {(4321, 4322)}


def test_a_restore_into_an_empty_folder(backup: Path, settings: Settings, tmp_path: Path) -> None:
    elsewhere = replace(settings, data_dir=tmp_path / "elsewhere")
    assert restore(elsewhere, backup, "--check") == 0 and not elsewhere.state_dir.exists()
    assert restore(elsewhere, backup) == 0
    back = Storage(elsewhere.state_dir)
    assert back.users.by_name("ann") is not None
    back.close()


def test_a_task_worker_keeps_a_restore_out(backup: Path, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with process.lock(settings.run_dir, 3):
        assert restore(settings, backup) == 1
        assert "a task worker runs" in capsys.readouterr().err
        assert restore(settings, backup, "--check") == 0
    assert restore(settings, backup) == 0


def test_a_file_that_is_swept_meanwhile_is_of_another_moment(
    storage: Storage, settings: Settings, time_of_day: SetClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = fill(storage, settings, time_of_day)
    real, calls = backups._named, []

    def swept(database: Path) -> list[tuple[str, int]]:
        found = real(database)
        if not calls:  # after the first moment its owner takes the picture away, and a sweep the file
            user = storage.users.by_name("ann")
            assert user is not None
            storage.users.set_avatar(user.id, None, time_of_day())
            time_of_day.advance(1)
            storage.blobs.sweep(time_of_day())
        calls.append(database)
        return found

    monkeypatch.setattr(backups, "_named", swept)
    backups.write(settings.state_dir, tmp_path / "backup.tar", time_of_day())
    assert len(calls) >= 2 and not storage.blobs.path(sha256).exists()
    monkeypatch.setattr(backups, "_named", real)
    assert backups.unpack(tmp_path / "backup.tar", tmp_path / "unpacked").files == 2
    storage.blobs.put([b"a picture of ann"], time_of_day())
    user = storage.users.by_name("ann")
    assert user is not None
    storage.users.set_avatar(user.id, sha256, time_of_day())
    storage.blobs.path(sha256).unlink()
    with pytest.raises(BackupError, match="the state is damaged"):
        backups.write(settings.state_dir, tmp_path / "second.tar", time_of_day())
    assert not (tmp_path / "second.tar").exists()


def test_backups_while_a_gateway_writes(settings: Settings, gateways: Callable[[Settings], Gateway], tmp_path: Path) -> None:
    """A real gateway, whose accounts and pictures change all the time; each backup is whole, and of one moment."""
    gateway = gateways(replace(settings, http_port=free_port(), processes=1, registrations=1000))
    stop, done = threading.Event(), []

    def ask(method: str, path: str, body: Any = None, **headers: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
        with closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status < 300, content
            return json.loads(content) if content else None

    def people() -> None:
        from tests.gateway.test_administration import picture

        number = 0
        while not stop.is_set():
            number += 1
            body = json.dumps({"username": f"user{number}", "password": PASSWORD})
            ask("POST", "/v1/users", body, **{"Content-Type": "application/json"})
            token = ask("POST", "/v1/tokens", body, **{"Content-Type": "application/json"})["access_token"]
            ask("PUT", "/v1/me/avatar", picture(size=(64, 64)), Authorization=f"Bearer {token}")
            done.append(number)

    thread = threading.Thread(target=people)
    thread.start()
    counts: list[int] = []
    try:
        while len(counts) < 3:
            file = tmp_path / f"backup{len(counts)}.tar"
            eventually(lambda: len(done) > 2 * len(counts), "the gateway makes accounts", 60)
            least = len(done)
            assert main(["backup", str(file), "--data", str(settings.data_dir)]) == 0
            told = backups.unpack(file, tmp_path / f"unpacked{len(counts)}")
            with closing(sqlite3.connect(tmp_path / f"unpacked{len(counts)}" / "outboard.db")) as db:
                pictures = db.execute("select count(distinct avatar_sha256) from users").fetchone()[0]
            assert told.users >= least and told.files == 2 + pictures
            counts.append(told.users)
    finally:
        stop.set()
        thread.join()
    assert counts == sorted(counts) and counts[0] > 0
    assert restore(settings, tmp_path / "backup2.tar") == 1, "a gateway runs"
    assert gateway.program.stop() == 0
    assert restore(settings, tmp_path / "backup2.tar") == 0
    gateway = gateways(replace(gateway.settings, http_port=free_port()))
    body = json.dumps({"username": "user1", "password": PASSWORD})
    assert ask("POST", "/v1/tokens", body, **{"Content-Type": "application/json"})["access_token"]
