"""What storage promises, on real files, with other threads and processes at the same file."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlite_utils import Database as SqliteDatabase

from gateway.operations.users import token_hash
from gateway.storage import Storage, sessions
from gateway.storage.schema import migrations
from gateway.storage.sessions import Rotation
from gateway.types import Role
from idl.codes import Code, ServingError
from tests.gateway.conftest import ROOT

NOW = datetime(2026, 11, 21, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def storage(folder: Path) -> Iterator[Storage]:
    made = Storage(folder, busy_timeout_s=10)
    yield made
    made.close()
    assert not open_files(folder), "connections left open"


def open_files(folder: Path) -> list[str]:
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link for link in links if link.startswith(str(folder))]


def python(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Another process that runs `code`, told to go on by a line on its standard input."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def together(code: str, count: int, *arguments: object) -> list[str]:
    """Runs `code` in `count` processes that begin at once; what each of them printed."""
    processes = [python(code, *arguments) for _ in range(count)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return printed


BEGIN = """
import sys
from pathlib import Path
from gateway.storage import Storage
storage = Storage(Path(sys.argv[1]), busy_timeout_s=30)
print("ready", flush=True)
sys.stdin.readline()
"""


def test_nothing_is_touched_before_the_first_use(folder: Path, storage: Storage) -> None:
    assert not folder.exists()
    storage.users.by_name("ann")
    assert (folder / "outboard.db").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_how_connections_are_set_up(storage: Storage) -> None:
    with storage.database.write() as db:
        values = {
            name: db.execute(f"pragma {name}").fetchone()[0] for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
    assert values == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 2, "busy_timeout": 10_000}


def test_processes_that_come_first_together_make_one_database(folder: Path) -> None:
    code = BEGIN + "print(storage.users.by_name('x'), storage.secret())"
    printed = together(code, 4, folder)
    assert len(set(printed)) == 1 and printed[0].startswith("None ")
    assert (folder / "secret").stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(folder / "outboard.db") as db:
        applied = [name for (name,) in db.execute("select name from _sqlite_migrations")]
    db.close()
    assert applied == sorted(set(applied)) and applied[0] == "m001_users"


def test_an_older_database_is_brought_up_to_date(folder: Path, storage: Storage) -> None:
    folder.mkdir()
    old = SqliteDatabase(folder / "outboard.db")
    migrations.apply(old, stop_before="m002_sessions")
    old.execute("insert into users (name, password_hash, role, created_at, updated_at) values ('ann', 'x', 'user', 't', 't')")
    old.close()
    storage.database.probe()
    user = storage.users.by_name("ann")
    assert user is not None
    storage.sessions.begin("s", user.id, "h", NOW, NOW + DAY)


def test_a_migration_that_fails_leaves_nothing_behind(folder: Path, storage: Storage) -> None:
    folder.mkdir()
    broken = SqliteDatabase(folder / "outboard.db")
    broken.execute("create table signups (something text)")
    broken.close()
    with pytest.raises(ServingError):
        storage.database.probe()
    with sqlite3.connect(folder / "outboard.db") as db:
        assert [name for (name,) in db.execute("select name from sqlite_master where type = 'table'")] == ["signups"]
        db.execute("drop table signups")
    db.close()
    storage.database.probe()


def test_a_newer_database_is_refused(folder: Path, storage: Storage) -> None:
    storage.database.probe()
    with storage.database.write() as db:
        db.execute("insert into _sqlite_migrations (migration_set, name, applied_at) values ('gateway', 'm999_future', 't')")
    other = Storage(folder)
    with pytest.raises(ServingError, match="newer version"):
        other.database.probe()
    other.close()


def test_a_write_waits_for_another_and_sees_what_it_wrote(storage: Storage) -> None:
    """A deferred transaction fails here at once: it has read before the other one committed."""
    reading, written = threading.Event(), []

    def second() -> None:
        reading.set()
        with storage.database.write() as db:
            written.append(db.execute("select count(*) from signups").fetchone()[0])
            db.execute("insert into signups values ('second', 'user', 't', 't', null)")

    with storage.database.write() as db:
        assert db.execute("select count(*) from signups").fetchone()[0] == 0
        thread = threading.Thread(target=second)
        thread.start()
        reading.wait()
        db.execute("insert into signups values ('first', 'user', 't', 't', null)")
    thread.join()
    assert written == [1]


def test_an_exception_takes_the_transaction_back(storage: Storage) -> None:
    with pytest.raises(KeyError), storage.database.write() as db:
        db.execute("insert into signups values ('x', 'user', 't', 't', null)")
        raise KeyError
    with storage.database.read() as db:
        assert db.execute("select count(*) from signups").fetchone()[0] == 0
    storage.database.probe()


def test_the_probe_writes_and_takes_it_back(storage: Storage) -> None:
    storage.database.probe()
    with storage.database.read() as db:
        assert db.execute("select count(*) from attempts").fetchone()[0] == 0


def test_two_processes_lose_no_write(folder: Path, storage: Storage) -> None:
    code = BEGIN + "for _ in range(100): storage.attempts.take('k', 1000.0, burst=10**6, interval_s=1.0)"
    together(code, 2, folder)
    with storage.database.read() as db:
        assert db.execute("select clear_at from attempts").fetchone()[0] == 1200.0


def test_threads_share_the_storage(storage: Storage) -> None:
    def work(number: int) -> None:
        for _ in range(25):
            storage.attempts.take("k", 1000.0, burst=10**6, interval_s=1.0)
            storage.users.by_id(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    with storage.database.read() as db:
        assert db.execute("select clear_at from attempts").fetchone()[0] == 1200.0


def test_a_writer_that_is_killed_leaves_no_trace_and_no_lock(folder: Path, storage: Storage) -> None:
    code = BEGIN.replace('print("ready", flush=True)', "") + (
        "with storage.database.write() as db:\n"
        "    for number in range(1000):\n"
        "        db.execute('insert into signups values (?, ?, ?, ?, null)', [str(number), 'user', 't', 't' * 1000])\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = python(code, folder)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ready\n"
    impatient = Storage(folder, busy_timeout_s=0.05)
    with pytest.raises(ServingError) as refused:
        impatient.database.probe()
    assert (refused.value.code, refused.value.message) == (Code.UNAVAILABLE, "the database is busy")
    assert refused.value.retry_after_ms > 0
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    impatient.database.probe()
    with impatient.database.read() as db:
        assert db.execute("select count(*) from signups").fetchone()[0] == 0
        assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
    impatient.close()


@pytest.mark.parametrize("hindrance", ["pragma max_page_count = 1", "pragma query_only = on"], ids=["disk full", "read only"])
def test_a_disk_that_takes_no_writes_is_told_without_a_path(folder: Path, storage: Storage, hindrance: str) -> None:
    storage.database.probe()
    with pytest.raises(ServingError) as refused, storage.database.read() as db:
        db.execute(hindrance)
        db.execute("begin immediate")
        for number in range(200):
            db.execute("insert into signups values (?, 'user', 't', ?, null)", [str(number), "t" * 1000])
    assert (refused.value.code, refused.value.message) == (Code.UNAVAILABLE, "the database cannot be used")
    with storage.database.read() as db:
        assert db.execute("select count(*) from signups").fetchone()[0] == 0
    storage.database.probe()


@pytest.mark.parametrize(
    "spoil", [lambda path: path.parent.write_text("a file"), lambda path: (path.parent.mkdir(), path.write_text("x" * 5000))]
)
def test_a_file_that_is_no_database_is_told(folder: Path, spoil: Callable[[Path], object]) -> None:
    spoil(folder / "outboard.db")
    spoilt = Storage(folder)
    with pytest.raises(ServingError, match=r"^the database cannot be used$"):
        spoilt.database.probe()
    spoilt.close()


def test_a_connection_does_not_cross_a_fork(storage: Storage) -> None:
    storage.database.probe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            storage.users.by_id(1)
        except RuntimeError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_close_is_final_and_may_be_repeated(storage: Storage) -> None:
    with storage.database.read() as db:
        storage.close()
        assert db.execute("select 1").fetchone()[0] == 1, "what is lent is closed when it comes back"
    storage.close()
    with pytest.raises(RuntimeError):
        storage.users.by_id(1)


def test_one_name_is_given_once(folder: Path, storage: Storage) -> None:
    code = BEGIN + (
        "from datetime import datetime, UTC\nfrom gateway.types import Role\nfrom idl.codes import ServingError\n"
        "try: print(storage.users.create('ann', None, 'x', Role.USER, datetime.now(UTC)).name)\n"
        "except ServingError as error: print(error.code)\n"
    )
    assert sorted(together(code, 3, folder)) == ["already_exists\n", "already_exists\n", "ann\n"]


def test_one_refresh_token_is_used_once(storage: Storage) -> None:
    user = storage.users.create("ann", None, "x", Role.USER, NOW)
    storage.sessions.begin("s", user.id, token_hash("first"), NOW, NOW + DAY)
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(
            pool.map(lambda n: storage.sessions.rotate(token_hash("first"), token_hash(f"next{n}"), NOW, NOW + DAY).outcome, range(4))
        )
    assert outcomes.count(Rotation.DONE) == 1 and outcomes.count(Rotation.REUSED) == 1
    assert storage.sessions.principal("s") is None


def test_what_has_expired_is_cleared_away(storage: Storage) -> None:
    user = storage.users.create("ann", None, "x", Role.USER, NOW)
    storage.sessions.begin("old", user.id, "o", NOW, NOW + DAY)
    storage.sessions.begin("kept", user.id, "0", NOW, NOW + DAY)
    for step in range(1, 5):
        rotated = storage.sessions.rotate(str(step - 1), str(step), NOW + step * DAY * 0.6, NOW + step * DAY * 0.6 + DAY)
        assert rotated.outcome is Rotation.DONE
    storage.sessions.begin("new", user.id, "n", NOW + 2 * DAY, NOW + 3 * DAY)
    with storage.database.read() as db:
        assert {row["id"] for row in db.execute("select id from sessions")} == {"kept", "new"}
        assert db.execute("select count(*) from refresh_tokens where session_id = 'kept'").fetchone()[0] <= 3
    storage.attempts.take("a", 0.0, burst=1, interval_s=1.0)
    storage.attempts.take("b", 10.0, burst=1, interval_s=1.0)
    with storage.database.read() as db:
        assert [row["key"] for row in db.execute("select key from attempts")] == ["b"]


def test_sign_ins_of_one_user_are_bounded(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST", 3)
    ann, bob = (storage.users.create(name, None, "x", Role.USER, NOW) for name in ("ann", "bob"))
    storage.sessions.begin("bob", bob.id, "b", NOW, NOW + DAY)
    for number in range(5):
        mark = storage.principals.read()
        storage.sessions.begin(f"s{number}", ann.id, f"t{number}", NOW, NOW + DAY)
        assert (storage.principals.read() == mark) is (number < 3), "who remembers the one that ended has to look again"
    assert [name for name in ("s0", "s1", "s2", "s3", "s4", "bob") if storage.sessions.principal(name)] == ["s2", "s3", "s4", "bob"]


def test_refresh_tokens_of_one_sign_in_are_bounded(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST_TOKENS", 3)
    user = storage.users.create("ann", None, "x", Role.USER, NOW)
    storage.sessions.begin("s", user.id, "t0", NOW, NOW + DAY)
    for number in range(1, 10):
        assert storage.sessions.rotate(f"t{number - 1}", f"t{number}", NOW, NOW + DAY).outcome is Rotation.DONE
    with storage.database.read() as db:
        assert db.execute("select count(*) from refresh_tokens").fetchone()[0] == 3
    assert storage.sessions.rotate("t3", "x", NOW, NOW + DAY).outcome is Rotation.INVALID
    assert storage.sessions.principal("s") is not None
    assert storage.sessions.rotate("t8", "x", NOW, NOW + DAY).outcome is Rotation.REUSED
