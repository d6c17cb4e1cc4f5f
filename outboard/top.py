"""`outboard top`: what a model server does now, live in a terminal; with --once one look for scripts."""

import argparse
import shutil
import sys
import time

from idl.codes import ServingError
from idl.messages import Capacity
from inference_client import Client
from outboard import host_access, scrape
from outboard.models_table import size_text
from outboard.scrape import Key, Look, VersionLook

DEFAULT_METRICS = "http://127.0.0.1:8002/metrics"
DEFAULT_HOST = "127.0.0.1:8001"
HEAD = ("MODEL", "VERSION", "STATE", "INST", "REQ/S", "FAIL/S", "P50", "P99", "Q P99", "INSIDE", "QUEUED", "MEMORY")
_CLEAR, _HOME, _SHOW, _HIDE = "\x1b[2J", "\x1b[H", "\x1b[?25h", "\x1b[?25l"
_TO_END, _BELOW = "\x1b[K", "\x1b[J"
_TIMEOUT_S = 5.0
_INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metrics", default=DEFAULT_METRICS, metavar="URL", help=f"the model server's metrics; default {DEFAULT_METRICS}")
    parser.add_argument(
        "--host", default=DEFAULT_HOST, metavar="ADDRESS", help=f"its gRPC HOST:PORT, or a URL; default {DEFAULT_HOST}; '': do not ask"
    )
    host_access.add_token(parser)
    host_access.add_files(parser)
    parser.add_argument("--interval", type=_seconds, default=2.0, metavar="SECONDS", help="between two looks; default 2")
    parser.add_argument("--once", action="store_true", help="print one table, of what came within one interval, and end")


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0, 1 where the server does not answer at first, 130 after Ctrl-C."""
    client: Client | None = None
    try:
        if arguments.host:
            client = host_access.connect(arguments.host, arguments, token=host_access.token(arguments), timeout_s=_TIMEOUT_S)
        try:
            return _once(arguments, client) if arguments.once else _live(arguments, client)
        finally:
            if client is not None:
                client.close()
    except (OSError, ValueError) as error:
        print(f"outboard top: {arguments.metrics}: {getattr(error, 'reason', None) or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0 if not arguments.once else _INTERRUPTED


def _once(arguments: argparse.Namespace, client: Client | None) -> int:
    before = _look(arguments.metrics)
    time.sleep(arguments.interval)
    print("\n".join(page(before, _look(arguments.metrics), _capacity(client), 10_000)), flush=True)
    return 0


def _live(arguments: argparse.Namespace, client: Client | None) -> int:
    before = now = _look(arguments.metrics)
    out = sys.stdout
    is_terminal = out.isatty()
    out.write(_HIDE + _CLEAR if is_terminal else "")
    trouble = ""
    try:
        while True:
            size = shutil.get_terminal_size()
            lines = page(before, now, _capacity(client), size.columns)
            lines = [trouble, *lines] if trouble else lines
            if is_terminal:
                out.write(_HOME + "".join(f"{line}{_TO_END}\n" for line in lines[: size.lines - 1]) + _BELOW)
            else:
                out.write("\n".join(lines) + "\n\n")
            out.flush()
            time.sleep(arguments.interval)
            try:
                before, now, trouble = now, _look(arguments.metrics), ""
            except (OSError, ValueError) as error:  # it may come back
                trouble = f"! the server does not answer: {getattr(error, 'reason', None) or error}"
    finally:
        out.write(_SHOW if is_terminal else "")
        out.flush()


def _look(address: str) -> Look:
    return scrape.read(scrape.fetch(address, _TIMEOUT_S), time.monotonic())


def _capacity(client: Client | None) -> Capacity | str:
    """The host's own words; why there are none, where it does not answer."""
    if client is None:
        return ""
    try:
        return client.capacity()
    except ServingError as error:
        return f"no word of the host: {error.code.value}: {error.message}"


def page(before: Look, now: Look, capacity: Capacity | str, width: int) -> list[str]:
    """The lines of one screen."""
    seconds = max(now.moment - before.moment, 1e-9) if now is not before else 0.0
    versions = {key: look for key, look in now.versions.items() if "ready" in look.gauges}
    rows = [_row(key, before.versions.get(key, VersionLook()), look, seconds) for key, look in sorted(versions.items())]
    rate = sum(_grown(before.versions.get(key, VersionLook()).requests, look.requests) for key, look in now.versions.items())
    title = f"{len(versions)} versions   {_per_second(rate, seconds)} requests/s   {now.restarts:.0f} restarts"
    lines = [title + ("" if now.accepting else "   DRAINING")]
    lines += _host(capacity)
    for (number, name), figures in sorted(now.gpus.items()):
        told = [f"{100 * figures['utilization_ratio']:.0f} %"] if "utilization_ratio" in figures else []
        if "memory_used_bytes" in figures:
            told.append(f"{size_text(figures['memory_used_bytes'])} of {size_text(figures['memory_total_bytes'])}")
        lines.append(f"gpu {number} {name}: {', '.join(told) or 'tells nothing'}")
    lines.append("")
    widths = [max(len(row[column]) for row in (HEAD, *rows)) for column in range(len(HEAD))]
    for row in (HEAD, *rows):
        cells = [cell.ljust(size) if index < 3 else cell.rjust(size) for index, (cell, size) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return [_printable(line)[:width] for line in lines]


def _printable(line: str) -> str:
    """What a model says of itself must not move the operator's cursor."""
    return line if line.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in line)


def _host(capacity: Capacity | str) -> list[str]:
    if isinstance(capacity, str):
        return [capacity] if capacity else []
    failing = [f"{model.name} {model.version}: {model.reason}" for model in capacity.models if model.reason]
    memory = f"{size_text(capacity.memory_available_bytes)} of {size_text(capacity.memory_bytes)} memory available"
    return [f"{capacity.cpus:g} cores, {memory}, {size_text(capacity.disk_available_bytes)} of disk", *(f"! {text}" for text in failing)]


def _row(key: Key, before: VersionLook, now: VersionLook, seconds: float) -> tuple[str, ...]:
    came = {name: scrape.between(before.buckets.get(name, {}), buckets) if seconds else buckets for name, buckets in now.buckets.items()}

    def time_text(name: str, part: float) -> str:
        found = scrape.percentile(part, came.get(name, {}))
        return "-" if found is None else duration(found)

    def gauge(name: str) -> str:
        return f"{now.gauges.get(name, 0):.0f}"

    return (
        *key,
        "ready" if now.gauges["ready"] else "NOT READY",
        gauge("instances"),
        _per_second(_grown(before.requests, now.requests), seconds),
        _per_second(_grown(before.failures, now.failures), seconds),
        time_text("total", 0.5),
        time_text("total", 0.99),
        time_text("queue", 0.99),
        gauge("in_flight"),
        gauge("queued"),
        size_text(now.gauges.get("memory", 0)),
    )


def _grown(before: float, now: float) -> float:
    return now - before if now >= before else now


def _per_second(count: float, seconds: float) -> str:
    return f"{count / seconds:.1f}" if seconds else "-"


def duration(seconds: float) -> str:
    """0.0004 -> "0.40 ms"."""
    return f"{seconds * 1e3:.2f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not from 0.1 to 3600 seconds")
    return value
