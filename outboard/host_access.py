"""How a command reaches a model host: whom it trusts, and with which token and certificate it shows who asks."""

import argparse
import os
from collections.abc import Mapping
from typing import Any

from inference_client import Client, Tls
from inference_client.addresses import parse

TOKEN = "OUTBOARD_TOKEN"
FILES = {
    "ca": ("OUTBOARD_CA", "PEM file of the authorities whose certificates are trusted; default: {}, else the system's"),
    "certificate": ("OUTBOARD_CERTIFICATE", "PEM file of a certificate to show, where it is asked for; default: {}"),
    "key": ("OUTBOARD_KEY", "PEM file of its key; default: {}"),
}
"""Option -> (the variable that stands for it, what it is)."""


def add_token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--token", help=f"default: {TOKEN}")


def add_files(parser: argparse.ArgumentParser) -> None:
    """For addresses with TLS."""
    for name, (variable, text) in FILES.items():
        parser.add_argument(f"--{name}", metavar="FILE", help=text.format(variable))


def token(arguments: argparse.Namespace) -> str:
    return os.environ.get(TOKEN, "") if arguments.token is None else str(arguments.token)


def tls(arguments: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Tls:
    """What the options say, and the environment where they say nothing; an empty option is none."""
    known = os.environ if environ is None else environ
    given = {name: getattr(arguments, name) for name in FILES}
    return Tls(**{name: (known.get(FILES[name][0]) if value is None else value) or None for name, value in given.items()})


def connect(address: str, arguments: argparse.Namespace, **more: Any) -> Client:
    """Of `arguments` those that `add_files` has added, for an address with TLS; `more`: what else a client may be told. Raises ValueError for files
    that cannot be used, and for options that an address without TLS has no use for.
    """
    if parse(address).secure:
        return Client(address, tls=tls(arguments), **more)
    for name in FILES:
        if getattr(arguments, name):
            raise ValueError(f"--{name} is for an address that begins with grpcs:// or thrifts://, and {address} does not")
    return Client(address, **more)
