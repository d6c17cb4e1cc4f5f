"""`outboard models instances|labels|capacity` against a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_client import Client
from tests.e2e.conftest import Run, X, rows
from tests.onnx_models import times
from tests.processes import Process, start_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("host")
    for version in (1, 2, 3):
        times(folder / "models" / "m" / str(version) / "model.onnx", version)
    (folder / "models" / "m" / "model.toml").write_text('version_policy = { specific = [1, 2] }\ncpus = 0.25\nmemory = "300MiB"\n')
    times(folder / "models" / "plain" / "1" / "model.onnx", 1)
    made = start_server(folder / "models", folder)
    yield made
    assert made.stop() == 0, made.log.read_text()


def instances(client: Client, model: str = "m") -> dict[str, int]:
    return {each.version: each.instances for each in client.capacity().models if each.name == model}


def test_capacity_shows_who_has_what(outboard: Run, client: Client) -> None:
    code, out, _ = outboard("capacity")
    assert code == 0
    host, models = out.split("\n\n")
    cpus = next(line for line in rows(host) if line[0] == "cpus")
    assert [float(each) for each in cpus[1:4]] == [client.capacity().cpus, 0.5, client.capacity().cpus - 0.5]
    assert next(line for line in rows(host) if line[0] == "memory")[3:5] == ["600.0", "MiB"]
    found = {tuple(line[:4]): " ".join(line[7:]) for line in rows(models)[1:]}
    assert found == {
        ("m", "1", "READY", "1"): "0.25 cpus, 300.0 MiB",
        ("m", "2", "READY", "1"): "0.25 cpus, 300.0 MiB",
        ("plain", "1", "READY", "1"): "",
    }
    code, out, _ = outboard("capacity", "--name", "plain")
    assert code == 0 and [line[0] for line in rows(out.split("\n\n")[1])] == ["MODEL", "plain"]
    code, _, err = outboard("capacity", "--name", "nobody")
    assert code == 1 and "nothing of 'nobody' is loaded" in err


def test_instances_change_while_the_model_serves(outboard: Run, client: Client) -> None:
    code, out, err = outboard("instances", "--name", "m", 2)
    assert code == 0, err
    before, after = out.split("after:")
    assert [line[3] for line in rows(before)[2:]] == ["1", "1"] and [line[3] for line in rows(after)[2:]] == ["2", "2"]
    assert instances(client) == {"1": 2, "2": 2}
    assert outboard("instances", "--name", "m", 1, "--version", 1)[0] == 0
    assert instances(client) == {"1": 1, "2": 2}
    code, _, err = outboard("instances", "--name", "m", 1000)
    assert code == 1 and "insufficient_capacity" in err and "'m' version" in err
    assert instances(client) == {"1": 1, "2": 2}, "a refusal changes nothing"
    assert outboard("instances", "--name", "m", 1)[0] == 0
    assert instances(client) == {"1": 1, "2": 1} and instances(client, "plain") == {"1": 1}
    code, _, err = outboard("instances", "--name", "nobody", 2)
    assert code == 1 and "model_not_found" in err
    for wrong in (0, 1025, "many"):
        with pytest.raises(SystemExit) as ended:
            outboard("instances", "--name", "m", wrong)
        assert ended.value.code == 2


def answers(client: Client, count: int, version: str = "") -> dict[str, int]:
    """version -> how many of so many requests it answered."""
    found: dict[str, int] = {}
    for _ in range(count):
        answered = client.infer("m", {"x": X}, version=version).model_version
        found[answered] = found.get(answered, 0) + 1
    return found


def test_labels_name_versions_and_share_the_requests(outboard: Run, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert answers(client, 20) == {"2": 20}, "the highest, without labels"
    code, out, err = outboard("labels", "--name", "m", "--stable", 1, "--canary", 2, "--percent", 30, "--label", "best=1")
    assert code == 0, err
    assert out == "m: stable is version 1, canary is version 2 for 30 % of the requests without a version, best is version 1\n"
    code, out, _ = outboard("list", "--name", "m")
    assert [line[3:5] for line in rows(out)[1:3]] == [["70", "%"], ["30", "%"]] and rows(out)[3][2] == "UNAVAILABLE"
    shared = answers(client, 400)
    assert set(shared) == {"1", "2"} and 60 <= shared["2"] <= 180, "120 of 400 on the average"
    assert answers(client, 5, "canary") == {"2": 5} and answers(client, 5, "best") == {"1": 5}
    assert outboard("labels", "--name", "m", "--stable", 1)[0] == 0
    assert answers(client, 50) == {"1": 50}, "back at once"
    assert [line[3] for line in rows(outboard("list", "--name", "m")[1]) if len(line) == 4 and line[2] == "READY"] == ["default"]
    code, _, err = outboard("labels", "--name", "m", "--stable", 3)
    assert code == 1 and "conflict" in err and "loaded are 1, 2; version_policy in model.toml says which are" in err
    code, _, err = outboard("labels", "--name", "m", "--canary", 2, "--percent", 10)
    assert code == 1 and "invalid_input" in err
    for wrong in ([], ["--none", "--stable", 1]):
        code, _, err = outboard("labels", "--name", "m", *wrong)
        assert code == 1 and "or --none" in err
    for wrong, said in (
        (["--label", "=3"], "'=3' is not NAME=VERSION"),
        (["--label", "stable"], "'stable' is not NAME=VERSION"),
        (["--label", "x=0"], "'0' is not a whole number from 1"),
        (["--percent", 101], "'101' is not a whole number"),
    ):
        with pytest.raises(SystemExit) as ended:
            outboard("labels", "--name", "m", *wrong)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    code, out, _ = outboard("labels", "--name", "m", "--none")
    assert (code, out) == (0, "m: no labels\n")
    assert answers(client, 20) == {"2": 20}


def test_labels_hold_over_a_restart(tmp_path: Path) -> None:
    for version in (1, 2):
        times(tmp_path / "models" / "m" / str(version) / "model.onnx", version)
    (tmp_path / "models" / "m" / "model.toml").write_text('version_policy = "all"\n')
    server = start_server(tmp_path / "models", tmp_path)
    with Client(server["grpc"]) as client:
        client.set_labels("m", {"stable": 1, "canary": 2}, 100)
        assert answers(client, 10) == {"2": 10}
        client.set_labels("m", {"stable": 1})
    assert server.stop() == 0
    server = start_server(tmp_path / "models", tmp_path)
    with Client(server["grpc"]) as client:
        assert answers(client, 10) == {"1": 10} and answers(client, 1, "stable") == {"1": 1}
    assert server.stop() == 0
