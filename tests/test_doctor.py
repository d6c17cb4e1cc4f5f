"""`outboard doctor`: what is well, what is not, and what to do."""

import os
import socket
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from outboard import certificates, doctor, doctor_host, doctor_parts
from outboard.__main__ import main
from outboard.doctor import OK, PROBLEM, WARNING, Check, Finding, Place
from tests.needs import needs


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "data", (), "127.0.0.1", {}, "", {})


def levels(check: Check, place: Place) -> dict[str, str]:
    return {finding.about: finding.level for finding in check(place)}


def only(check: Check, place: Place) -> Finding:
    (found,) = check(place)
    return found


def test_every_finding_that_is_not_well_says_what_to_do(place: Place, tmp_path: Path) -> None:
    root = tmp_path / "models"
    (root / "near" / "1").mkdir(parents=True)
    (root / "near" / "1" / "other.onnx").touch()
    odd = replace(place, models=(root, tmp_path / "none"), environ={"OUTBOARD_SERVER_TLS_CERTIFICATE": str(root / "none.pem")})
    found = list(doctor.findings(odd))
    assert {finding.level for finding in found} >= {OK, WARNING, PROBLEM}
    assert all(bool(finding.advice) == (finding.level != OK) for finding in found), found
    assert all("\n" not in str(finding) for finding in found), "one line each"


def test_the_status_and_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = [
        "doctor",
        "--data",
        str(tmp_path),
        *(word for name in ("http", "grpc", "thrift", "metrics") for word in (f"--{name}-port", "0")),
    ]
    assert main(here) == 0
    assert "ok       python: " in capsys.readouterr().out
    assert main([*here, "--quiet", "--models", str(tmp_path / "none")]) == 1
    out = capsys.readouterr().out
    assert "PROBLEM  models: " in out and "is not a folder; make it, or name another one with --models" in out and "\nok " not in out


def test_python(place: Place) -> None:
    assert next(doctor_host.python(place, (3, 10, 1))).level == PROBLEM


def test_folders(place: Place, tmp_path: Path) -> None:
    assert levels(doctor_host.folders, place)["data folder"] == OK and not place.data.exists(), "it looks, and makes nothing"
    (tmp_path / "file").touch()
    assert levels(doctor_host.folders, replace(place, data=tmp_path / "file"))["data folder"] == PROBLEM
    assert levels(doctor_host.folders, replace(place, data=tmp_path / ("x" * 90)))["socket paths"] == PROBLEM
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        assert levels(doctor_host.folders, replace(place, data=tmp_path / "locked" / "data"))["data folder"] == PROBLEM


def test_a_disk_that_is_full(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, level in ((1 << 20, PROBLEM), (2 << 30, WARNING), (50 << 30, OK)):
        monkeypatch.setattr(doctor_host.shutil, "disk_usage", lambda _, free=free: _Usage(free))
        assert levels(doctor_host.folders, place)["disk"] == level


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_the_kernels_limits(place: Place, tmp_path: Path) -> None:
    for text, level in (("128\n", WARNING), ("4096\n", OK), ("", WARNING)):
        (tmp_path / "somaxconn").write_text(text)
        found = {finding.about: finding.level for finding in doctor_host.limits(place, tmp_path / "somaxconn")}
        assert found["listen queue"] == level


def test_ports(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert only(doctor_parts.ports, replace(place, ports={"grpc": 0, "http": _free()})).level == OK
        sock.listen()
        monkeypatch.setattr(doctor_parts, "TIMEOUT_S", 0.2)  # nobody answers
        for name in ("http", "metrics"):
            found = only(doctor_parts.ports, replace(place, ports={name: port}))
            assert found.level == PROBLEM and f"{port} is taken" in found.text and f"--{name}-port" in found.advice
    assert only(doctor_parts.ports, replace(place, host="192.0.2.1", ports={"http": 1})).level == PROBLEM, "not an address of this machine"


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_what_nobody_has_thought_of_is_a_finding(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Place) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(doctor_parts, "CHECKS", (broken,))
    assert list(doctor.findings(place))[-1].text == "cannot be looked at: RuntimeError: odd"


def test_gpus(place: Place) -> None:
    assert only(doctor_parts.gpus, place).level in (OK, WARNING)
    asked = replace(place, environ={"OUTBOARD_SERVER_EXECUTION_PROVIDERS": "NoneSuchProvider,CPUExecutionProvider"})
    assert next(finding.level for finding in doctor_parts.gpus(asked)) == PROBLEM


@needs("openssl")
@pytest.mark.parametrize(("days", "level"), [(365, OK), (10, WARNING), (40 * 365, OK)])
def test_certificates(place: Place, tmp_path: Path, days: int, level: str) -> None:
    path = tmp_path / "c.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=test"]
    subprocess.run([*command, "-keyout", tmp_path / "k.pem", "-out", path, "-days", str(days)], check=True, capture_output=True)
    assert abs(certificates.ends_at(path) - datetime.now(UTC) - timedelta(days=days)) < timedelta(minutes=5)
    there = replace(place, environ={"OUTBOARD_SERVER_TLS_CERTIFICATE": str(path), "OUTBOARD_SERVER_TLS_KEY": "x"})
    assert only(doctor_host.certificates_of, there).level == level
    over = datetime.now(UTC) + timedelta(days=days + 1)
    assert [finding.level for finding in doctor_host.certificates_of(there, over)] == [PROBLEM]


@pytest.mark.parametrize(
    "text", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "-----END CERTIFICATE----------BEGIN CERTIFICATE-----"]
)
def test_odd_certificates(place: Place, tmp_path: Path, text: str) -> None:
    (tmp_path / "c.pem").write_text(text)
    with pytest.raises(ValueError, match="certificate"):
        certificates.ends_at(tmp_path / "c.pem")
    assert (
        only(doctor_host.certificates_of, replace(place, environ={"OUTBOARD_SERVER_TLS_CERTIFICATE": str(tmp_path / "c.pem")})).level
        == PROBLEM
    )
