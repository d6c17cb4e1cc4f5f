"""What is counted, in one process and over several."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import Metrics
from tests.gateway.conftest import ROOT

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"outboard_gateway_{name}", frozenset(labels.items())), 0.0)


def test_requests_are_counted_by_route_not_by_path(client: FlaskClient) -> None:
    for path in ("/livez", "/livez", "/v2/models/a/ready", "/v2/models/b/ready", "/no/such/1", "/no/such/2"):
        client.get(path)
    client.head("/livez")
    client.open("/livez", method="BREW")
    answer = client.get("/metrics")
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    samples = parse(answer.get_data(as_text=True))
    assert value(samples, "requests_total", endpoint="/livez", method="GET", status="200") == 2
    assert value(samples, "requests_total", endpoint="/livez", method="HEAD", status="200") == 1
    assert value(samples, "requests_total", endpoint="unmatched", method="GET", status="404") == 2
    assert value(samples, "requests_total", endpoint="unmatched", method="other", status="405") == 1
    endpoints = {labels["endpoint"] for _, pairs in samples if "endpoint" in (labels := dict(pairs))}
    assert not any("/a/" in endpoint or "/b/" in endpoint or "such" in endpoint for endpoint in endpoints)
    assert value(samples, "request_seconds_count", endpoint="/livez", method="GET") == 2
    assert 0 < value(samples, "request_seconds_sum", endpoint="/livez", method="GET") < 60


def test_in_flight_is_this_request_alone(client: FlaskClient) -> None:
    client.get("/no/such")
    samples = parse(client.get("/metrics").get_data(as_text=True))
    assert value(samples, "requests_in_flight") == 1


WORKER = """
import sys
from pathlib import Path
from gateway.metrics import Metrics
metrics = Metrics(Path(sys.argv[1]), int(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    metrics.begin()
    metrics.end("/livez", "GET", 200, 0.01)
metrics.begin()
if sys.argv[4] == "die":
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
print(metrics.render().decode())
"""


def worker(folder: Path, number: int, requests: int, end: str = "") -> Samples:
    command = [sys.executable, "-c", WORKER, str(folder), str(number), str(requests), end]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode == 0) == (end == ""), ran.stderr
    return parse(ran.stdout)


def test_workers_are_added_up_and_one_that_died_is_continued(tmp_path: Path) -> None:
    labels = {"endpoint": "/livez", "method": "GET"}
    worker(tmp_path, 1, 3, "die")
    samples = worker(tmp_path, 2, 4)
    assert value(samples, "requests_total", status="200", **labels) == 7
    assert value(samples, "requests_in_flight") == 2, "the dead one's last request is still counted"
    samples = worker(tmp_path, 1, 5)
    assert value(samples, "requests_total", status="200", **labels) == 12, "counters never fall"
    assert value(samples, "request_seconds_count", **labels) == 12
    assert value(samples, "requests_in_flight") == 2, "its successor has forgotten that request: one each is in flight"
    assert len(list(tmp_path.iterdir())) == 2, "and has left no further files"


def test_threads_do_not_lose_counts(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 1)

    def count() -> None:
        for _ in range(5000):
            metrics.begin()
            metrics.end("/livez", "GET", 200, 0.01)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    samples = parse(metrics.render().decode())
    assert value(samples, "requests_total", endpoint="/livez", method="GET", status="200") == 40_000
    assert value(samples, "requests_in_flight") == 0


def test_buckets_and_what_is_withdrawn(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 3)
    for seconds in (0.0005, 0.001, 0.3, 1000.0):
        metrics.begin()
        metrics.end("/livez", "GET", 200, seconds)
    metrics.begin()
    metrics.withdraw()
    samples = parse(metrics.render().decode())
    bounds = {"0.001": 2, "0.25": 2, "0.5": 3, "60.0": 3, "+Inf": 4}
    for bound, count in bounds.items():
        assert value(samples, "request_seconds_bucket", endpoint="/livez", method="GET", le=bound) == count
    assert value(samples, "request_seconds_sum", endpoint="/livez", method="GET") == pytest.approx(1000.3015)
    assert value(samples, "requests_in_flight") == 0


def test_a_file_that_is_full_counts_on(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 1)
    for number in range(3000):
        metrics.begin()
        metrics.end(f"/route/{number}", "GET", 200, 0.01)
    metrics.begin()
    metrics.end("/" + "long" * 100, "GET", 200, 0.01)
    samples = parse(metrics.render().decode())
    counts = {labels: count for (name, labels), count in samples.items() if name == "outboard_gateway_requests_total"}
    assert sum(counts.values()) == 3001
    assert counts[frozenset({("endpoint", "other"), ("method", "other"), ("status", "other")})] > 900


def test_what_is_no_counters_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "worker-1.cells").write_bytes(b"half")
    metrics = Metrics(tmp_path, 2)
    metrics.begin()
    metrics.end("/livez", "GET", 200, 0.01)
    assert value(parse(metrics.render().decode()), "requests_total", endpoint="/livez", method="GET", status="200") == 1
    assert value(parse(Metrics(tmp_path, 1).render().decode()), "requests_total", endpoint="/livez", method="GET", status="200") == 1


def test_a_worker_apart_counts_on_after_its_gateway_has_started_again(tmp_path: Path) -> None:
    """The start takes all counters away, as `gateway.launch` does it."""
    folder = tmp_path / "counters"
    folder.mkdir()
    alone, gateway = Metrics(folder, 1001), Metrics(folder, 1)
    alone.count("task", "batch", "failed", 5)
    line = b'outboard_gateway_tasks_total{kind="batch",state="failed"}'
    assert line + b" 5.0" in gateway.render()
    shutil.rmtree(folder)
    alone.count("task", "batch", "failed")  # there is no folder at this moment
    folder.mkdir()
    gateway = Metrics(folder, 1)
    assert line not in gateway.render()
    alone.count("task", "batch", "failed", 2)
    alone.count("task", "batch", "succeeded")
    assert line + b" 2.0" in gateway.render() and b'{kind="batch",state="succeeded"} 1.0' in gateway.render()
