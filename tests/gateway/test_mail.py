"""Letters over a real mail server: encrypted, signed in, refused, gone, and sent once by many workers."""

import json
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from gateway import build_services, create_app
from gateway.context import Services
from gateway.settings import Settings, SettingsError
from gateway.storage import outbox
from gateway.storage.outbox import Letter
from tests.certificates import Authority
from tests.eventually import eventually
from tests.gateway.accounts import code_in_outbox, register, signed_in
from tests.gateway.conftest import Gateway, SetClock, unreachable_models
from tests.processes import free_port

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning")
SENDER = "outboard@example.org"
MAIL = "ann@example.org"


@dataclass
class Postman:
    """What the server took, and what it says to whom."""

    taken: list[EmailMessage] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)
    sessions: list[bool] = field(default_factory=list)
    """Of each letter, whether it came over TLS."""

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:  # noqa: N802
        if address in self.said:
            return self.said[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        made = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(made, EmailMessage)
        self.taken.append(made)
        self.sessions.append(server.transport is not None and server.transport.get_extra_info("ssl_object") is not None)
        return "250 taken"


def authenticate(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    right = isinstance(data, LoginPassword) and (data.login, data.password) == (b"outboard", b"a mail password")
    return AuthResult(success=right, handled=right)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("mail"))


@pytest.fixture
def serve(authority: Authority) -> Iterator[Callable[..., Controller]]:
    """Starts mail servers that end with the test."""
    started: list[Controller] = []

    def start(postman: Postman, *, tls: str = "none", auth: bool = False, port: int = 0) -> Controller:
        context = None
        if tls != "none":
            pair = authority.sign("localhost")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pair.certificate, pair.key)
        more: dict[str, Any] = {"ssl_context": context} if tls == "tls" else {}
        if tls == "starttls":
            more |= {"tls_context": context, "require_starttls": True}
        if auth:
            more |= {"authenticator": authenticate, "auth_required": True, "auth_require_tls": tls == "starttls"}
        server = Controller(postman, hostname="localhost", port=port or free_port(), **more)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        with suppress(Exception):
            server.stop()


@pytest.fixture
def made(settings: Settings, time_of_day: SetClock) -> Iterator[Callable[..., Services]]:
    """Services with mail settings, on one state; they end with the test."""
    built: list[Services] = []

    def build(**changes: Any) -> Services:
        changed = replace(settings, smtp_host="localhost", smtp_sender=SENDER, smtp_tls="none") if changes.get("smtp_port") else settings
        built.append(build_services(replace(changed, **changes), unreachable_models(settings), now=time_of_day))
        return built[-1]

    yield build
    for services in built:
        services.close()


def put(services: Services, address: str = MAIL, valid_s: float = 600.0) -> None:
    with services.storage.database.write() as db:
        now = services.now()
        outbox.add(db, Letter(address, "a subject", "123456\n\n您的验证码\n"), now, now + timedelta(seconds=valid_s))


def letter(services: Services) -> outbox.OutboxRecord:
    return services.storage.outbox.page("", None, 1)[0]


@pytest.mark.parametrize("tls", ["none", "starttls", "tls"])
def test_a_registration_by_mail(serve: Any, made: Any, authority: Authority, tls: str) -> None:
    postman = Postman()
    server = serve(postman, tls=tls, auth=True)
    services = made(smtp_port=server.port, smtp_tls=tls, smtp_ca=str(authority.file), smtp_user="outboard", smtp_password="a mail password")
    client = create_app(services.settings, services=services).test_client()
    register(client, email=MAIL)
    code = code_in_outbox(services, MAIL)
    assert services.mail.send_due() == 1 and services.mail.send_due() == 0
    (taken,) = postman.taken
    assert (
        (taken["To"], taken["From"], taken["Auto-Submitted"]) == (MAIL, SENDER, "auto-generated") and taken["Message-ID"] and taken["Date"]
    )
    assert taken.get_content().startswith(f"{code}\n") and "验证码" in taken.get_content() and "ann" in taken.get_content()
    assert postman.sessions == [tls != "none"]
    assert (letter(services).state, letter(services).body) == ("sent", ""), "a code that was sent is kept nowhere"
    assert client.post("/v1/users/verify", json={"email": MAIL, "code": code}).status_code == 204
    assert "email_verified_at" in client.get("/v1/me", headers=signed_in(client)).get_json()


def test_several_letters_go_over_one_connection(serve: Any, made: Any) -> None:
    postman = Postman(said={"bad@example.org": "550 no such mailbox"})
    services = made(smtp_port=serve(postman).port)
    for address in ("a@example.org", "bad@example.org", "b@example.org"):
        put(services, address)
    assert services.mail.send_due() == 3
    assert [taken["To"] for taken in postman.taken] == ["a@example.org", "b@example.org"]
    refused = services.storage.outbox.page("failed", None, 10)
    assert [(found.address, found.error) for found in refused] == [("bad@example.org", "the mail server said 550 no such mailbox")]


def test_a_server_that_is_away_is_asked_again(serve: Any, made: Any, time_of_day: SetClock) -> None:
    port, postman = free_port(), Postman()
    services = made(smtp_port=port)
    put(services)
    assert services.mail.send_due() == 1
    waiting = letter(services)
    assert (waiting.state, waiting.attempts) == ("waiting", 1) and "cannot be reached" in waiting.error
    assert services.mail.send_due() == 0, "not before its time"
    time_of_day.advance(5)
    assert services.mail.send_due() == 1 and letter(services).attempts == 2
    serve(postman, port=port)
    time_of_day.advance(15)
    assert services.mail.send_due() == 1 and len(postman.taken) == 1 and letter(services).state == "sent"


def test_a_mailbox_that_says_later_is_asked_later(serve: Any, made: Any, time_of_day: SetClock) -> None:
    postman = Postman(said={MAIL: "451 greylisted"})
    services = made(smtp_port=serve(postman).port)
    put(services)
    assert services.mail.send_due() == 1 and letter(services).state == "waiting" and "451" in letter(services).error
    postman.said.clear()
    time_of_day.advance(5)
    services.mail.send_due()
    assert letter(services).state == "sent"


def test_a_code_that_has_expired_is_not_sent(serve: Any, made: Any, time_of_day: SetClock) -> None:
    postman = Postman()
    services = made(smtp_port=serve(postman).port)
    put(services)
    time_of_day.advance(600)
    services.mail.send_due()
    assert (letter(services).state, letter(services).error) == ("failed", "it was too late to send it") and postman.taken == []


def test_retries_end_with_the_codes_life(made: Any, time_of_day: SetClock) -> None:
    services = made(smtp_port=free_port())
    put(services)
    for _ in range(40):
        services.mail.send_due()
        time_of_day.advance(60)
    assert letter(services).state == "failed" and "cannot be reached" in letter(services).error and letter(services).attempts < 10


@pytest.mark.parametrize(
    ("server", "changes", "reason"),
    [
        ({"tls": "none"}, {"smtp_tls": "starttls"}, "STARTTLS"),
        ({"tls": "starttls"}, {"smtp_tls": "starttls", "smtp_ca": ""}, "certificate"),
        ({"tls": "none", "auth": True}, {"smtp_user": "outboard", "smtp_password": "wrong"}, "535"),
    ],
)
def test_nothing_is_sent_in_another_way_than_was_said(
    serve: Any, made: Any, authority: Authority, server: Any, changes: Any, reason: str
) -> None:
    postman = Postman()
    services = made(smtp_port=serve(postman, **server).port, **({"smtp_ca": str(authority.file)} | changes))
    put(services)
    services.mail.send_due()
    assert postman.taken == [] and letter(services).state == "waiting" and reason in letter(services).error, letter(services).error


def test_many_workers_send_each_letter_once(serve: Any, made: Any) -> None:
    postman = Postman()
    port = serve(postman).port
    workers = [made(smtp_port=port) for _ in range(3)]
    for number in range(30):
        put(workers[0], f"user{number}@example.org")
    threads = [threading.Thread(target=worker.mail.send_due) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken["To"] for taken in postman.taken) == sorted(f"user{number}@example.org" for number in range(30))


def test_a_worker_that_was_killed_has_its_letter_sent_by_another(serve: Any, made: Any, time_of_day: SetClock) -> None:
    postman = Postman()
    services = made(smtp_port=serve(postman).port)
    put(services)
    assert services.storage.outbox.claim(services.now(), 120.0) is not None  # and then nothing more is heard of it
    assert services.mail.send_due() == 0
    time_of_day.advance(120)
    assert services.mail.send_due() == 1 and len(postman.taken) == 1


def test_without_a_mail_server_letters_wait_a_week(made: Any, time_of_day: SetClock) -> None:
    services = made()
    put(services)
    assert services.mail.send_due() == 0 and letter(services).state == "waiting"
    time_of_day.advance(7 * 86_400 + 1)
    services.mail.send_due()
    assert services.storage.outbox.page("", None, 10) == []


@pytest.mark.parametrize("address", ["a\u00e4@example.org", "ann@ex\u00e4mple.org"])
def test_an_address_beyond_ascii_breaks_nothing(serve: Any, made: Any, address: str) -> None:
    postman = Postman()
    services = made(smtp_port=serve(postman).port)
    put(services, address)
    put(services, "next@example.org")
    assert services.mail.send_due() == 2
    assert [taken["To"] for taken in postman.taken if "next" in taken["To"]] == ["next@example.org"]


@pytest.mark.parametrize("address", [";[@^b],=<", "-$:[)-;?^@=%b,'?=-", "(#_&!).=?a`@{\u4e2d%u-\\~>."])
def test_an_address_that_no_letter_can_go_to_holds_up_no_other(serve: Any, made: Any, address: str) -> None:
    """None of them is taken any more; some may be in a database of before."""
    postman = Postman()
    services = made(smtp_port=serve(postman).port)
    put(services, address)
    put(services, "next@example.org")
    assert services.mail.send_due() == 2
    assert [taken["To"] for taken in postman.taken] == ["next@example.org"]
    assert {(found.address, found.state) for found in services.storage.outbox.page("", None, 10)} == {
        (address, "failed"),
        ("next@example.org", "sent"),
    }
    assert services.mail.send_due() == 0


def test_settings_that_do_not_fit_together(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="SMTP_SENDER"):
        Settings(data_dir=tmp_path, smtp_host="mail.example.org")
    shown = repr(Settings(data_dir=tmp_path, smtp_password="a mail password"))
    assert "a mail password" not in shown


def test_the_task_worker_of_a_real_gateway_sends_them(serve: Any, settings: Settings, gateways: Callable[[Settings], Gateway]) -> None:
    postman = Postman()
    changes: dict[str, Any] = {"smtp_host": "localhost", "smtp_port": serve(postman).port, "smtp_tls": "none", "smtp_sender": SENDER}
    gateway = gateways(replace(settings, http_port=free_port(), processes=1, **changes))

    def post(path: str, body: dict[str, str]) -> int:
        request = urllib.request.Request(gateway.url(path), json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)

    gateway.program.wait_for('"worker_ready"')
    assert post("/v1/users", {"username": "ann", "password": "correct horse battery", "email": MAIL}) == 201
    eventually(lambda: postman.taken, "the letter comes", 20)
    code = postman.taken[0].get_content()[:6]
    assert post("/v1/users/verify", {"email": MAIL, "code": code}) == 204
    assert code not in gateway.program.log, "with a mail server a code is in no log"
