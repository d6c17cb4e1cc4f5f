"""gRPC load with h2load: unary gRPC is one HTTP/2 request, so a C client can post the framed message over and over.

It sees HTTP errors only: a gRPC status travels in a trailer. The caller counts failures in the server's own statistics.
"""

import re
import subprocess
import tempfile
from pathlib import Path

from benchmarks.figures import Sample, sample

NAME = "h2load"
_HEADERS = ("content-type: application/grpc", "te: trailers")


def load(address: str, method: str, body: Path, concurrency: int, seconds: float) -> Sample:
    """`concurrency` calls at once, four on each connection, as gRPC callers share a channel; one connection where it is 1."""
    streams = 4 if concurrency >= 4 else 1
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests.tsv"
        command = ["h2load", "-t1", f"-c{concurrency // streams}", f"-m{streams}", f"-D{max(1, round(seconds))}", "--log-file", str(log)]
        for header in _HEADERS:
            command += ["-H", header]
        command += ["-d", str(body), f"http://{address}{method}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True)
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    counts = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", done.stdout)
    if counts is None:
        raise RuntimeError(f"h2load printed no counts:\n{done.stdout}{done.stderr}")
    good = [int(row[2]) / 1e3 for row in rows if row[1] == "200"]
    # answers that were still under way at the end are no failures; a status other than 200 is
    return sample(good, float(max(1, round(seconds))), len(rows) - len(good) + int(counts[1]))
