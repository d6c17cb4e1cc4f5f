"""`outboard models` where something stands in the way: versions that do not load, labels that decide, options that are misspelt."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from inference_client import Client
from outboard.__main__ import main
from tests.e2e.conftest import Run, served
from tests.onnx_models import save, times
from tests.processes import ROOT, Process, environment


def junk(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not a model" * 1000)
    return path


def picky(path: Path) -> Path:
    """Loads, and fails on the zeros of a smoke test: it gathers the element number x - 1 of one."""
    from onnx import TensorProto, helper, numpy_helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.INT64, ("n",)) for name in "xy")
    one, data = (numpy_helper.from_array(np.array([value], np.int64), name) for value, name in ((5, "five"), (7, "data")))
    nodes = [helper.make_node("Sub", ["x", "five"], ["i"]), helper.make_node("Gather", ["data", "i"], ["y"])]
    return save(helper.make_graph(nodes, "picky", [x], [y], [one, data]), path)


def test_rollback_passes_over_what_cannot_serve(outboard: Run, client: Client, tmp_path: Path) -> None:
    for version in (1, 2):
        assert outboard("push", times(tmp_path / "m.onnx", version), "--name", "m")[0] == 0
    code, _, err = outboard("push", junk(tmp_path / "bad.onnx"), "--name", "m")
    assert code == 1
    assert "m: version 2 goes on serving" in err
    assert "invalid_model: model 'm' version 3: " in err
    assert "m: version 3 stays in the repository: push a higher one, or remove its folder on the host" in err
    code, _, err = outboard("push", picky(tmp_path / "picky.onnx"), "--name", "m")
    assert code == 1
    assert "version 4 was loaded and failed its smoke test" in err
    assert outboard("push", times(tmp_path / "m.onnx", 5), "--name", "m")[0] == 0

    code, out, err = outboard("rollback", "--name", "m")
    assert (code, served(client, "m")) == (0, ("2", 2)), err
    assert "m: version 2 serves; smoke test " in out
    assert "m: version 4 is passed over: version 4 was loaded and failed its smoke test: " in err
    assert "m: version 3 is passed over: invalid_model: model 'm' version 3: " in err
    assert "m: version 5 stays in the repository" in err
    code, _, err = outboard("rollback", "--name", "m", "--to", 3)
    assert (code, served(client, "m")) == (1, ("2", 2))
    assert "invalid_model: model 'm' version 3: " in err and "passed over" not in err


def test_rollback_with_nothing_sound_below_changes_nothing(outboard: Run, client: Client, repository: Path, tmp_path: Path) -> None:
    junk(repository / "bottom" / "1" / "model.onnx")
    assert outboard("push", times(tmp_path / "m.onnx", 2), "--name", "bottom")[0] == 0
    code, _, err = outboard("rollback", "--name", "bottom")
    assert (code, served(client, "bottom")) == (1, ("2", 2))
    assert "bottom: version 2 goes on serving" in err and "invalid_model: model 'bottom' version 1: " in err


def test_the_way_out_of_a_refused_push(outboard: Run, client: Client, repository: Path, tmp_path: Path) -> None:
    assert outboard("push", times(tmp_path / "m.onnx", 1), "--name", "stuck")[0] == 0
    assert outboard("push", junk(tmp_path / "bad.onnx"), "--name", "stuck")[0] == 1
    code, _, err = outboard("reload", "--name", "stuck")
    assert code == 1 and "model 'stuck' version 2: " in err
    (repository / "stuck" / "2" / "model.onnx").unlink()
    (repository / "stuck" / "2").rmdir()
    assert outboard("reload", "--name", "stuck")[0] == 0
    assert served(client, "stuck") == ("1", 1)


def test_a_push_under_labels_is_loaded_and_tested(outboard: Run, client: Client, tmp_path: Path) -> None:
    settings = tmp_path / "model.toml"
    settings.write_text("version_policy = { latest = 2 }\n")
    assert outboard("push", times(tmp_path / "m.onnx", 1), "--name", "split", "--model-toml", settings)[0] == 0
    assert outboard("push", times(tmp_path / "m.onnx", 2), "--name", "split")[0] == 0
    assert outboard("labels", "--name", "split", "--stable", 1, "--canary", 2, "--percent", 10)[0] == 0
    code, out, err = outboard("push", times(tmp_path / "m.onnx", 3), "--name", "split")
    assert code == 0, err
    assert "split: version 3 is loaded and tested; smoke test " in out
    assert "split: labels decide who gets it: outboard models labels --name split ..." in out
    assert served(client, "split", "3") == ("3", 3) and served(client, "split", "stable") == ("1", 1)
    code, _, err = outboard("push", picky(tmp_path / "picky.onnx"), "--name", "split")
    assert code == 1
    assert "version 4 was loaded and failed its smoke test" in err


def test_without_labels_those_of_the_settings_hold(outboard: Run, client: Client, repository: Path) -> None:
    for version in (1, 2):
        times(repository / "named" / str(version) / "model.onnx", version)
    (repository / "named" / "model.toml").write_text(
        'version_policy = "all"\ncanary_percent = 30\nversion_labels = { stable = 1, canary = 2 }\n'
    )
    assert outboard("reload", "--name", "named")[0] == 0
    assert outboard("labels", "--name", "named", "--stable", 2)[0] == 0
    assert served(client, "named", "stable") == ("2", 2)
    code, out, _ = outboard("labels", "--name", "named", "--none")
    assert (code, out) == (0, "named: the labels of its settings hold: canary=2 (30 %), stable=1\n")
    assert served(client, "named", "stable") == ("1", 1)


def test_what_is_printed_comes_in_order(server: Process, tmp_path: Path) -> None:
    def run(*arguments: object) -> list[str]:
        command = [sys.executable, "-m", "outboard", "models", *map(str, arguments), "--host", server["grpc"]]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), cwd=ROOT)
        assert done.returncode == 1
        return done.stdout.splitlines()

    assert run("reload", "--name", "nobody")[0] == "before: nothing"
    lines = run("push", junk(tmp_path / "bad.onnx"), "--name", "ordered")
    copied = lines.index("ordered/1/model.onnx: copied, SHA-256 verified")
    assert lines[0] == "before: nothing" and all("invalid_model" not in line for line in lines[:copied])
    assert "invalid_model" in "".join(lines[copied:])


@pytest.mark.parametrize(
    ("words", "usage"),
    [(["up", "--modles", "x"], "usage: outboard up "), (["models", "list", "--nam", "m", "y"], "usage: outboard models list ")],
)
def test_a_misspelt_option_shows_the_usage_of_its_verb(words: list[str], usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(usage) and "unrecognized arguments: " in said
