"""Certificates for tests, made with openssl's command line: an authority, hosts and clients of it, and what is wrong with others."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Signs what lies in `folder`. Names are of files; two authorities need two names."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self.pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
        _openssl(
            "req", "-x509", *_NEW_KEY, "-keyout", self.pair.key, "-out", self.pair.certificate, "-days", "30", "-subj", f"/CN=test {name}"
        )

    @property
    def file(self) -> Path:
        return self.pair.certificate

    def sign(self, name: str, *, host: str = "IP:127.0.0.1,DNS:localhost", expired: bool = False) -> Pair:
        """`host`: what it is for. `expired`: yesterday."""
        made, request, extensions = (
            Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key"),
            *(self._folder / f"{name}.{e}" for e in ("csr", "ext")),
        )
        _openssl("req", *_NEW_KEY, "-keyout", made.key, "-out", request, "-subj", f"/CN={name}")
        extensions.write_text(f"subjectAltName={host}\n")
        signer = ("-CA", self.file, "-CAkey", self.pair.key, "-CAcreateserial", "-extfile", extensions)
        # openssl takes no day in the past but through the number of days
        _openssl("x509", "-req", "-in", request, "-out", made.certificate, *signer, "-days", "-1" if expired else "30")
        return made


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
