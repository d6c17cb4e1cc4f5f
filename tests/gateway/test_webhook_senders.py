"""Sending notices where receivers are slow, hang or are turned off: the others' go on."""

# ruff: noqa: F401, F811 - fixtures are imported, and then are arguments
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from gateway import create_app
from gateway.context import Services
from gateway.operations.webhooks import new_secret
from gateway.settings import Settings
from gateway.storage.webhooks import DELIVERED, PENDING, DeliveryRecord, Due
from gateway.types import Role
from gateway.worker import deliveries
from gateway.worker.deliveries import Deliveries
from tests.certificates import Authority
from tests.eventually import eventually
from tests.gateway.accounts import Headers, person
from tests.gateway.test_webhooks import Receiver, ended_task, hook, log, receiver


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, webhook_addresses="any", webhook_timeout_s=20.0, access_token_ttl_s=10_000_000)


@pytest.fixture
def ann(services: Services) -> Headers:
    return person(services, "ann")


@pytest.fixture
def bob(services: Services) -> Headers:
    return person(services, "bob")


@contextmanager
def tarpit() -> Iterator[str]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


@contextmanager
def sending(services: Services) -> Iterator[Deliveries]:
    part = Deliveries(services)
    part.start()
    try:
        yield part
    finally:
        part.ask_to_stop()
        part.join(0.1)


def states(services: Services, made: dict[str, Any]) -> list[str]:
    return [each.state for each in services.storage.webhooks.deliveries(made["id"], None, None, 1000)]


def test_receivers_that_hang_hold_nobody_up(
    client: FlaskClient, services: Services, ann: Headers, bob: Headers, receiver: Receiver
) -> None:
    with tarpit() as pit:
        stuck = [hook(client, ann, pit) for _ in range(20)]
        for _ in range(5):
            ended_task(services, 1)
        bobs = hook(client, bob, receiver.url)
        for _ in range(60):
            ended_task(services, 2)
        began = time.monotonic()
        with sending(services):
            eventually(lambda: states(services, bobs).count(DELIVERED) == 60, "all of bob's are there", 15)
            assert time.monotonic() - began < services.settings.webhook_timeout_s / 2
            tried = [each for made in stuck for each in services.storage.webhooks.deliveries(made["id"], None, None, 10) if each.attempts]
            assert 0 < len(tried) <= 8, "a few of one user's at once"
    assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == len(receiver.got) == 60


@pytest.mark.parametrize("moment", ["handshake", "answer"])
def test_a_receiver_that_drips_over_tls_is_cut_off(
    moment: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    pair = authority.sign("server")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    stop = threading.Event()
    spoken = iter([b"\x16", b"\x03", b"\x03", b"\x40", b"\x00", *[b"\x02"] * 10_000])

    def drip(listener: socket.socket) -> None:
        taken, _ = listener.accept()
        with suppress(OSError):
            if moment == "answer":
                taken = context.wrap_socket(taken, server_side=True)
                taken.recv(1000)
            while not stop.wait(0.05):
                taken.sendall(b"H" if moment == "answer" else next(spoken))
        taken.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=[listener])
        thread.start()
        record = DeliveryRecord("msg_1", "wh_1", "t", "task.failed", "{}", PENDING, 1, 0.0, None, None, "", None)
        due = Due(record, f"https://127.0.0.1:{listener.getsockname()[1]}/", new_secret(), 1)
        began = time.monotonic()
        attempt = deliveries.send(replace(settings, webhook_timeout_s=0.5), due, 0.0)
        assert time.monotonic() - began < 5 and attempt.state == PENDING and attempt.error
        stop.set()
        thread.join()


def test_nothing_is_sent_after_it_was_turned_off(
    client: FlaskClient, services: Services, ann: Headers, bob: Headers, receiver: Receiver
) -> None:
    """By its owner, or with the owner's account."""
    anns, bobs = hook(client, ann, receiver.url), hook(client, bob, receiver.url)
    for user in (1, 2):
        ended_task(services, user)
    assert client.patch(f"/v1/webhooks/{anns['id']}", json={"enabled": False}, headers=ann).status_code == 200
    (entry,) = log(client, ann, anns)
    assert entry["state"] == "failed" and "turned off" in entry["last_error"]
    admin = person(services, "root", Role.ADMINISTRATOR)
    assert client.patch("/v1/admin/users/bob", json={"disabled": True}, headers=admin).status_code == 200
    assert deliveries.send_due(services) is False and not receiver.got
    assert states(services, bobs) == ["failed"]
    ended_task(services, 2)
    assert states(services, bobs) == ["failed"], "and nothing new is noted"
    assert client.patch(f"/v1/webhooks/{anns['id']}", json={"enabled": True}, headers=ann).status_code == 200
    ended_task(services, 1)
    assert deliveries.send_due(services) and len(receiver.got) == 1


def test_another_try_that_is_asked_for_meanwhile_is_not_lost(
    client: FlaskClient, services: Services, ann: Headers, receiver: Receiver
) -> None:
    made, store = hook(client, ann, receiver.url), services.storage.webhooks
    ended_task(services, 1)
    receiver.status = 500
    (due,) = store.claim(services.now(), 60.0, 10)
    attempt = deliveries.send(services.settings, due, services.now().timestamp())
    assert client.post(f"/v1/webhooks/{made['id']}/deliveries/{due.delivery.id}/retry", headers=ann).status_code == 202
    store.settle([attempt], services.now(), 20)
    receiver.status = 200
    assert deliveries.send_due(services) and states(services, made) == [DELIVERED]


def test_an_end_waits_for_what_is_sent(client: FlaskClient, services: Services, ann: Headers, receiver: Receiver) -> None:
    made = hook(client, ann, receiver.url)
    for _ in range(10):
        ended_task(services, 1)
    part = Deliveries(services)
    part.start()
    eventually(lambda: len(receiver.got) > 0, "it sends", 10)
    part.ask_to_stop()
    assert part.join(10)
    told = {headers["webhook-id"] for _, headers, _ in receiver.got}
    sent = {each.id for each in services.storage.webhooks.deliveries(made["id"], DELIVERED, None, 100)}
    assert sent == told, "what was sent is noted"
