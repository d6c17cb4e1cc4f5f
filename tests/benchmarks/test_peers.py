"""The comparison with the peers: what it chooses, how it judges, what it draws. The peers themselves are too large to install here."""

import re
import xml.etree.ElementTree as ET

import pytest

from benchmarks.figures import Sample, summary
from benchmarks.peers import environments, measure, plot, tables
from benchmarks.peers.contestants import PEERS, TRITON
from benchmarks.peers.models import TINY
from benchmarks.peers.ours import front
from benchmarks.peers.rows import APART, Case, Row, cases, rows
from benchmarks.peers.targets import Target, evaluate, targets

FRONTS = ("nginx", "grpcio")
ROW = Row("grpc", "gRPC", APART, "h2load", 16, (TINY,), (front("nginx"), TRITON))


def entry(contestant: str, rates: list[int], row: Row = ROW) -> dict[str, object]:
    """What a contestant with these rounds of one second leaves in the result."""
    cell = measure.Cell(Case(row, TINY, contestant), 1, None, lambda: 0, lambda seconds, size: Sample(1, seconds, 1, 1, 1))
    done = [measure.Round(Sample(rate, 1.0, 1000 / rate, 2.0, 3.0), 50.0) for rate in rates]
    return measure._entry(cell, done, ["RuntimeError: 1 requests failed"] if not rates else [])


def results(*entries: dict[str, object]) -> dict[tuple[str, str, str], dict[str, object]]:
    return {(str(item["row"]), str(item["request"]), str(item["contestant"])): item for item in entries}


def test_every_target_has_its_figures_among_the_cases() -> None:
    measured = {case.key for case in cases(rows(FRONTS), [])}
    for target in targets(FRONTS):
        assert {target.ours, *target.theirs} <= measured, target.text


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["grpc/tiny/triton"], {("grpc", "tiny", "Triton")}),
        (
            ["http-private"],
            {("http-private", "tiny-private", "Outboard, one host"), ("http-private", "tiny-private", "Outboard, two hosts")},
        ),
        (["grpc-latency/*/mls*", "instances//"], {("grpc-latency", "tiny", "MLServer")}),
    ],
)
def test_cases_are_chosen_by_row_model_and_contestant(only: list[str], expected: set[tuple[str, str, str]]) -> None:
    assert {case.key for case in cases(rows(FRONTS), only)} == expected


def test_a_ratio_is_of_best_rounds_and_of_medians() -> None:
    ours, theirs = entry(front("nginx"), [1000, 3000, 2000]), entry(TRITON, [900, 1000, 500])
    wanted = [
        Target("rate", ("grpc", TINY, front("nginx")), (("grpc", TINY, TRITON),), "requests_per_s", 3.0),
        Target("latency", ("grpc", TINY, front("nginx")), (("grpc", TINY, TRITON),), "p50_ms", 0.3),
    ]
    rate, latency = evaluate(wanted, results(ours, theirs))
    assert (rate.best, rate.median, rate.met) == (3.0, pytest.approx(2000 / 900), True)
    assert (latency.best, latency.met) == (pytest.approx(1 / 3), False)


def test_a_contestant_without_a_good_round_has_no_ratio() -> None:
    ours, theirs = entry(front("nginx"), []), entry(TRITON, [900])
    assert (
        evaluate([Target("", ("grpc", TINY, front("nginx")), (("grpc", TINY, TRITON),), "requests_per_s", 1.0)], results(ours, theirs))
        == []
    )
    assert "| Outboard, nginx front | failed |" in tables.markdown(
        {"targets": [], "rows": [ours, theirs], "versions": {}, "idle_cores": {}}
    )


def test_of_several_loops_the_best_one_counts() -> None:
    row = Row("loop", "loop", APART, "loop", 1, ("1", "8"), ("minilm",))
    every = results(entry(front("nginx"), [90])) | {
        ("loop", batch, "minilm"): entry("minilm", [rate], row) for batch, rate in (("1", 60), ("8", 100))
    }
    target = Target("", ("grpc", TINY, front("nginx")), (("loop", "1", "minilm"), ("loop", "8", "minilm")), "rows_per_s", 0.95)
    assert [(outcome.best, outcome.met) for outcome in evaluate([target], every)] == [(0.9, False)]


def test_the_plot_has_a_bar_for_each_contestant_and_none_for_a_failed_one() -> None:
    found = {"rows": [entry(front("nginx"), [3000, 2000]), entry(TRITON, [1000]), entry("<&>", [])]}
    drawn = ET.fromstring(plot.svg(found))
    names = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert front("nginx") in names and TRITON in names and "<&>" not in names
    assert [name for name in names if name and re.fullmatch(r"[\d,]+", name)] == ["3,000", "1,000"]


@pytest.mark.parametrize("name", environments.PACKAGES)
def test_lock_files_name_every_package_with_its_version(name: str) -> None:
    lines = (environments._LOCKS / f"{name}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.\-]+==[\w.\-+]+", line) for line in lines)
    locked = dict(line.lower().split("==") for line in lines)
    for package in environments.PACKAGES[name]:
        wanted, _, version = package.partition("==")
        assert locked[wanted.split("<")[0]] == version or not version


def test_every_peer_has_an_environment() -> None:
    assert {environment for environment, _ in PEERS.values()} | {"models"} == set(environments.PACKAGES)


def test_a_summary_keeps_every_round() -> None:
    found = summary([Sample(10, 1.0, 1.0, 2.0, 3.0), Sample(30, 1.0, 0.5, 2.0, 3.0)])
    assert found["requests_per_s"] == {"best": 30.0, "median": 20.0} and found["p50_ms"]["best"] == 0.5 and len(found["rounds"]) == 2
