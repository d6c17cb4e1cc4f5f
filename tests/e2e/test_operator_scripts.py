"""The operator's verbs against a real server: by RPC and as scripts."""

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_client import Client
from outboard.__main__ import main
from outboard.models_copy import Meter
from tests.e2e.conftest import Run, rows, served
from tests.eventually import eventually
from tests.onnx_models import slow, times
from tests.processes import ROOT, Process, environment, start_server


def test_push_takes_the_next_version_and_rollback_goes_back(outboard: Run, client: Client, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        code, out, err = outboard("push", times(tmp_path / "m.onnx", version), "--name", "pushed")
        assert code == 0, err
        assert f"pushed/{version}/model.onnx: copied, SHA-256 verified" in out
        assert f"pushed: version {version} serves; smoke test " in out
        assert f"pushed/{version}/model.onnx: 100 %" in err
        assert served(client, "pushed") == (str(version), version)
    before, after = out.split("after:")
    assert ["pushed", "2", "READY", "default"] in rows(before)
    assert ["pushed", "3", "READY", "default"] in rows(after)
    assert ["pushed", "2", "UNAVAILABLE", "not", "loaded"] in rows(after) or ["pushed", "2", "UNLOADING"] in rows(after)

    code, _, err = outboard("rollback", "--name", "pushed")
    assert code == 0
    assert "version 3 stays in the repository" in err
    assert served(client, "pushed") == ("2", 2)
    assert outboard("rollback", "--name", "pushed", "--to", 3)[0] == 0
    assert served(client, "pushed") == ("3", 3)
    assert outboard("rollback", "--name", "pushed", "--to", 1)[0] == 0
    code, _, err = outboard("rollback", "--name", "pushed")
    assert (code, served(client, "pushed")) == (1, ("1", 1))
    assert "no version below 1, which goes on serving" in err
    code, _, err = outboard("rollback", "--name", "pushed", "--to", 9)
    assert (code, served(client, "pushed")) == (1, ("1", 1))
    assert "has no version 9; it has 1, 2, 3" in err

    code, out, _ = outboard("reload", "--name", "pushed")
    assert (code, served(client, "pushed")) == (0, ("3", 3))


def test_a_version_is_pushed_once(outboard: Run, client: Client, repository: Path, tmp_path: Path) -> None:
    file = times(tmp_path / "m.onnx", 5)
    assert outboard("push", file, "--name", "once", "--version", 4)[0] == 0
    code, out, _ = outboard("push", file, "--name", "once", "--version", 4)
    assert code == 0
    assert "the same bytes were there already" in out
    code, _, err = outboard("push", times(file, 6), "--name", "once", "--version", 4)
    assert code == 1
    assert "already_exists" in err
    assert served(client, "once") == ("4", 5)
    assert [path.name for path in (repository / "once" / "4").iterdir()] == ["model.onnx"]


def test_an_older_version_can_be_pushed(outboard: Run, client: Client, tmp_path: Path) -> None:
    assert outboard("push", times(tmp_path / "m.onnx", 7), "--name", "older", "--version", 7)[0] == 0
    assert outboard("push", times(tmp_path / "m.onnx", 2), "--name", "older", "--version", 2)[0] == 0
    assert served(client, "older") == ("2", 2)


def test_a_file_that_is_no_model_leaves_the_old_version_serving(outboard: Run, client: Client, tmp_path: Path) -> None:
    assert outboard("push", times(tmp_path / "m.onnx", 2), "--name", "sound")[0] == 0
    (tmp_path / "bad.onnx").write_bytes(b"not a model" * 1000)
    code, _, err = outboard("push", tmp_path / "bad.onnx", "--name", "sound")
    assert code == 1
    assert "invalid_model" in err
    assert "sound: version 1 goes on serving" in err
    assert served(client, "sound") == ("1", 2)
    code, _, err = outboard("push", tmp_path / "bad.onnx", "--name", "unheard-of")
    assert code == 1
    assert "nothing of it serves, as before" in err


def test_copy_without_loading(outboard: Run, client: Client, tmp_path: Path) -> None:
    assert outboard("push", times(tmp_path / "m.onnx", 2), "--name", "copied")[0] == 0
    code, out, _ = outboard("push", times(tmp_path / "m.onnx", 3), "--name", "copied", "--no-load")
    assert code == 0
    assert "version 2 is copied and not loaded" in out
    assert served(client, "copied") == ("1", 2)
    assert outboard("reload", "--name", "copied")[0] == 0
    assert served(client, "copied") == ("2", 3)


def test_settings_travel_with_the_model(outboard: Run, client: Client, repository: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text('description = "said by its owner"\n')
    code, _, err = outboard("push", times(tmp_path / "m.onnx", 2), "--name", "settled", "--model-toml", settings)
    assert code == 0, err
    assert "said by its owner" in client.model_config("settled")["parameters"]["outboard"]["string_value"]
    settings.write_text('description = "something else"\n')
    code, _, err = outboard("push", times(tmp_path / "m.onnx", 3), "--name", "settled", "--model-toml", settings)
    assert code == 1
    assert "already_exists" in err
    assert sorted(path.name for path in (repository / "settled").iterdir()) == ["1", "model.toml"], "the settings are refused first"


def test_a_version_that_the_policy_does_not_choose_is_not_left_half_served(outboard: Run, client: Client, tmp_path: Path) -> None:
    """What served before serves afterwards: the same, put back, or nothing."""
    settings = tmp_path / "model.toml"
    settings.write_text("version_policy = { specific = [2, 9] }\n")
    assert outboard("push", times(tmp_path / "m.onnx", 1), "--name", "ruled", "--no-load")[0] == 0
    assert outboard("push", times(tmp_path / "m.onnx", 2), "--name", "ruled", "--no-load", "--model-toml", settings)[0] == 0
    code, _, err = outboard("push", times(tmp_path / "m.onnx", 3), "--name", "ruled")
    assert code == 1
    assert "version 3 does not serve, version 2 does: its version policy (model.toml) or its labels decide" in err
    assert "unloaded, as nothing of it served before" in err
    assert not client.model_ready("ruled")

    assert outboard("rollback", "--name", "ruled", "--to", 1)[0] == 0
    code, _, err = outboard("push", times(tmp_path / "m.onnx", 4), "--name", "ruled")
    assert code == 1
    assert "version 1, which served before, was put back" in err
    assert served(client, "ruled") == ("1", 1)


def test_rollback_drops_no_request(outboard: Run, client: Client, tmp_path: Path) -> None:
    for version in (1, 2):
        assert outboard("push", times(tmp_path / "m.onnx", version), "--name", "steady")[0] == 0
    stop, seen, failures = threading.Event(), set(), []

    def ask() -> None:
        while not stop.is_set():
            try:
                seen.add(served(client, "steady"))
            except Exception as error:  # noqa: BLE001 - any failure at all is what this looks for
                failures.append(error)

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        codes = [outboard(verb, "--name", "steady")[0] for _ in range(5) for verb in ("rollback", "reload")]
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert not failures
    assert codes == [0] * 10
    assert seen == {("1", 1.0), ("2", 2.0)}


def test_list_and_smoke_test(outboard: Run, repository: Path, tmp_path: Path) -> None:
    code, out, _ = outboard("list")
    assert code == 0
    assert ["first", "1", "READY", "default"] in rows(out)
    assert outboard("list", "--name", "no-such-model")[0] == 1
    code, out, _ = outboard("smoke-test", "--name", "first")
    assert code == 0
    assert [row[:3] for row in rows(out)[1:]] == [["first", "1", "ok"]]
    code, _, err = outboard("smoke-test", "--name", "no-such-model")
    assert code == 1
    assert "no model is ready" in err


def test_smoke_test_says_which_model_fails(outboard: Run, tmp_path: Path) -> None:
    assert outboard("push", slow(tmp_path / "m.onnx", 3000), "--name", "sluggish")[0] == 0
    code, out, _ = outboard("smoke-test", "--timeout", 0.02)
    assert code == 1
    results = {row[0]: row[2] for row in rows(out)[1:]}
    assert results["sluggish"] == "deadline_exceeded:"
    assert outboard("smoke-test", "--name", "sluggish")[0] == 0


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["push", "/no/such/file", "--name", "m"], "not a file"),
        (["push", "EMPTY", "--name", "m"], "an empty one"),
        (["push", "FILE", "--name", "../m"], "invalid_input"),
        (["push", "FILE", "--name", "m", "--ssh", "somebody@somewhere"], "--ssh and --ssh-path belong together"),
        (["reload", "--name", "no-such-model"], "model_not_found"),
        (["rollback", "--name", "no-such-model"], "has no version of"),
    ],
)
def test_what_cannot_be_done_is_said(outboard: Run, tmp_path: Path, arguments: list[str], reason: str) -> None:
    (tmp_path / "EMPTY").touch()
    times(tmp_path / "FILE", 2)
    code, _, err = outboard(*(str(tmp_path / word) if word in ("EMPTY", "FILE") else word for word in arguments))
    assert code == 1
    assert reason in err
    assert "Traceback" not in err


def test_a_host_that_is_down_and_a_wrong_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--host", "grpc+unix:///no/such/socket"]) == 1
    assert "unavailable: the model host cannot be reached" in capsys.readouterr().err
    assert main(["models", "list", "--host", "nowhere"]) == 1
    with pytest.raises(SystemExit) as caught:
        main(["models", "rollback", "--name", "m", "--to", "0"])
    assert caught.value.code == 2


@contextlib.contextmanager
def half_way(address: str, most: int) -> Iterator[tuple[str, threading.Event]]:
    """A way to `address` that passes on `most` bytes of one connection and then stands still; the event is set by then."""
    host, _, port = address.rpartition(":")
    still, ending = threading.Event(), threading.Event()

    def pump(source: socket.socket, target: socket.socket, left: float, stands: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while left > 0 and (data := source.recv(65536)):
                target.sendall(data)
                left -= len(data)
            if left <= 0:
                stands.set()
                ending.wait()

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection((host, int(port))) as there:

        def carry() -> None:
            with contextlib.suppress(OSError):
                here, _ = listener.accept()
                with here:
                    back = threading.Thread(target=pump, args=(there, here, float("inf"), threading.Event()))
                    back.start()
                    pump(here, there, most, still)
                    there.shutdown(socket.SHUT_RDWR)
                    back.join()

        carrier = threading.Thread(target=carry)
        carrier.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", still
        finally:
            ending.set()
            listener.shutdown(socket.SHUT_RDWR)
            carrier.join()


def test_ctrl_c_half_way_leaves_nothing(server: Process, repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "large.onnx"
    with file.open("wb") as sparse:
        sparse.truncate(64 * 2**20)
    with half_way(server["grpc"], 16 * 2**20) as (address, stands_still):
        # a shell's background jobs, and what they start, are born deaf to it
        hearing = ["env", "--default-signal=INT", sys.executable]
        command = [*hearing, "-m", "outboard", "models", "push", str(file), "--name", "interrupted", "--host", address]
        push = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        assert stands_still.wait(30)
        assert list((repository / "interrupted").rglob("*.part")), "half of it is there"
        push.send_signal(signal.SIGINT)
        _, err = push.communicate(timeout=30)
        assert push.returncode == 130
        assert "interrupted" in err
        assert "Traceback" not in err
    with Client(server["grpc"]) as client:

        def gone() -> bool:
            assert "interrupted" not in {entry.name for entry in client.repository_index()}
            return not (repository / "interrupted").exists()

        eventually(gone, "the server hears of the end of the call in its own time, and removes what it has")


def test_the_scripts(server: Process, tmp_path: Path) -> None:
    def script(name: str, *arguments: object) -> str:
        command = ["bash", str(ROOT / "scripts" / name), *map(str, arguments), "--host", server["grpc"]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for version in (1, 2):
        assert f"version {version} serves" in script("push-model", times(tmp_path / "m.onnx", version), "--name", "scripted")
    assert "version 1 serves" in script("rollback-model", "--name", "scripted")
    assert "version 2 serves" in script("reload-model", "--name", "scripted")
    assert ["scripted", "2", "READY", "default"] in rows(script("list-models"))
    assert ["scripted", "2", "ok"] in [row[:3] for row in rows(script("smoke-test", "--name", "scripted"))]


def test_a_token_is_asked_for_and_taken_from_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times(tmp_path / "models" / "m" / "1" / "model.onnx", 1)
    guarded = start_server(tmp_path / "models", tmp_path, OUTBOARD_SERVER_TOKEN="secret")
    try:
        command = ["models", "list", "--host", guarded["grpc"]]
        assert main(command) == 1
        assert "unauthenticated" in capsys.readouterr().err
        assert main([*command, "--token", "secret"]) == 0
        monkeypatch.setenv("OUTBOARD_TOKEN", "secret")
        assert main(command) == 0
        assert main([*command, "--token", "wrong"]) == 1
    finally:
        guarded.stop()


def test_the_meter_is_a_bar_on_a_terminal_and_lines_elsewhere(tmp_path: Path) -> None:
    def run(stream: object) -> None:
        times = iter(range(1000))
        meter = Meter("m", stream, lambda: float(next(times)))  # type: ignore[arg-type]
        for sent in range(0, 1_000_001, 10_000):
            meter(sent, 1_000_000)
        meter.close()

    with (tmp_path / "log").open("w") as log:
        run(log)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split("%")[0].split()[-1] for line in lines] == ["0", "25", "50", "75", "100"]
    assert lines[-1].startswith("m: 100 %  1.0 MB of 1.0 MB  ")
    terminal, other = pty.openpty()
    pieces: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # how a terminal says that its other end is closed
            while piece := os.read(terminal, 65536):
                pieces.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(other, "w") as stream:
        run(stream)
    reader.join()
    os.close(terminal)
    shown = b"".join(pieces).decode()
    assert "\r" in shown
    assert f"[{'#' * 15}{'.' * 15}]" in shown
    assert shown.endswith("\r\n")
