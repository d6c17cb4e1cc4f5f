"""The server's settings: one prefix, nothing unknown, secrets hidden, no open door by accident."""

from pathlib import Path

import pytest

from inference_server.settings import InvalidSettings, Settings, is_loopback

BASE = {"OUTBOARD_SERVER_MODELS": "a:b"}


def test_every_kind_of_setting_is_read() -> None:
    made = Settings.from_env(
        {
            **BASE,
            "OUTBOARD_SERVER_GRPC_PORT": "0",
            "OUTBOARD_SERVER_INSECURE": "true",
            "OUTBOARD_SERVER_DRAIN_TIMEOUT_S": "1.5",
            "OUTBOARD_SERVER_GRPC_SOCKET": "run/grpc.sock",
            "OUTBOARD_SERVER_EXECUTION_PROVIDERS": "CUDAExecutionProvider, CPUExecutionProvider",
            "OUTBOARD_GATEWAY_THREADS": "not ours",
        },
        thrift_port=5,
        host=None,
    )
    assert made.models == (Path("a"), Path("b")) and made.grpc_port == 0 and made.insecure and made.drain_timeout_s == 1.5
    assert made.grpc_socket == Path("run/grpc.sock") and made.thrift_port == 5 and made.host == "127.0.0.1"
    assert made.execution_providers == ("CUDAExecutionProvider", "CPUExecutionProvider")


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, "OUTBOARD_SERVER_MODELS"),
        ({**BASE, "OUTBOARD_SERVER_COLOUR": "red"}, "OUTBOARD_SERVER_COLOUR"),
        ({**BASE, "OUTBOARD_SERVER_GRPC_PORT": "many"}, "OUTBOARD_SERVER_GRPC_PORT"),
        ({**BASE, "OUTBOARD_SERVER_GRPC_PORT": "65536"}, "65536"),
        ({**BASE, "OUTBOARD_SERVER_INSECURE": "perhaps"}, "OUTBOARD_SERVER_INSECURE"),
        ({**BASE, "OUTBOARD_SERVER_LOG_LEVEL": "loud"}, "loud"),
        ({**BASE, "OUTBOARD_SERVER_GRPC_THREADS": "0"}, "GRPC_THREADS"),
        ({**BASE, "OUTBOARD_SERVER_MEMORY_LIMITS": "perhaps"}, "perhaps"),
        ({**BASE, "OUTBOARD_SERVER_KEPT_MEMORY_BYTES": "-1"}, "KEPT_MEMORY_BYTES"),
        ({**BASE, "OUTBOARD_SERVER_HANG_GRACE_S": "-1"}, "HANG_GRACE_S"),
        ({**BASE, "OUTBOARD_SERVER_VALIDATIONS": "-1"}, "VALIDATIONS"),
        ({"OUTBOARD_SERVER_MODELS": "/a:/b/c", "OUTBOARD_SERVER_USER_MODELS": "/b"}, "USER_MODELS"),
        ({"OUTBOARD_SERVER_MODELS": "/a:/b", "OUTBOARD_SERVER_USER_MODELS": "/a/../b/users"}, "USER_MODELS"),
        ({**BASE, "OUTBOARD_SERVER_VALIDATION_MAX_BYTES": "0"}, "VALIDATION_MAX_BYTES"),
        ({**BASE, "OUTBOARD_SERVER_VALIDATION_MEMORY_BYTES": "1000"}, "VALIDATION_MEMORY_BYTES"),
        ({**BASE, "OUTBOARD_SERVER_VALIDATION_TIMEOUT_S": "0"}, "VALIDATION_TIMEOUT_S"),
        ({**BASE, "OUTBOARD_SERVER_HOST": "0.0.0.0"}, "OUTBOARD_SERVER_TOKEN"),
        ({**BASE, "OUTBOARD_SERVER_HOST": "models.example"}, "OUTBOARD_SERVER_TOKEN"),
        ({**BASE, "OUTBOARD_SERVER_TOKEN": "a,b,c"}, "3 tokens"),
        ({**BASE, "OUTBOARD_SERVER_TOKEN": "a, "}, "an empty one"),
        ({**BASE, "OUTBOARD_SERVER_TLS_KEY": "k"}, "TLS_CERTIFICATE"),
        ({**BASE, "OUTBOARD_SERVER_TLS_CLIENT_CA": "a"}, "TLS_CERTIFICATE"),
    ],
)
def test_what_cannot_be_used_is_named(environ: dict[str, str], names: str) -> None:
    with pytest.raises(InvalidSettings, match=names):
        Settings.from_env(environ)


def test_other_machines_need_a_token_or_the_word() -> None:
    assert Settings.from_env({**BASE, "OUTBOARD_SERVER_HOST": "0.0.0.0", "OUTBOARD_SERVER_TOKEN": "t"}).host == "0.0.0.0"
    assert Settings.from_env({**BASE, "OUTBOARD_SERVER_HOST": "::", "OUTBOARD_SERVER_INSECURE": "1"}).insecure
    assert is_loopback("127.0.0.9") and is_loopback("::1") and is_loopback("localhost") and not is_loopback("10.0.0.1")


def test_a_client_authority_or_a_token_file_is_enough_for_other_machines() -> None:
    tls = {"OUTBOARD_SERVER_TLS_CERTIFICATE": "c", "OUTBOARD_SERVER_TLS_KEY": "k"}
    open_door = {**BASE, "OUTBOARD_SERVER_HOST": "0.0.0.0"}
    assert Settings.from_env({**open_door, **tls, "OUTBOARD_SERVER_TLS_CLIENT_CA": "a"}).tls_client_ca == Path("a")
    assert Settings.from_env({**open_door, "OUTBOARD_SERVER_TOKEN_FILE": "t"}).token_file == Path("t")
    with pytest.raises(InvalidSettings, match="TLS_CLIENT_CA"):  # it says who the host is, not who calls
        Settings.from_env({**open_door, **tls})


def test_the_token_is_not_shown() -> None:
    assert "hush" not in repr(Settings.from_env({**BASE, "OUTBOARD_SERVER_TOKEN": "hush"}))
