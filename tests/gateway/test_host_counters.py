"""What a model host says of its metrics when it dies over it: nothing of it is believed, or it would count again the next time."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.models_rpc import Models
from gateway.operations import host_counters
from idl.codes import ServingError
from inference_client import Client

PAGE = (
    "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 5\n# TYPE outboard_requests_total counter\n"
    'outboard_requests_total{model="a.b",version="1",code="ok"} 7\n'
    "# TYPE outboard_request_seconds histogram\n"
    'outboard_request_seconds_bucket{model="a.b",version="1",le="+Inf"} 7\noutboard_request_seconds_sum{model="a.b",version="1"} 1\n'
)


@contextmanager
def saying(answer: bytes) -> Iterator[str]:
    """The address of somebody who says this once, whatever is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
        finally:
            thread.join()


def looked(answer: bytes) -> tuple[list[host_counters.HostCounters], list[str]]:
    missed: list[str] = []
    with saying(answer) as address:
        models = Models(["thrift://127.0.0.1:1"], Client)
        found = host_counters.look(models, [address], lambda host, reason: missed.append(reason))
    return found, missed


def said(page: str, length: int | None) -> bytes:
    head = "HTTP/1.0 200 OK\r\n" + ("" if length is None else f"Content-Length: {length}\r\n")
    return f"{head}\r\n{page}".encode()


@pytest.mark.parametrize("length", [None, len(PAGE)], ids=["by its end", "by its length"])
def test_a_whole_page_counts(length: int | None) -> None:
    (found,), missed = looked(said(PAGE, length))
    counts = found.versions["a.b", "1"].counts
    assert (found.epoch, counts.requests, sum(counts.latency), counts.total_ns) == (5.0, 7, 7, 10**9) and not missed


@pytest.mark.parametrize(
    "answer",
    [
        said(PAGE[: PAGE.index("# TYPE outboard_request_seconds")], len(PAGE)),
        said(PAGE[:-20], None),
        said(PAGE[:120], len(PAGE)),
        said("", len(PAGE)),
        said("", None),
        said("hello\n", None),
        said('outboard_requests_total{model="a.b"} 7\n', None),
        said('# TYPE outboard_requests_total counter\noutboard_requests_total{code="ok"} 7\n', None),
        said("outboard_requests_total{model= 7\n", None),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nabc",
        b"no HTTP at all\r\n\r\n",
        b"",
    ],
)
def test_half_a_page_does_not(answer: bytes) -> None:
    found, missed = looked(answer)
    assert not [version for host in found for version in host.versions.values() if version.counts.requests] and (
        missed or not found[0].versions
    )


def test_what_are_no_metrics_is_told() -> None:
    with pytest.raises(ServingError, match="cannot be read"):
        host_counters._of_metrics("h", '# TYPE outboard_requests_total counter\noutboard_requests_total{model="x"} 7\n')


def test_names_are_read_as_they_were_written() -> None:
    """Whatever stands in a label, and however little of a version is known."""
    text = (
        "# HELP outboard_requests_total Requests\n"
        'outboard_requests_total{code="ok",model="a\\\\b\\"c}\\n d",version="1"} 3.0\n'
        'outboard_requests_total{code="internal",model="a\\\\b\\"c}\\n d",version="1"} 2\n'
        'outboard_request_seconds_bucket{le="0.001",model="a\\\\b\\"c}\\n d",version="1"} 0.0\n'
        'outboard_request_seconds_bucket{le="+Inf",model="a\\\\b\\"c}\\n d",version="1"} 3.0\n'
        'outboard_queue_seconds_sum{model="a\\\\b\\"c}\\n d",version="1"} 1.5e-03\n'
        'outboard_requests_total{code="ok",model="idle",version="2"} 0.0\n'
        "process_start_time_seconds 1.79530688071e+09\n"
        "another_thing 1\n"
    )
    found = host_counters._of_metrics("h", text)
    one = found.versions['a\\b"c}\n d', "1"].counts
    assert found.epoch == 1795306880.71 and set(found.versions) == {('a\\b"c}\n d', "1"), ("idle", "2")}
    assert (one.requests, dict(one.errors), one.queue_ns) == (5, {"internal": 2}, 1_500_000)
    assert list(one.latency) == [0] * (host_counters.BUCKETS - 1) + [3] and not found.versions["idle", "2"].counts.requests
