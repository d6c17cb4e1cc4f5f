"""Settings: one value, read in one place, that names what is wrong and hides what is secret."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from gateway.settings import PREFIX, Settings, SettingsError, half_the_cores

SECRET = "0123456789abcdef0123456789abcdef"


def test_defaults() -> None:
    settings = Settings.from_env({})
    assert settings == Settings()
    assert (settings.max_body_bytes, settings.request_timeout_s, settings.max_image_pixels) == (64 * 2**20, 30.0, 50_000_000)


def test_other_peoples_variables_are_not_looked_at() -> None:
    assert Settings.from_env({"OUTBOARD_SERVER_NOTHING": "1", "HOME": "/", "OUTBOARD_HTTP_PORT": "x"}) == Settings()


def test_every_type_is_read() -> None:
    values = {
        "DATA_DIR": "/srv/a b",
        "MODEL_HOSTS": "thrift://a:1, grpc://b:2,",
        "THREADS": "3",
        "REQUEST_TIMEOUT_S": "1.5",
        "LOG_LEVEL": "debug",
    }
    settings = Settings.from_env({PREFIX + name: text for name, text in values.items()})
    assert settings.data_dir == Path("/srv/a b")
    assert settings.model_hosts == ("thrift://a:1", "grpc://b:2")
    assert (settings.threads, settings.request_timeout_s, settings.log_level) == (3, 1.5, "debug")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NOTHING", "1"),
        ("data_dir", "x"),
        ("THREADS", "many"),
        ("THREADS", "1.5"),
        ("THREADS", "0"),
        ("REQUEST_TIMEOUT_S", "nan"),
        ("REQUEST_TIMEOUT_S", "inf"),
        ("REQUEST_TIMEOUT_S", "-1"),
        ("HTTP_PORT", "65536"),
        ("MODEL_HOSTS", " , "),
        ("LOG_LEVEL", "loud"),
        ("SECRET_KEY", "short"),
        ("SOCKET", "/tmp/" + "x" * 120),
        ("SOCKET", "/tmp/" + "ü" * 60),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=PREFIX + name):
        Settings.from_env({PREFIX + name: text})


def test_secrets_are_masked() -> None:
    settings = Settings(secret_key=SECRET, admin_password="hunter2 hunter2", model_host_token="t0ken")
    for shown in (repr(settings), str(settings), f"{settings}"):
        assert not any(secret in shown for secret in (SECRET, "hunter2", "t0ken"))
        assert "secret_key=***" in shown


def test_what_was_read_can_be_handed_on() -> None:
    settings = Settings(data_dir=Path("/x"), model_hosts=("a", "b"), threads=5, request_timeout_s=2.5, secret_key=SECRET)
    assert Settings.from_env(settings.to_env()) == settings
    assert Settings().to_env() == {}


def test_every_setting_says_what_it_is() -> None:
    assert all(spec.metadata["text"] for spec in fields(Settings))


def test_event_loops_are_there_behind_nginx_with_models_on_this_host() -> None:
    local = Settings(socket="/run/gateway.sock", model_hosts=("thrift+unix:///run/thrift.sock",))
    assert local.lanes == "/run/thrift.sock.lane"
    assert [str(path) for path in local.hot_sockets] == [f"/run/gateway-{number}.sock" for number in range(1, half_the_cores() + 1)]
    assert len(replace(local, hot_processes=3).hot_sockets) == 3
    elsewhere = ("thrift://10.0.0.2:9090",), ("thrift+unix:///a", "thrift+unix:///b"), ("grpc://10.0.0.2:8001",)
    for changed in ({"hot_processes": 0}, {"socket": ""}, *({"model_hosts": hosts} for hosts in elsewhere)):
        assert replace(local, **changed).hot_sockets == ()  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="107"):
        Settings(socket="/" + "x" * 100 + ".sock", model_hosts=("thrift+unix:///a",), hot_processes=1)
