"""Thrift over TLS, down to its records: without a thread for a connection that waits, and no peer keeps another waiting."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from idl.thrift_schema import schema
from inference_server.tls import Certificates, TlsFiles
from inference_server.transports import framed_tls
from inference_server.transports.framed_tls import TlsSocket
from inference_server.transports.thrift_server import ThriftServer
from tests.certificates import Authority
from tests.eventually import eventually
from tests.inference_server.echo_engine import EchoEngine
from tests.inference_server.test_thrift_server import LIMIT, serving
from tests.inference_server.thrift_peer import Peer, frame, infer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, TlsFiles]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    host = authority.sign("host")
    return authority, TlsFiles(host.certificate, host.key)


Address = tuple[str, int]


@pytest.fixture
def served(files: tuple[Authority, TlsFiles], tmp_path: Path) -> Iterator[tuple[ThriftServer, Address, str]]:
    certificates = Certificates(files[1], TlsSocket)
    with serving(EchoEngine(), tmp_path, tls=lambda: certificates.current.context) as made:
        yield made


@pytest.fixture
def context(files: tuple[Authority, TlsFiles]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(files[0].file))


@contextmanager
def secure(address: Address, context: ssl.SSLContext) -> Iterator[Peer]:
    with Peer(address) as peer:
        peer.sock = context.wrap_socket(peer.sock, server_hostname="localhost")
        yield peer


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_every_size_comes_back(served: tuple[ThriftServer, Address, str], context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    """Around a record's 16 KiB, what is read at once, and what is sent at once."""
    context.maximum_version = version
    with secure(served[1], context) as peer:
        for size in (0, 1, 16_000, 16_384, 16_385, 65_536, 65_537, 200_000, LIMIT - 4096):
            data = bytes(range(256)) * (size // 256) + bytes(size % 256)
            assert peer.call("ModelInfer", infer(data=data)).success.outputs[0].data == data
        assert peer.error("ModelInfer", infer(data=bytes(LIMIT))).code == "too_large"
        assert peer.alive()


def test_frames_in_one_record_are_all_answered(served: tuple[ThriftServer, Address, str], context: ssl.SSLContext) -> None:
    """What OpenSSL holds decrypted is no event of the kernel's: nobody else would ask for it."""
    with secure(served[1], context) as peer:
        for size in (10, 5000, 70_000):
            peer.send(b"".join(frame("ModelInfer", infer(data=bytes([turn]) * size), turn) for turn in range(1, 21)))
            for turn in range(1, 21):
                method, _, sequence, result = peer.reply()
                assert (method, sequence) == ("ModelInfer", turn) and result.success.outputs[0].data == bytes([turn]) * size


def test_a_frame_in_records_of_one_byte(served: tuple[ThriftServer, Address, str], context: ssl.SSLContext) -> None:
    with secure(served[1], context) as peer:
        for byte in frame("ServerLive", schema.ServerLiveRequest()):
            peer.send(bytes([byte]))
        assert peer.reply()[3].success.live


def test_connections_that_wait_hold_no_thread(served: tuple[ThriftServer, Address, str], context: ssl.SSLContext) -> None:
    server, address, _ = served
    before = threading.active_count()
    silent = [socket.create_connection(address) for _ in range(50)]  # not a byte of a handshake
    peers = [secure(address, context) for _ in range(50)]
    opened = [peer.__enter__() for peer in peers]
    try:
        eventually(lambda: server.connections == 100, "all are there")
        assert threading.active_count() == before and all(peer.alive() for peer in opened)
    finally:
        for peer in peers:
            peer.__exit__(None, None, None)
        for sock in silent:
            sock.close()
    eventually(lambda: server.connections == 0, "all have gone")


def test_a_handshake_that_does_not_end_is_ended(served: tuple[ThriftServer, Address, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte from time to time does not help."""
    server, address, _ = served
    with Peer(address) as peer:
        peer.send(b"\x16\x03\x01")
        eventually(lambda: server.connections == 1, "it is there")
        (connection,) = server._server._connections.values()
        server._server.sweep(connection.touched + framed_tls.HANDSHAKE_S - 0.1)
        assert server.connections == 1
        peer.send(b"\x02")
        server._server.sweep(connection.touched + framed_tls.HANDSHAKE_S + 0.1)
        assert server.connections == 0 and peer.closed()


def test_what_is_no_tls_is_closed(served: tuple[ThriftServer, Address, str], context: ssl.SSLContext) -> None:
    server, address, path = served
    for sent in (frame("ServerLive", schema.ServerLiveRequest()), b"GET / HTTP/1.1\r\n\r\n", bytes(100)):
        with Peer(address) as peer:
            peer.send(sent)
            eventually(lambda: server.connections == 0, "it is closed")
            assert b"live" not in peer.sock.recv(1000)
    with Peer(path) as peer:
        assert peer.alive(), "a unix socket stays plain"
    with secure(address, context) as peer:
        assert peer.alive()


def test_old_versions_of_tls_are_refused(served: tuple[ThriftServer, Address, str], context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError), secure(served[1], context):
        pass


def test_a_slow_reader_keeps_nobody_waiting(served: tuple[ThriftServer, Address, str], context: ssl.SSLContext) -> None:
    data = bytes(LIMIT - 4096)
    with secure(served[1], context) as slow, secure(served[1], context) as quick:
        for _ in range(4):  # few enough to be sent whole, though nothing is read meanwhile
            slow.send(frame("ModelInfer", infer(data=data)))
        for _ in range(20):
            assert quick.alive()
        for _ in range(4):
            assert slow.reply()[3].success.outputs[0].data == data


def test_a_stop_ends_connections_in_every_state(served: tuple[ThriftServer, Address, str], context: ssl.SSLContext) -> None:
    server, address, _ = served
    with Peer(address) as silent, secure(address, context) as idle:
        assert idle.alive()
        eventually(lambda: server.connections == 2, "both are there")
        server.stop(5)
        assert server.connections == 0 and silent.closed() and idle.closed()


def test_files_that_cannot_be_used_say_why(files: tuple[Authority, TlsFiles], tmp_path: Path) -> None:
    authority, good = files
    (tmp_path / "empty.pem").write_bytes(b"")
    (tmp_path / "garbage.pem").write_bytes(b"\xff garbage")
    wrong = {
        "absent.pem: No such file": TlsFiles(tmp_path / "absent.pem", good.key),
        "empty.pem is empty": TlsFiles(tmp_path / "empty.pem", good.key),
        "not a pair in PEM": TlsFiles(tmp_path / "garbage.pem", good.key),
        "the key is not that of the certificate": TlsFiles(good.certificate, authority.pair.key),
        "holds no certificates in PEM": TlsFiles(good.certificate, good.key, tmp_path / "garbage.pem"),
    }
    for says, made in wrong.items():
        with pytest.raises(ValueError, match=says) as caught:
            Certificates(made)
        assert str(tmp_path) not in str(caught.value)
