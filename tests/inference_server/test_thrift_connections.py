"""The Thrift transport's connections and threads: idle, slow and vanished peers, limits, and the end."""

import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from idl.thrift_schema import schema
from inference_server.transports.thrift_server import ThriftServer
from tests.eventually import eventually
from tests.inference_server.echo_engine import EchoEngine
from tests.inference_server.test_thrift_server import serving
from tests.inference_server.thrift_peer import Peer, frame, infer
from tests.processes import descriptors


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


def test_a_thousand_idle_connections_cost_no_thread_and_no_speed(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, threads=2) as (server, address, path):
        before = threading.active_count()
        idle = [Peer(address if number % 2 else path) for number in range(1000)]
        half = frame("ModelInfer", infer())
        for peer in idle[::2]:
            peer.send(half[:9])
        eventually(lambda: server.connections == 1000, "all are accepted")
        assert threading.active_count() == before
        with Peer(address) as peer:
            assert all(peer.alive() for _ in range(50))
        for peer in idle[::2]:
            peer.send(half[9:])
        assert all(peer.reply()[3].success.id == "7" for peer in idle[::2]) and all(peer.alive() for peer in idle[1::2])
        for peer in idle:
            peer.__exit__()
        eventually(lambda: server.connections == 0, "their descriptors are given back")


def test_callers_wait_for_a_bounded_number_of_threads(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, threads=3) as (_, address, _):
        before = threading.active_count()
        peers = [Peer(address) for _ in range(50)]
        for peer in peers:
            peer.send(frame("ModelInfer", infer("wait")))
        for _ in range(3):
            assert engine.entered.acquire(timeout=10)
        assert not engine.entered.acquire(timeout=0.05) and threading.active_count() == before
        engine.release.set()
        assert all(peer.reply()[3].success.id == "7" for peer in peers)
        for peer in peers:
            peer.__exit__()


def test_many_callers_get_their_own_answers(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, threads=4) as (_, address, path):

        def calls(number: int) -> bool:
            with Peer(address if number % 2 else path) as peer:
                data = [bytes([number, turn]) * (turn * 50) for turn in range(100)]
                return all(peer.call("ModelInfer", infer(data=part)).success.outputs[0].data == part for part in data)

        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(calls, range(12)))


def test_a_slow_sender_holds_no_thread(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, threads=1) as (_, address, _), Peer(address) as slow, Peer(address) as quick:
        whole = frame("ModelInfer", infer(data=bytes(200_000)))
        for start in range(0, len(whole), 20_000):
            slow.send(whole[start : start + 20_000])
            assert quick.alive()
        assert len(slow.reply()[3].success.outputs[0].data) == 200_000


def test_a_slow_reader_holds_no_thread_and_gets_everything(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, threads=1, max_frame_bytes=32 << 20) as (_, address, _), Peer(address) as slow, Peer(address) as quick:
        size = 24 << 20
        for _ in range(2):
            slow.send(frame("ModelInfer", infer("large", parameters={"size": str(size)})))
        assert all(quick.alive() for _ in range(20))
        assert [len(slow.reply()[3].success.outputs[0].data) for _ in range(2)] == [size, size]


def test_a_reader_that_takes_nothing_is_given_up(engine: EchoEngine, tmp_path: Path) -> None:
    with (
        serving(engine, tmp_path, threads=1, max_frame_bytes=32 << 20) as (server, address, _),
        Peer(address) as stuck,
        Peer(address) as quick,
    ):
        stuck.send(frame("ModelInfer", infer("large", parameters={"size": str(24 << 20)})))
        eventually(lambda: len(engine.seen) == 1 and quick.alive(), "the answer is on its way")
        server._server.sweep(time.monotonic() + 29)
        assert server.connections == 2 and quick.alive()
        later = time.monotonic() + 31
        eventually(lambda: server._server.sweep(later) or server.connections == 1, "a peer that takes nothing for 30 s is closed")
        assert quick.alive()


def test_idle_connections_are_closed_after_ten_minutes_and_not_before(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path) as (server, address, _), Peer(address) as idle, Peer(address) as half:
        assert idle.alive()
        half.send(frame("ModelInfer", infer())[:20])
        server._server.sweep(time.monotonic() + 590)
        assert idle.alive(), "thriftpy2's own server would have closed it after 3 s"
        later = time.monotonic() + 610
        eventually(lambda: server._server.sweep(later) or server.connections == 0, "a sweep passes over a connection that is just in use")
        assert idle.closed() and half.closed()


def test_a_short_idle_timeout_is_kept_by_the_threads_themselves(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, idle_timeout_s=0.1) as (_, address, _), Peer(address) as idle:
        assert idle.alive() and idle.closed()


def test_a_connection_in_use_is_not_idle(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path) as (server, address, _), Peer(address) as peer:
        peer.send(frame("ModelInfer", infer("wait")))
        assert engine.entered.acquire(timeout=10)
        server._server.sweep(time.monotonic() + 10_000)
        engine.release.set()
        assert peer.reply()[3].success.id == "7" and peer.alive()


def test_connections_are_limited(engine: EchoEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(engine, tmp_path, max_connections=2) as (server, address, path), Peer(address) as first:
        with Peer(path) as second:
            assert first.alive() and second.alive()
            for _ in range(5):
                with Peer(address) as third:
                    assert third.closed()
            assert first.alive() and second.alive()
        eventually(lambda: server.connections == 1, "one has left")
        with Peer(address) as third:
            assert third.alive()
    assert [record.getMessage() for record in caplog.records] == ["a connection was refused"], "said once a second at most"


def test_running_out_of_descriptors_is_survived(engine: EchoEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(engine, tmp_path) as (server, address, _), Peer(address) as old:
        assert old.alive()
        fresh = socket.socket()
        fresh.settimeout(10)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        fillers = [socket.socket() for _ in range(3)]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(filler.fileno() for filler in fillers) + 1, limits[1]))
            fresh.connect(address)
            eventually(lambda: any("no more connections" in record.getMessage() for record in caplog.records), "it is said")
            assert old.alive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for filler in fillers:
                filler.close()
        server._server.sweep(time.monotonic())
        fresh.sendall(frame("ServerLive", schema.ServerLiveRequest()))
        assert fresh.recv(100)
        fresh.close()


def test_a_client_that_went_away_before_its_turn_is_not_executed(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, threads=1) as (server, address, path), Peer(address) as first:
        gone = [Peer(address), Peer(path)]
        eventually(lambda: server.connections == 3, "all are accepted")
        first.send(frame("ModelInfer", infer("wait")))
        assert engine.entered.acquire(timeout=10)
        for peer in gone:
            peer.send(frame("ModelInfer", infer(id="gone")))
            peer.__exit__()
        engine.release.set()
        assert first.reply()[3].success.id == "7"
        eventually(lambda: server.connections == 1, "they are noticed")
        assert [request.id for request in engine.seen] == ["7"]


def test_a_client_that_goes_away_while_it_is_answered_harms_nobody(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, threads=1) as (server, address, _), Peer(address) as other:
        with Peer(address) as peer:
            peer.send(frame("ModelInfer", infer("wait")))
            assert engine.entered.acquire(timeout=10)
        engine.release.set()
        eventually(lambda: server.connections == 1, "it is noticed")
        assert other.alive()


# the end ------------------------------------------------------------------------------------------------------------------------------


def test_stop_answers_what_is_in_flight_and_closes_the_idle_ones(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path) as (server, address, _), Peer(address) as busy, Peer(address) as idle, Peer(address) as half:
        assert idle.alive()
        busy.send(frame("ModelInfer", infer("wait")))
        whole = frame("ModelInfer", infer(id="half"))
        half.send(whole[:50])
        assert engine.entered.acquire(timeout=10)
        stops = [threading.Thread(target=server.stop, args=(20,), name=f"stop-{number}") for number in range(2)]
        for stop in stops:
            stop.start()
        assert idle.closed()
        with pytest.raises(ConnectionRefusedError):
            Peer(address)
        half.send(whole[50:])
        assert half.reply()[3].success.id == "half" and half.closed(), "a frame that was on its way is answered"
        assert stops[0].is_alive()
        engine.release.set()
        assert busy.reply()[3].success.id == "7" and busy.closed()
        for stop in stops:
            stop.join(10)
        assert server.connections == 0 and not any(thread.name.startswith("thrift-") for thread in threading.enumerate())
        server.stop(0)


def test_stop_delivers_an_answer_that_the_peer_reads_slowly(engine: EchoEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, max_frame_bytes=32 << 20) as (server, address, _), Peer(address) as slow:
        slow.send(frame("ModelInfer", infer("large", parameters={"size": str(24 << 20)})))
        eventually(lambda: len(engine.seen) == 1, "it is being answered")
        stop = threading.Thread(target=server.stop, args=(20,), name="stop")
        stop.start()
        assert len(slow.reply()[3].success.outputs[0].data) == 24 << 20 and slow.closed()
        stop.join(10)
        assert not stop.is_alive()


def test_stop_cuts_off_what_outlives_its_grace(engine: EchoEngine, tmp_path: Path) -> None:
    before = descriptors()
    with serving(engine, tmp_path) as (server, address, _), Peer(address) as busy, Peer(address) as half:
        half.send(b"\0\0\0\x50\x80\x01")
        busy.send(frame("ModelInfer", infer("wait")))
        assert engine.entered.acquire(timeout=10)
        begun = time.monotonic()
        server.stop(0.1)
        assert 0.1 <= time.monotonic() - begun < 3
        assert half.closed() and busy.closed()
        engine.release.set()
        eventually(lambda: not any(thread.name.startswith("thrift-") for thread in threading.enumerate()), "the last thread leaves")
        assert descriptors() <= before + 2, "the last one to leave closes everything: what is left are the two peers' own sockets"


def test_a_server_that_never_started_can_be_stopped(engine: EchoEngine) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    server = ThriftServer(engine, listeners=[listener], max_frame_bytes=1, threads=1, token="", default_timeout_s=1)
    server.stop(1)
    server.stop(1)
    assert listener.fileno() == -1
