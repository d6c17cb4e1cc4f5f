"""`outboard doctor`: is everything here that Outboard needs, and what is to be done where it is not; one line for each finding."""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

OK, WARNING, PROBLEM = "ok", "warning", "PROBLEM"


@dataclass(frozen=True, slots=True)
class Finding:
    """`level`: a WARNING costs something, with a PROBLEM it does not work. `advice`: what to do, "" where nothing is."""

    level: str
    about: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.about}: {self.text}" + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True, slots=True)
class Place:
    """What is looked at. `environ`: where the parts' settings stand."""

    data: Path
    models: tuple[Path, ...]
    host: str
    ports: Mapping[str, int]
    token: str
    environ: Mapping[str, str]
    files: Mapping[str, str | None] = field(default_factory=dict)
    """Options of `host_access.add_files`: name -> what was given."""


Check = Callable[[Place], Iterator[Finding]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", type=Path, help="the data folder of `outboard up` (default ./data)")
    parser.add_argument("--models", metavar="DIR", action="append", type=Path, help="a model repository; may be given more than once")
    parser.add_argument("--host", help="the address that is listened on (default 127.0.0.1)")
    for name, default in (("http", 8080), ("grpc", 8001), ("thrift", 9090), ("metrics", 8002)):
        parser.add_argument(f"--{name}-port", type=int, metavar="PORT", help=f"default {default}; 0: do not look")
    parser.add_argument("--token", help="of a server that runs; default: OUTBOARD_TOKEN")
    for name, text in (
        ("ca", "the authorities that a server with TLS is of"),
        ("certificate", "for a server that asks for one"),
        ("key", "of it"),
    ):
        parser.add_argument(f"--{name}", metavar="FILE", help=f"{text}; default: OUTBOARD_{name.upper()}")
    parser.add_argument("--quiet", action="store_true", help="only what is not well")


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 1 where there is a PROBLEM, else 0."""
    place = _place(arguments, os.environ)
    level = 0
    for finding in findings(place):
        level = max(level, finding.level == PROBLEM)
        if finding.level != OK or not arguments.quiet:
            print(finding, flush=True)
    return int(level)


def findings(place: Place) -> Iterator[Finding]:
    """What every check says. A check that itself fails is a finding as well."""
    from outboard import doctor_host, doctor_parts

    for check in (*doctor_host.CHECKS, *doctor_parts.CHECKS):
        try:
            yield from check(place)
        except Exception as error:  # noqa: BLE001 - the other checks are wanted all the same
            name = check.__name__.replace("_", " ")
            yield Finding(WARNING, name, f"cannot be looked at: {type(error).__name__}: {error}", "tell us, it is a mistake of ours")


def _place(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Place:
    data = (arguments.data or Path(environ.get("OUTBOARD_DATA", "data"))).absolute()
    models = tuple(arguments.models or ())
    if not models:
        named = [*environ.get("OUTBOARD_SERVER_MODELS", "").split(os.pathsep), environ.get("OUTBOARD_MODELS", "")]
        models = tuple(Path(text) for text in named if text)
    ports = {}
    for name, default in (("http", "8080"), ("grpc", "8001"), ("thrift", "9090"), ("metrics", "8002")):
        given = getattr(arguments, f"{name}_port")
        named = [environ.get(f"OUTBOARD_{name.upper()}_PORT", ""), environ.get(f"OUTBOARD_SERVER_{name.upper()}_PORT", ""), default]
        ports[name] = given if given is not None else next(int(text) for text in named if text.isdecimal())
    host = arguments.host or environ.get("OUTBOARD_HOST") or environ.get("OUTBOARD_SERVER_HOST") or "127.0.0.1"
    token = environ.get("OUTBOARD_TOKEN", environ.get("OUTBOARD_SERVER_TOKEN", "")) if arguments.token is None else arguments.token
    files = {name: getattr(arguments, name) for name in ("ca", "certificate", "key")}
    return Place(data, models, host, ports, token, environ, files)
