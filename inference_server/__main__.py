"""The inference server's command: reads the command line and the settings, serves, exits.

Exit status: 0 after a drain, 1 where it could not start (the reason on standard error), 2 for settings that cannot be used, 130 where a
second signal cut the drain short.
"""

import argparse
import os
import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from idl import numpy_alone

numpy_alone.load()  # before anybody else imports it

from inference_server import logs, run_folders
from inference_server.front.choice import KINDS
from inference_server.server import Server
from inference_server.settings import InvalidSettings, Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `outboard serve`; every option is a setting as well."""
    parser.add_argument("--models", metavar="DIR", action="append", type=Path, help="a model repository; may be given more than once")
    parser.add_argument("--push-dir", metavar="DIR", type=Path, help="where pushed models go that no repository has (default: the first)")
    parser.add_argument("--run-dir", metavar="DIR", type=Path, help="where the executors' sockets lie (default: a temporary folder)")
    parser.add_argument("--host", help="the address to listen on (default 127.0.0.1)")
    for name, default in (("grpc", 8001), ("thrift", 9090), ("metrics", 8002)):
        parser.add_argument(f"--{name}-port", type=int, metavar="PORT", help=f"default {default}; 0: a free one; -1: none")
    for name in ("grpc", "thrift"):
        parser.add_argument(f"--{name}-socket", type=Path, metavar="PATH", help=f"a unix socket that speaks {name}, besides the port")
    parser.add_argument("--grpc-front", choices=KINDS, help="what answers the gRPC port; auto: nginx where it is installed, else grpcio")
    parser.add_argument(
        "--model-control", choices=["explicit", "poll"], help="poll: follow changes of the repositories (default explicit: load when told)"
    )
    parser.add_argument("--poll-interval", dest="poll_interval_s", type=float, metavar="S", help="seconds between two looks (default 5)")
    parser.add_argument("--insecure", action="store_true", default=None, help="serve other machines without a token")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"])


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status."""
    names = (
        "push_dir",
        "run_dir",
        "host",
        "grpc_port",
        "thrift_port",
        "metrics_port",
        "grpc_socket",
        "grpc_front",
        "thrift_socket",
        "insecure",
        "model_control",
        "poll_interval_s",
        "log_level",
    )
    overrides = {name: getattr(arguments, name) for name in names}
    try:
        settings = Settings.from_env(os.environ, models=tuple(arguments.models) if arguments.models else None, **overrides)
    except InvalidSettings as error:
        print(f"outboard serve: {error}", file=sys.stderr)
        return 2
    if absent := [root for root in settings.models if not root.is_dir()]:
        print(f"outboard serve: --models {absent[0]} is not a folder", file=sys.stderr)
        return 2
    logs.configure(settings.log_level)
    _raise_descriptor_limit()
    temporary = None if settings.run_dir else run_folders.temporary()
    try:
        return Server(settings, settings.run_dir or temporary or Path(), logs.own_output()).serve()
    except (OSError, ValueError) as error:
        print(f"outboard serve: {error}", file=sys.stderr)
        return 1
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16) if hard != resource.RLIM_INFINITY else 1 << 16, hard))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m inference_server", description="Serves models over gRPC and Thrift.")
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
