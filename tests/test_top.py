"""`outboard top`: percentiles of what came between two looks, and pages that say what is so."""

import pytest

from idl.messages import Capacity, HostModel
from outboard import scrape, top
from outboard.__main__ import main

INF = float("inf")
HEAD = "# TYPE outboard_accepting gauge\noutboard_accepting 1\n"


def text(model: str = "m", ok: int = 0, failed: int = 0, fast: int = 0, all_of: int = 0, accepting: int = 1) -> str:
    """A server's page: `fast` requests within 10 ms, `all_of` within 100."""
    lines = [
        "# TYPE outboard_accepting gauge",
        f"outboard_accepting {accepting}",
        "# TYPE outboard_requests counter",
        f'outboard_requests_total{{model="{model}",version="1",code="ok"}} {ok}',
        f'outboard_requests_total{{model="{model}",version="1",code="overloaded"}} {failed}',
        "# TYPE outboard_request_seconds histogram",
    ]
    for bound, count in (("0.001", 0), ("0.01", fast), ("0.1", all_of), ("+Inf", all_of)):
        lines.append(f'outboard_request_seconds_bucket{{model="{model}",version="1",le="{bound}"}} {count}')
    for name, value in (
        ("model_ready", 1),
        ("model_instances", 2),
        ("in_flight_requests", 5),
        ("queued_requests", 3),
        ("model_memory_bytes", 2**21),
    ):
        lines += [f"# TYPE outboard_{name} gauge", f'outboard_{name}{{model="{model}",version="1"}} {value}']
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("part", "buckets", "wanted"),
    [
        (0.5, {0.01: 10, 0.1: 10, INF: 10}, 0.005),
        (0.99, {0.01: 90, 0.1: 100, INF: 100}, 0.01 + 0.09 * 0.9),
        (0.99, {0.01: 0, 0.1: 0, INF: 4}, 0.1),
        (0.5, {0.01: 0, 0.1: 0, INF: 0}, None),
        (0.5, {}, None),
    ],
)
def test_percentiles_are_those_of_prometheus(part: float, buckets: dict[float, float], wanted: float | None) -> None:
    assert scrape.percentile(part, buckets) == (pytest.approx(wanted) if wanted is not None else None)


def test_between_two_looks_and_after_a_new_beginning() -> None:
    assert scrape.between({0.1: 5, INF: 7}, {0.1: 6, INF: 10}) == {0.1: 1, INF: 3}
    assert scrape.between({}, {0.1: 6, INF: 10}) == {0.1: 6, INF: 10}
    assert scrape.between({0.1: 50, INF: 70}, {0.1: 1, INF: 2}) == {0.1: 1, INF: 2}, "the server was started again"


def test_a_page_is_of_what_came_between() -> None:
    before = scrape.read(text(ok=1000, fast=0, all_of=1000), 10.0)
    now = scrape.read(text(ok=1040, failed=4, fast=40, all_of=1040), 14.0)
    lines = top.page(before, now, "", 200)
    assert lines[0] == "1 versions   11.0 requests/s   0 restarts"
    assert lines[-1].split() == ["m", "1", "ready", "2", "11.0", "1.0", "5.50", "ms", "9.91", "ms", "-", "5", "3", "2.0", "MiB"], (
        "the old, slow ones no longer count"
    )
    first = top.page(now, now, "", 200)
    assert first[-1].split()[4:6] == ["-", "-"], "no rate after one look"
    assert "DRAINING" in top.page(before, scrape.read(text(ok=1040, accepting=0), 14.0), "", 200)[0]
    assert all(len(line) <= 30 for line in top.page(before, now, "", 30))


def test_the_hosts_own_words() -> None:
    look = scrape.read(text() + 'outboard_gpu_utilization_ratio{gpu="0",name="H200"} 0.25\n', 1.0)
    model = HostModel("m", "2", "UNAVAILABLE", 0, 0, reason="its process died 8 times in a row")
    capacity = Capacity(4.0, 8 << 30, 6 << 30, 100 << 30, (), (model,))
    lines = top.page(look, look, capacity, 200)
    assert lines[1] == "4 cores, 6.0 GiB of 8.0 GiB memory available, 100.0 GiB of disk"
    assert lines[2] == "! m 2: its process died 8 times in a row"
    assert lines[3] == "gpu 0 H200: 25 %"
    forged = Capacity(4.0, 8 << 30, 6 << 30, 100 << 30, (), (HostModel("m", "2", "UNAVAILABLE", 0, 0, reason="a\x1b[2Jb\nc"),))
    assert top.page(look, look, forged, 200)[2] == "! m 2: a?[2Jb?c", "no escape sequences of a model's"
    assert top.page(look, look, "no word of the host: unavailable: gone", 200)[1].startswith("no word")


@pytest.mark.parametrize("said", ["", "# nothing of ours\nup 1\n", "<html>"])
def test_other_metrics_are_refused(said: str) -> None:
    with pytest.raises(ValueError):
        scrape.read(said, 0.0)


@pytest.mark.parametrize(("seconds", "wanted"), [(0.0004, "0.40 ms"), (0.25, "250 ms"), (2.5, "2.50 s")])
def test_durations(seconds: float, wanted: str) -> None:
    assert top.duration(seconds) == wanted


def test_a_server_that_is_away_and_odd_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--metrics", "http://127.0.0.1:9/metrics", "--host", ""]) == 1
    assert "refused" in capsys.readouterr().err
    assert main(["top", "--once", "--metrics", "ftp://x", "--host", ""]) == 1
    with pytest.raises(SystemExit):
        main(["top", "--interval", "0"])
