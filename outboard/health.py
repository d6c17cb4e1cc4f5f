"""`outboard health`: one question to a gateway or a model host, for the health checks of containers and load balancers."""

import argparse
import http.client
import sys
import urllib.error
import urllib.request

from inference_client import Client, ServingError

PATHS = {False: "/livez", True: "/readyz"}
"""Of the gateway: whether it lives, whether it is ready."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The address is a gateway's or a model host's; its scheme says which."""
    parser.add_argument(
        "address", metavar="ADDRESS", help="http://HOST:PORT of a gateway; grpc://HOST:PORT or thrift://HOST:PORT of a model host"
    )
    parser.add_argument("--ready", action="store_true", help="ask whether it can be given work, and not only whether it lives")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="default 5")


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0 yes, 1 no or no answer (the reason on standard error), 2 an address that cannot be used."""
    address, ready, timeout_s = arguments.address, arguments.ready, arguments.timeout
    try:
        web = address.startswith(("http://", "https://"))
        trouble = _ask_web(address, ready, timeout_s) if web else _ask_host(address, ready, timeout_s)
    except ValueError as error:
        print(f"outboard health: {error}", file=sys.stderr)
        return 2
    if trouble:
        print(f"outboard health: {address}: {trouble}", file=sys.stderr)
    return 1 if trouble else 0


def _ask_web(address: str, ready: bool, timeout_s: float) -> str:
    """What is wrong, "" where nothing is."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a health check is about this address, not about a proxy's
    try:
        with opener.open(address.rstrip("/") + PATHS[ready], timeout=timeout_s) as answer:
            return "" if answer.status == 200 else f"status {answer.status}"
    except urllib.error.HTTPError as error:
        with error:
            return f"status {error.code}"
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", None) or error) or type(error).__name__


def _ask_host(address: str, ready: bool, timeout_s: float) -> str:
    """As above. Nobody needs a token for these questions."""
    with Client(address) as client:
        try:
            answer = client.server_ready(timeout_s=timeout_s) if ready else client.server_live(timeout_s=timeout_s)
        except ServingError as error:
            return f"{error.code.value}: {error.message}"
    return "" if answer else "not ready" if ready else "not alive"
