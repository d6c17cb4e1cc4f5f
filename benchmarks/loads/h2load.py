"""gRPC load with h2load: unary gRPC is one HTTP/2 request, so a C client can post the framed message over and over.

It sees HTTP errors only: a gRPC status travels in a trailer. But an answer that is an error has no message, so the bytes that arrived say how
many answers were none.
"""

import re
import subprocess
import tempfile
from pathlib import Path

from benchmarks.figures import Sample, sample
from benchmarks.processes import Cores, pinned

NAME = "h2load"
_VARIATION = 8
"""Bytes by which right answers to one request may differ."""
_HEADERS = ("content-type: application/grpc", "te: trailers")


def load(
    address: str,
    method: str,
    body: Path,
    concurrency: int,
    seconds: float,
    *,
    streams: int = 4,
    cores: Cores = (),
    answer_bytes: int = 0,
) -> Sample:
    """`concurrency` calls at once, `streams` on each connection, as gRPC callers share a channel; one connection where it is 1.

    `answer_bytes`: of one right answer, frame included; 0 where that is not known, and failures with a gRPC status are then not seen.
    """
    streams = streams if concurrency >= streams else 1
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests.tsv"
        command = ["h2load", "-t1", f"-c{concurrency // streams}", f"-m{streams}", f"-D{max(1, round(seconds))}", "--log-file", str(log)]
        for header in _HEADERS:
            command += ["-H", header]
        command += ["-d", str(body), f"http://{address}{method}"]
        done = subprocess.run(pinned(command, cores), capture_output=True, text=True, timeout=seconds + 60, check=True)
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    counts = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", done.stdout)
    traffic = re.search(r"\((\d+)\) data", done.stdout)
    if counts is None or traffic is None:
        raise RuntimeError(f"h2load printed no counts:\n{done.stdout}{done.stderr}")
    good = [int(row[2]) / 1e3 for row in rows if row[1] == "200"]
    # answers that were still under way at the end are no failures; a status other than 200 is
    errors = len(rows) - len(good) + int(counts[1])
    return sample(good, float(max(1, round(seconds))), errors + without_message(len(good), int(traffic[1]), answer_bytes))


def without_message(answers: int, received: int, answer_bytes: int) -> int:
    """How many of `answers` brought no message at least, when `received` bytes of messages arrived and a right answer has `answer_bytes`.

    Answers may differ by a few bytes, as by numbers in them: so a few failures among many small answers are not seen.
    """
    return max(0, answers - received // max(1, answer_bytes - _VARIATION)) if answer_bytes else 0
