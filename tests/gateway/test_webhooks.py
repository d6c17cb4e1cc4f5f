"""Webhooks: who is told, how it is signed, and where none may lead."""

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask.testing import FlaskClient

from gateway import create_app
from gateway.context import Services
from gateway.operations import webhook_targets, webhooks
from gateway.operations.tasks import Target
from gateway.settings import Settings
from gateway.types import Principal, Role
from gateway.worker import deliveries
from idl.codes import Code, ServingError
from tests.gateway.accounts import Headers, person
from tests.gateway.conftest import SetClock
from tests.http_servers import Answer, taking_posts


class Receiver:
    """Takes notices, and answers them with `status`."""

    def __init__(self) -> None:
        self.status = 204
        self.headers: dict[str, str] = {}
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.url = ""

    def take(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        self.got.append((path, headers, body))
        return self.status, self.headers, b""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    with taking_posts(made.take) as address:
        made.url = f"http://{address}/hook?a=1"
        yield made


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, webhook_addresses="any", webhook_timeout_s=20.0, access_token_ttl_s=10_000_000)


@pytest.fixture
def ann(services: Services) -> Headers:
    return person(services, "ann")


def hook(client: FlaskClient, ann: Headers, url: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/webhooks", json={"url": url, **more}, headers=ann)
    assert answer.status_code == 201, answer.get_json()
    return dict(answer.get_json())


def ended_task(services: Services, user_id: int = 1) -> str:
    """A task that ends at once."""
    principal = Principal(user_id, "ann", Role.USER)
    task = services.tasks.submit(principal, Target("m"), b"{}", "application/json")
    services.tasks.cancel(principal, task.id)
    return task.id


def log(client: FlaskClient, ann: Headers, made: dict[str, Any], **query: str) -> list[dict[str, Any]]:
    answer = client.get(f"/v1/webhooks/{made['id']}/deliveries", query_string=query, headers=ann)
    assert answer.status_code == 200, answer.get_json()
    return list(answer.get_json()["items"])


def test_a_notice_is_signed_sent_and_noted(
    client: FlaskClient, services: Services, ann: Headers, receiver: Receiver, time_of_day: SetClock
) -> None:
    made = hook(client, ann, receiver.url, description="mine")
    task_id = ended_task(services)
    (pending,) = log(client, ann, made)
    assert pending["state"] == "pending" and pending["attempts"] == 0 and pending["next_at"]
    assert deliveries.send_due(services) is True and deliveries.send_due(services) is False
    ((path, headers, body),) = receiver.got
    assert path == "/hook?a=1" and headers["content-type"] == "application/json"
    told = json.loads(body)
    assert told["type"] == "task.cancelled" and told["data"]["id"] == task_id and told["timestamp"] == told["data"]["finished_at"]
    assert headers["webhook-timestamp"] == str(int(time_of_day().timestamp()))
    # Standard Webhooks 1.0.0, "Signature scheme", computed here from its text
    key = base64.b64decode(made["secret"].removeprefix("whsec_"))
    signed = b".".join((headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body))
    assert headers["webhook-signature"] == "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    (done,) = log(client, ann, made)
    assert (done["id"], done["state"], done["attempts"], done["last_status"]) == (headers["webhook-id"], "delivered", 1, 204)
    assert done["payload"] == told and log(client, ann, made, state="failed") == []


def test_the_signature_of_the_specifications_example() -> None:
    """The secret, id, timestamp and signature of its reference implementations' tests."""
    made = webhooks.headers("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_failures_are_tried_again_later_and_given_up(
    client: FlaskClient, services: Services, ann: Headers, receiver: Receiver, time_of_day: SetClock
) -> None:
    made = hook(client, ann, receiver.url)
    ended_task(services)
    receiver.status, receiver.headers = 302, {"Location": "/elsewhere"}
    deliveries.send_due(services)
    (once,) = log(client, ann, made)
    assert (once["state"], once["attempts"], once["last_status"]) == ("pending", 1, 302) and "redirects" in once["last_error"]
    assert len(receiver.got) == 1, "a redirect is not followed"
    time_of_day.advance(4.9)
    assert not deliveries.send_due(services)
    time_of_day.advance(0.7)
    receiver.status, receiver.headers = 503, {"Retry-After": "4000"}
    assert deliveries.send_due(services)
    time_of_day.advance(3999)
    assert not deliveries.send_due(services), "it was asked to wait"
    receiver.headers = {}
    for _ in range(8):
        time_of_day.advance(2 * 86_400)
        assert deliveries.send_due(services)
    (given_up,) = log(client, ann, made)
    assert (given_up["state"], given_up["attempts"], given_up["next_at"]) == ("failed", 10, None) and given_up["finished_at"]
    receiver.status = 200
    again = client.post(f"/v1/webhooks/{made['id']}/deliveries/{given_up['id']}/retry", headers=ann)
    assert again.status_code == 202 and deliveries.send_due(services)
    assert log(client, ann, made)[0]["state"] == "delivered"
    assert {headers["webhook-id"] for _, headers, _ in receiver.got} == {given_up["id"]}


def test_a_receiver_that_wants_no_more_gets_no_more(client: FlaskClient, services: Services, ann: Headers, receiver: Receiver) -> None:
    made = hook(client, ann, receiver.url)
    receiver.status = 410
    for _ in range(3):
        ended_task(services)
    deliveries.send_due(services)
    assert client.get(f"/v1/webhooks/{made['id']}", headers=ann).get_json()["enabled"] is False
    assert {entry["state"] for entry in log(client, ann, made)} == {"failed"}
    ended_task(services)
    assert len(log(client, ann, made)) == 3
    refused = client.post(f"/v1/webhooks/{made['id']}/deliveries/{log(client, ann, made)[0]['id']}/retry", headers=ann)
    assert refused.status_code == 409
    assert client.patch(f"/v1/webhooks/{made['id']}", json={"enabled": True}, headers=ann).status_code == 200
    ended_task(services)
    assert len(log(client, ann, made, state="pending")) == 1


def test_events_others_and_nobody(client: FlaskClient, services: Services, ann: Headers, receiver: Receiver) -> None:
    bob = person(services, "bob")
    wanted = hook(client, ann, receiver.url, events=["task.cancelled"])
    unwanted = hook(client, ann, receiver.url, events=["task.failed"])
    others = hook(client, bob, receiver.url)
    ended_task(services)
    assert [len(log(client, who, each)) for who, each in ((ann, wanted), (ann, unwanted), (bob, others))] == [1, 0, 0]
    for method, path in (("get", ""), ("patch", ""), ("delete", ""), ("get", "/deliveries"), ("post", "/secret")):
        answer = getattr(client, method)(
            f"/v1/webhooks/{wanted['id']}{path}", headers=bob, **({"json": {"url": receiver.url}} if method == "patch" else {})
        )
        assert answer.status_code == 404, (method, path)
    assert "secret" not in client.get(f"/v1/webhooks/{wanted['id']}", headers=ann).get_json()
    renewed = client.post(f"/v1/webhooks/{wanted['id']}/secret", headers=ann).get_json()
    assert renewed["secret"] != wanted["secret"]
    assert {each["id"] for each in client.get("/v1/webhooks", headers=ann).get_json()["items"]} == {wanted["id"], unwanted["id"]}
    assert client.delete(f"/v1/webhooks/{wanted['id']}", headers=ann).status_code == 204
    assert not deliveries.send_due(services) and not receiver.got


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.com/", "https://", "https:///x", "https://user@example.com/", "https://example.com/#x", "https://exa mple.com/"),
        *("https://example.com:99999/", "https://example.com:0/", "http://[::1/", "javascript:alert(1)", "https://example.com/\\x"),
    ],
)
def test_what_is_no_address(client: FlaskClient, ann: Headers, url: str) -> None:
    answer = client.post("/v1/webhooks", json={"url": url}, headers=ann)
    assert answer.status_code == 400 and answer.get_json()["errors"][0]["field"] == "url"


def test_secrets_that_are_given(client: FlaskClient, ann: Headers) -> None:
    for secret in ("whsec_", "whsec_!!!!", "x" * 40, "whsec_" + base64.b64encode(b"short").decode()):
        assert client.post("/v1/webhooks", json={"url": "https://example.com", "secret": secret}, headers=ann).status_code == 400, secret
    mine = "whsec_" + base64.b64encode(bytes(range(24))).decode()
    assert hook(client, ann, "https://example.com", secret=mine)["secret"] == mine


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *(("93.184.216.34", True), ("2606:2800:220:1::1", True), ("127.0.0.1", False), ("10.1.2.3", False), ("192.168.0.1", False)),
        *(("172.16.0.1", False), ("169.254.169.254", False), ("0.0.0.0", False), ("100.64.0.1", False), ("224.0.0.1", False)),
        *(("255.255.255.255", False), ("::1", False), ("::", False), ("fe80::1%eth0", False), ("fc00::1", False), ("ff02::1", False)),
        *(("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("::7f00:1", False)),
        *(("192.0.2.1", False), ("240.0.0.1", False), ("nonsense", False)),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert webhook_targets.is_public(address) is public


def test_a_name_is_looked_up_once_and_every_address_of_it_must_be_public() -> None:
    target = webhook_targets.place("https://example.com/x")
    answers = [["93.184.216.34", "127.0.0.1"], ["93.184.216.34"]]
    with pytest.raises(ServingError) as refused:
        webhook_targets.address_of(target, False, lambda *_: answers.pop(0))
    assert refused.value.code is Code.FORBIDDEN
    assert webhook_targets.address_of(target, False, lambda *_: answers.pop(0)) == "93.184.216.34" and not answers
    assert webhook_targets.address_of(target, True, lambda *_: ["127.0.0.1"]) == "127.0.0.1"


def test_private_addresses_are_refused_at_both_ends(
    settings: Settings, services: Services, ann: Headers, receiver: Receiver, client: FlaskClient
) -> None:
    made = hook(client, ann, receiver.url)
    ended_task(services)
    strict = replace(services, settings=replace(settings, webhook_addresses="public"))
    deliveries.send_due(strict)
    (entry,) = log(client, ann, made)
    assert entry["state"] == "pending" and "public internet" in entry["last_error"] and not receiver.got
    closed = create_app(strict.settings, services=strict).test_client()
    for url in (receiver.url, "http://localhost/x", "http://[::1]/", "http://10.0.0.1/", "http://127.1/"):
        assert closed.post("/v1/webhooks", json={"url": url}, headers=ann).status_code == 400, url


def test_a_receiver_that_never_ends_is_cut_off(client: FlaskClient, services: Services, settings: Settings, ann: Headers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def drip() -> None:
            sock, _ = listener.accept()
            with sock:
                while not stop.wait(0.05):
                    try:
                        sock.sendall(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        made = hook(client, ann, f"http://127.0.0.1:{listener.getsockname()[1]}/")
        ended_task(services)
        quick, began = replace(services, settings=replace(settings, webhook_timeout_s=0.5)), time.monotonic()
        deliveries.send_due(quick)
        assert time.monotonic() - began < 5
        stop.set()
        thread.join()
    (entry,) = log(client, ann, made)
    assert entry["state"] == "pending" and entry["last_error"]
