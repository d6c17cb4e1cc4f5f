"""Whose turn it is, with time as an argument."""

import pytest

from inference_client.addresses import Address, parse
from inference_client.hosts import FIRST_BACKOFF_S, LAST_BACKOFF_S, Hosts


def picks(hosts: Hosts, now: float, count: int) -> list[int | None]:
    return [hosts.pick(now) for _ in range(count)]


def test_hosts_that_are_well_take_turns() -> None:
    assert picks(Hosts("abc"), 0.0, 7) == [0, 1, 2, 0, 1, 2, 0]


def test_a_host_that_failed_is_set_aside_and_tried_again_when_it_is_due() -> None:
    hosts = Hosts("ab")
    hosts.failed(0, 10.0, "refused")
    assert picks(hosts, 10.0, 3) == [1, 1, 1]
    assert picks(hosts, 10.0 + FIRST_BACKOFF_S - 0.001, 2) == [1, 1]
    assert 0 in picks(hosts, 10.0 + FIRST_BACKOFF_S, 2)
    hosts.answered(0)
    assert sorted(map(str, picks(hosts, 10.5, 4))) == ["0", "0", "1", "1"]


def test_the_time_aside_doubles_up_to_its_limit_and_begins_anew_after_an_answer() -> None:
    hosts, now, waits = Hosts("a"), 0.0, []
    for _ in range(9):
        assert hosts.pick(now) == 0
        hosts.failed(0, now, "refused")
        waits.append(hosts._due[0] - now)
        now = hosts._due[0]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, LAST_BACKOFF_S]
    hosts.answered(0)
    hosts.failed(0, now, "refused")
    assert hosts._due[0] - now == FIRST_BACKOFF_S


def test_the_share_of_a_host_that_is_aside_is_spread_over_the_others() -> None:
    hosts = Hosts("abc")
    hosts.failed(0, 0.0, "refused")
    assert picks(hosts, 0.1, 6) == [1, 2] * 3


def test_calls_that_fail_together_count_once() -> None:
    hosts = Hosts("ab")
    for _ in range(10):
        hosts.failed(0, 1.0, "refused")
    assert hosts._due[0] == 1.0 + FIRST_BACKOFF_S


def test_only_one_caller_tries_a_host_that_is_due() -> None:
    hosts = Hosts("ab")
    hosts.failed(0, 0.0, "refused")
    assert picks(hosts, 0.5, 6).count(0) == 1
    assert picks(hosts, 1.0, 6).count(0) == 1, "the caller that tried it never came back: its turn comes again"


def test_where_all_are_aside_the_one_due_soonest_is_tried() -> None:
    hosts = Hosts("abc")
    for index, now in ((1, 0.0), (0, 0.1), (2, 0.2)):
        hosts.failed(index, now, "refused")
    assert hosts.pick(0.3) == 1
    assert hosts.pick(0.3, {1}) == 0
    assert hosts.pick(0.3, {0, 1, 2}) is None


@pytest.mark.parametrize(
    "text, address",
    [
        ("thrift://127.0.0.1:9090", Address("thrift", "127.0.0.1", 9090)),
        ("grpc://gpu-1.example:8001", Address("grpc", "gpu-1.example", 8001)),
        ("localhost:8001", Address("grpc", "localhost", 8001)),
        ("thrift://[::1]:9090", Address("thrift", "::1", 9090)),
        ("thrift+unix:///run/outboard/t.sock", Address("thrift", path="/run/outboard/t.sock")),
        ("grpc+unix:///run/outboard/g.sock", Address("grpc", path="/run/outboard/g.sock")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "localhost", "thrift://localhost", "http://localhost:80", "thrift+tcp://h:1", "::1:8001"),
        *("grpc://:80", "grpc://h:0", "grpc://h:65536", "grpc://h:8x", "grpc://h:-1"),
        *("thrift+unix://relative", "thrift+unix:///" + "x" * 107),
    ],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="address"):
        parse(text)
