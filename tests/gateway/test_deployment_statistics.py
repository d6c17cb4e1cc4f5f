"""What deployments did: read from real hosts, added up over time, and what follows from it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from gateway import build_services
from gateway.models_rpc import Models
from gateway.operations import deployment_statistics, host_counters
from gateway.operations.deployment_statistics import Collector, Look
from gateway.operations.watch import Watch
from gateway.settings import Settings
from gateway.storage.deployment_statistics import Counts, Seen
from gateway.storage.deployments import DeploymentRecord
from idl.board import BUCKETS_S
from idl.codes import ServingError
from inference_client import Client
from tests.gateway.conftest import SetClock
from tests.gateway.deployed_host import Deployed, deployed, own_host, users_host  # noqa: F401
from tests.gateway.deployed_rows import DOER, NOW, deployment, model, user
from tests.onnx_models import times


def made(over: Deployed, tmp_path: Path) -> DeploymentRecord:
    ann = user(over.storage, "ann")
    model_id, versions = model(over.storage, ann, "m", times(tmp_path / "2.onnx", 2))
    record = deployment(over.storage, ann, "d", model_id, versions[0])
    over.turn()
    return over.record(record.id)


def exact(over: Deployed) -> Collector:
    return Collector(over.storage, over.services.models, replace(over.services.settings, model_host_metrics=over.host["metrics"]))


def ask(over: Deployed, count: int, refused: int = 0) -> None:
    for _ in range(count):
        over.asked("ann.d")
    for _ in range(refused):
        with pytest.raises(ServingError):
            over.client.infer("ann.d", {"x": [[1.0]]})


def whole(over: Deployed, record: DeploymentRecord) -> Counts:
    points = deployment_statistics.points(over.storage, record, "minute", 0, 1 << 40)
    hours = deployment_statistics.points(over.storage, record, "hour", 0, 1 << 40)
    total = deployment_statistics.total(points)
    assert total == deployment_statistics.total(hours)
    return total


def test_metrics_have_codes_and_buckets(deployed: Deployed, tmp_path: Path) -> None:  # noqa: F811
    record, collector = made(deployed, tmp_path), exact(deployed)
    collector.collect()
    before = whole(deployed, record).requests
    ask(deployed, 7, refused=2)
    look = collector.collect()[record.id]
    assert (look.new.requests, dict(look.new.errors), sum(look.new.latency)) == (9, {"invalid_input": 2}, 7)
    assert look.new.total_ns >= look.new.compute_ns > 0 and look.new.memory > 0 and (look.queued, look.inside) == (0, 0)
    assert whole(deployed, record).requests == before + 9
    with ThreadPoolExecutor(4) as pool:  # whoever looks, and however often
        ask(deployed, 5)
        list(pool.map(lambda _: exact(deployed).collect(), range(4)))
    assert whole(deployed, record).requests == before + 14
    told = deployment_statistics.told(whole(deployed, record))
    assert told["errors"] == {"invalid_input": 2} and 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["p99"] < 30_000


def test_the_verb_knows_less(deployed: Deployed, tmp_path: Path) -> None:  # noqa: F811
    record = made(deployed, tmp_path)
    collector = Collector(deployed.storage, deployed.services.models, deployed.services.settings)
    ask(deployed, 4, refused=1)
    new = collector.collect()[record.id].new
    assert (new.requests, dict(new.errors), sum(new.latency)) == (5, {"failed": 1}, 4) and sum(map(bool, new.latency)) == 1
    collector.collect()
    assert whole(deployed, record).requests == 5 and whole(deployed, record).memory > 0


def test_a_host_that_began_anew(own_host: Deployed, tmp_path: Path) -> None:  # noqa: F811
    record = made(own_host, tmp_path)
    ask(own_host, 6)
    exact(own_host).collect()
    own_host.host.process.kill()
    own_host.host.process.wait()
    assert exact(own_host).collect() == {}, "a host that is away says nothing"
    own_host.restart()
    ask(own_host, 7)  # more than before: only its start tells that none of these was counted
    assert exact(own_host).collect()[record.id].new.requests == 7
    assert whole(own_host, record).requests == 13


def test_rows_add_up_and_are_forgotten(deployed: Deployed, tmp_path: Path) -> None:  # noqa: F811
    record, rows = made(deployed, tmp_path), deployed.storage.deployment_statistics

    def seen(requests: int, epoch: float = 1.0) -> Seen:
        latency = [requests] + [0] * len(BUCKETS_S)
        return Seen("host", "ann.d", "1", epoch, record.id, Counts(requests, {}, latency, requests * 1000, 0, 0, 5))

    rows.take([seen(3)], NOW, host_counters.grown)
    rows.take([seen(5)], NOW + timedelta(seconds=59), host_counters.grown)
    rows.take([seen(6)], NOW + timedelta(seconds=60), host_counters.grown)
    rows.take([seen(2)], NOW + timedelta(hours=1), host_counters.grown)  # fewer: it began anew
    rows.take([seen(4, epoch=9.0)], NOW + timedelta(hours=1), host_counters.grown)  # and so it did here
    assert [point.counts.requests for point in rows.points(record.id, 60, 0, 1 << 40)] == [5, 1, 6]
    assert [point.counts.requests for point in rows.points(record.id, 3600, 0, 1 << 40)] == [6, 6]
    assert [point.counts.requests for point in rows.points(record.id, 10, 0, 1 << 40)] == [3, 2, 1, 6]
    assert rows.forget(NOW + timedelta(days=1, seconds=30)) == 5 and rows.forget(NOW + timedelta(days=2)) == 2
    assert len(rows.points(record.id, 3600, 0, 1 << 40)) == 2 and rows.forget(NOW + timedelta(days=91)) == 2
    assert deployed.storage.deployments.change(record.id, {"desired_state": "deleted", "state": "deleting"}, DOER, NOW)
    deployed.turn()
    assert rows.points(record.id, 60, 0, 1 << 40) == []


def test_percentiles() -> None:
    latency = [0] * len(BUCKETS_S) + [0]
    assert host_counters.percentile(latency, 0.5) is None
    latency[1], latency[3] = 50, 50  # 0.5 to 1 ms, 2.5 to 5 ms
    assert host_counters.percentile(latency, 0.5) == pytest.approx(1.0) and host_counters.percentile(latency, 0.75) == pytest.approx(3.75)
    assert host_counters.percentile(latency, 1) == pytest.approx(5.0)
    assert host_counters.percentile([*[0] * len(BUCKETS_S), 1], 0.5) == pytest.approx(BUCKETS_S[-1] * 1000)


class Told:
    """Looks that a test says."""

    def __init__(self) -> None:
        self.looks: dict[int, Look] = {}

    def collect(self, records: object = None) -> dict[int, Look]:
        return self.looks


def busy(requests: int, queue_ms: float, compute_s: float, queued: int = 0) -> Look:
    latency = [requests] + [0] * len(BUCKETS_S)
    return Look(Counts(requests, {}, latency, 0, int(requests * queue_ms * 1e6), int(compute_s * 1e9), 0), queued)


@pytest.fixture
def settled(tmp_path: Path) -> tuple[Watch, Told, DeploymentRecord, list[float], SetClock, list[int]]:
    """A watch over one deployment that runs, with what it is told, its seconds, its clock, and its nudges."""
    clock, told, seconds, nudges = SetClock(NOW), Told(), [0.0], [0]
    settings = Settings(data_dir=tmp_path / "data", model_hosts=("thrift://127.0.0.1:1",))
    services = build_services(settings, Models(settings.model_hosts, Client), now=clock)
    ann = user(services.storage, "ann")
    model_id, versions = model(services.storage, ann, "m", times(tmp_path / "2.onnx", 2))
    record = deployment(
        services.storage, ann, "d", model_id, versions[0], state="running", observed_generation=1, max_instances=3, min_instances=1
    )

    def nudge() -> None:  # the reconciler, at once
        nudges[0] += 1
        now = services.storage.deployments.by_id(record.id)
        assert now is not None
        services.storage.deployments.settle(now, {"observed_generation": now.generation}, clock())

    watch = Watch(services.storage, told, settings, nudge, clock, lambda: seconds[0])  # type: ignore[arg-type]
    watch.storage = services.storage  # type: ignore[attr-defined]
    return watch, told, record, seconds, clock, nudges


def test_instances_follow_the_wait(settled: tuple[Watch, Told, DeploymentRecord, list[float], SetClock, list[int]]) -> None:
    watch, told, record, seconds, _, nudges = settled
    rows = watch.storage.deployments  # type: ignore[attr-defined]

    def after(look: Look, step_s: float = 10.0) -> int:
        told.looks = {record.id: look}
        seconds[0] += step_s
        watch.step()
        return int(rows.by_id(record.id).instances)

    assert after(busy(0, 0, 0)) == 1
    assert after(busy(100, 50, 9)) == 2 and after(busy(100, 5, 9)) == 2 and after(busy(0, 0, 0, queued=9)) == 3
    assert after(busy(100, 500, 9)) == 3, "no more than its owner allows"
    assert after(busy(100, 1, 15)) == 3, "two of three would be at work most of the time"
    assert after(busy(100, 1, 5)) == after(busy(100, 1, 5), 50) == 3 and after(busy(100, 1, 5), 11) == 2
    assert after(busy(10, 1, 1)) == after(busy(100, 50, 1), 1) - 1, "a wait in between begins it anew"
    assert after(busy(10, 1, 1)) == 3 and after(busy(10, 1, 1), 61) == 2 and after(busy(10, 1, 1)) == 2 and after(busy(10, 1, 1), 61) == 1
    assert after(busy(0, 0, 0), 1000) == 1 and nudges[0] > 0
    # a host without room: what it gave back is not asked for again for a while
    assert after(busy(100, 50, 9)) == 2
    rows.settle(rows.by_id(record.id), {"instances": 1}, NOW)
    assert after(busy(100, 50, 9)) == 1 and after(busy(100, 50, 9), 100) == 1 and after(busy(100, 50, 9), 300) == 2


def test_nobody_calls(settled: tuple[Watch, Told, DeploymentRecord, list[float], SetClock, list[int]]) -> None:
    watch, told, record, _, clock, _ = settled
    rows = watch.storage.deployments  # type: ignore[attr-defined]
    rows.change(record.id, {"sleep_after_s": 60, "max_instances": None, "min_instances": None}, DOER, clock())

    def after(look: Look | None, seconds: float) -> str:
        now = rows.by_id(record.id)
        rows.settle(now, {"observed_generation": now.generation}, clock.moment) if seconds == 0 else None
        clock.advance(seconds)
        told.looks = {} if look is None else {record.id: look}
        watch.step()
        return str(rows.by_id(record.id).state)

    assert after(busy(1, 0, 0), 0) == after(busy(0, 0, 0), 50) == "running"
    assert after(busy(1, 0, 0), 20) == after(busy(0, 0, 0), 59) == "running", "it counts from the last call"
    assert after(None, 500) == "running", "who cannot look does not know"
    assert after(Look(inside=1), 500) == "running" and after(busy(0, 0, 0), 61) == "sleeping"
