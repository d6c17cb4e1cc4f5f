"""`outboard health`: one question to a gateway or a model host, for the health checks of containers and load balancers."""

import argparse
import http.client
import sys
import urllib.error
import urllib.request

from inference_client import ServingError
from inference_client.tls import Credentials
from outboard import host_access

PATHS = {False: "/livez", True: "/readyz"}
"""Of the gateway: whether it lives, whether it is ready."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The address is a gateway's or a model host's; its scheme says which."""
    parser.add_argument(
        "address",
        metavar="ADDRESS",
        help="http://HOST:PORT of a gateway; grpc://HOST:PORT or thrift://HOST:PORT of a model host; https, grpcs, thrifts with TLS",
    )
    host_access.add_files(parser)
    parser.add_argument("--ready", action="store_true", help="ask whether it can be given work, and not only whether it lives")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="default 5")


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0 yes, 1 no or no answer (the reason on standard error), 2 an address that cannot be used."""
    address = arguments.address
    try:
        web = address.startswith(("http://", "https://"))
        trouble = _ask_web(arguments) if web else _ask_host(arguments)
    except ValueError as error:
        print(f"outboard health: {error}", file=sys.stderr)
        return 2
    if trouble:
        print(f"outboard health: {address}: {trouble}", file=sys.stderr)
    return 1 if trouble else 0


def _ask_web(arguments: argparse.Namespace) -> str:
    """What is wrong, "" where nothing is."""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]  # it is about this address, not about a proxy's
    if arguments.address.startswith("https://"):
        handlers.append(urllib.request.HTTPSHandler(context=Credentials(host_access.tls(arguments)).context()))
    try:
        url = arguments.address.rstrip("/") + PATHS[arguments.ready]
        with urllib.request.build_opener(*handlers).open(url, timeout=arguments.timeout) as answer:
            return "" if answer.status == 200 else f"status {answer.status}"
    except urllib.error.HTTPError as error:
        with error:
            return f"status {error.code}"
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", None) or error) or type(error).__name__


def _ask_host(arguments: argparse.Namespace) -> str:
    """As above. Nobody needs a token for these questions."""
    ready, timeout_s = arguments.ready, arguments.timeout
    with host_access.connect(arguments.address, arguments) as client:
        try:
            answer = client.server_ready(timeout_s=timeout_s) if ready else client.server_live(timeout_s=timeout_s)
        except ServingError as error:
            return f"{error.code.value}: {error.message}"
    return "" if answer else "not ready" if ready else "not alive"
