"""`python -m gateway.worker`: a task worker apart from its gateway, on the same data folder, configured by OUTBOARD_GATEWAY_... as well."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway import log
from gateway.application import default_services
from gateway.metrics import Metrics
from gateway.settings import Settings, SettingsError
from gateway.worker import process
from idl.codes import ServingError

FIRST_METRICS = 1000
"""Numbers of counters that no process of the gateway has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--number", type=int, default=1, metavar="N", help="which worker of this data folder it is (default 1, the gateway's own)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 after a stop that was asked for, 1 where it cannot run, 2 for a wrong setting or option."""
    parser = argparse.ArgumentParser(prog="outboard worker", description="A task worker apart from its gateway.")
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(options: argparse.Namespace) -> int:
    """The same with the command line read."""
    if options.number < 1:
        print("outboard worker: --number is 1 or more", file=sys.stderr)
        return 2
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        print(f"outboard worker: {error}", file=sys.stderr)
        return 2
    log.configure(settings.log_level)
    try:
        with process.lock(settings.run_dir, options.number):
            work(settings, options.number, Metrics(_metrics_dir(settings), FIRST_METRICS + options.number))
    except (ServingError, process.AlreadyRunning, OSError) as error:
        print(f"outboard worker: {error}", file=sys.stderr)
        return 1
    return 0


def _metrics_dir(settings: Settings) -> Path:
    settings.metrics_dir.mkdir(parents=True, exist_ok=True)
    return settings.metrics_dir


def work(settings: Settings, number: int, metrics: Metrics) -> None:
    """Until a signal. The caller holds the lock of the number."""
    services = default_services(settings, metrics)
    worker = process.Worker(services, number)
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, lambda *_: worker.stop())
    try:
        worker.run()
    finally:
        services.close()


if __name__ == "__main__":
    sys.exit(main())
