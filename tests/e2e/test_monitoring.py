"""The dashboard and the alerts ask for nothing that a running server and gateway do not have."""

import json
import re
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from idl.codes import ServingError
from inference_client import Client
from inference_server.gpus import Gpus
from inference_server.metrics import Metrics
from outboard.__main__ import main
from tests.eventually import eventually
from tests.inference_server.test_metrics_page import nvml
from tests.inference_server.test_sequences import STATE, summing
from tests.onnx_models import times
from tests.processes import ROOT, start_server, start_up
from tests.python_models import TOKENS_TOML, python_model

Labels = dict[str, set[str]]
FOLDER = ROOT / "docs" / "monitoring"
OF_PROMETHEUS = {"job", "instance"}
"""Labels that Prometheus itself puts on everything that it has asked for."""
_NAME = re.compile(r"\b((?:outboard|process|python)_\w+)\s*(?:\{([^}]*)\})?")
_GROUPED = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")
_FUNCTIONS = {"rate", "increase", "sum", "min", "max", "count", "vector", "histogram_quantile", "by", "on", "group_left", "or", "le"}
DYING = "import os\ndef infer(inputs, parameters):\n    os._exit(3)\n"
STREAMING = 'def infer(inputs, parameters):\n    for number in range(3):\n        yield {"token": [str(number)]}\n'


def metrics(address: str) -> Labels:
    """Sample name -> its labels."""
    with closing(HTTPConnection(urlsplit(address).netloc, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        return labels_of(connection.getresponse().read().decode())


def labels_of(text: str) -> Labels:
    found: Labels = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def of_gpus() -> Labels:
    """This machine may have none: what a driver of two says."""
    made, registry = Metrics(), CollectorRegistry()
    made.others = [Gpus(nvml()).collect]
    registry.register(made)
    return {name: labels for name, labels in labels_of(generate_latest(registry).decode()).items() if name.startswith("outboard_gpu")}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """Of everything running, after requests that went well and ones that did not."""
    folder = tmp_path_factory.mktemp("monitoring")
    models = folder / "models"
    times(models / "m" / "1" / "model.onnx", 2)
    (models / "m" / "model.toml").write_text("cache = {}\n")
    summing(models / "sums" / "1" / "model.onnx")
    (models / "sums" / "model.toml").write_text(STATE)
    python_model(models / "dying", DYING, TOKENS_TOML + '[python]\nsandbox = "off"\n')
    python_model(models / "streaming", STREAMING, TOKENS_TOML + '[python]\nsandbox = "off"\n')
    up = start_up(folder / "data", "--no-demo", "--models", str(models))
    try:
        with Client(f"grpc://{up['grpc']}") as client:
            client.infer("m", {"x": np.float32([[1, 2]])})
            for model in ("nobody", "m", "dying"):
                with pytest.raises(ServingError):
                    client.infer(model, {"count": np.int32([1])})
            eventually(lambda: "outboard_executor_deaths_total" in metrics(up["metrics"]), "the death is counted")
            return metrics(up["metrics"]) | metrics(up["http"]) | of_gpus()
    finally:
        assert up.stop() == 0, up.log.read_text()


def names_in(expression: str) -> set[str]:
    return {name for name, _ in _NAME.findall(expression)}


def check(expression: str, published: Labels, shown: set[str]) -> None:
    """Every metric is there, every label is one of its own. `shown`: labels that the legend or the text uses."""
    assert names_in(expression), expression
    known: set[str] = set(OF_PROMETHEUS)
    for name, matchers in _NAME.findall(expression):
        assert name in published, f"{name} is not published"
        known |= published[name]
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        assert used <= published[name] | OF_PROMETHEUS, f"{name} has no label {used - published[name]}"
        assert not name.endswith("_total") or re.search(rf"(?:rate|increase)\({name}", expression), f"{name} is a count: its rate is wanted"
    for group in _GROUPED.findall(expression):
        assert {label.strip() for label in group.split(",")} <= known, expression
    groups = [{label.strip() for label in group.split(",")} for group in re.findall(r"\bby\s*\(([^)]*)\)", expression)]
    left = set.union(*groups) if groups else known
    assert shown <= left, f"{shown - left} is not left after {expression}"
    stray = set(re.findall(r"(\w+)\s*\(", expression)) - _FUNCTIONS
    assert not stray, f"no functions of Prometheus that are known here: {stray}"
    assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")


def test_the_dashboard(published: Labels) -> None:
    board = json.loads((FOLDER / "grafana.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len(panels) > 20 and len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(places) == len(board["panels"]), "no panel hides another"
    for panel in panels:
        for target in panel["targets"]:
            check(target["expr"], published, set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])))
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            (pair,) = re.findall(r"^label_values\((\w+), (\w+)\)$", variable["query"])
            assert pair[1] in published[pair[0]] | OF_PROMETHEUS


def alerts() -> dict[str, tuple[str, str]]:
    """Alert -> (its expression, the rest of it). The file is of the plainest YAML: this reads no other."""
    rules = re.split(r"^      - alert: ", (FOLDER / "alerts.yaml").read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for rule in rules:
        name, _, rest = rule.partition("\n")
        expression = re.search(r"^        expr: (?:>-\n((?:          .*\n)+)|(.*)\n)", rest, re.MULTILINE)
        assert expression, name
        found[name] = (" ".join((expression[1] or expression[2]).split()), rest)
    return found


def test_the_alerts(published: Labels) -> None:
    found = alerts()
    assert len(found) > 8
    for name, (expression, rest) in found.items():
        assert re.fullmatch(r"Outboard\w+", name)
        check(expression, published, set(re.findall(r"\$labels\.(\w+)", rest)))
        assert re.search(r"severity: (critical|warning|info)\}", rest) and "summary:" in rest and "description:" in rest


def test_everything_of_ours_that_is_published_is_shown_somewhere(published: Labels) -> None:
    board = json.loads((FOLDER / "grafana.json").read_text())
    used = {name for panel in board["panels"] for target in panel.get("targets", ()) for name in names_in(target["expr"])}
    ours = {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in published if name.startswith("outboard_") and not name.endswith("_created")
    }
    assert ours - {re.sub(r"_bucket$", "", name) for name in used} <= {"outboard_gpus"}


def test_the_check_can_fail(published: Labels) -> None:
    for wrong in (
        'rate(outboard_requests_total{modell="m"}[5m])',
        "outboard_nothing",
        "outboard_requests_total",
        "sum by (rows) (outboard_streams)",
    ):
        with pytest.raises(AssertionError):
            check(wrong, published, set())
    with pytest.raises(AssertionError):
        check("sum by (model) (outboard_streams)", published, {"version"})


def test_pages_name_the_files() -> None:
    text = Path(ROOT / "docs" / "monitoring.md").read_text()
    assert all(f"monitoring/{path.name}" in text for path in FOLDER.iterdir())


def test_top_and_doctor_beside_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times(tmp_path / "models" / "m" / "1" / "model.onnx", 2)
    (tmp_path / "models" / "broken" / "1").mkdir(parents=True)
    (tmp_path / "models" / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    server = start_server(tmp_path / "models", tmp_path)
    try:
        with Client(f"grpc://{server['grpc']}") as client:
            client.infer("m", {"x": np.float32([[1, 2]])})
        assert main(["top", "--once", "--interval", "0.1", "--metrics", server["metrics"], "--host", server["grpc"]]) == 0
        out = capsys.readouterr().out
        assert re.search(r"^m +1 +ready +1 +0\.0 ", out, re.MULTILINE) and " memory available" in out
        ports = [
            word
            for name in ("grpc", "thrift", "metrics")
            for word in (f"--{name}-port", server[name].split("/metrics")[0].rpartition(":")[2])
        ]
        assert main(["doctor", "--data", str(tmp_path), "--http-port", "0", *ports]) == 0, capsys.readouterr().out
        out = capsys.readouterr().out
        for line in (
            "grpc port: Outboard answers",
            "thrift port: Outboard answers",
            "metrics port: Outboard answers",
            "server: broken version 1 is not served: ",
        ):
            assert line in out, out
    finally:
        assert server.stop() == 0
