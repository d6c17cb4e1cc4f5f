"""What one measurement gives, and how several rounds of it are summed up."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """One load for some seconds. Latencies in milliseconds; `errors` counts answers that were refusals, and broken connections."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    errors: int = 0

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least `share` of the ascending values do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def sample(latencies_ms: Sequence[float], seconds: float, errors: int = 0) -> Sample:
    ordered = sorted(latencies_ms)
    if not ordered:
        raise RuntimeError(f"no request was answered within {seconds:.1f} s ({errors} errors)")
    return Sample(len(ordered), seconds, percentile(ordered, 0.50), percentile(ordered, 0.99), ordered[-1], errors)


def best_and_median(values: Sequence[float], best: Any = min) -> dict[str, float]:
    return {"best": best(values), "median": median(values)}


def summary(rounds: Sequence[Sample]) -> dict[str, Any]:
    """Machines are noisy: the best round says what the code can do, the median what it did."""
    return {
        "requests_per_s": best_and_median([item.rate for item in rounds], max),
        "p50_ms": best_and_median([item.p50_ms for item in rounds]),
        "p99_ms": best_and_median([item.p99_ms for item in rounds]),
        "errors": sum(item.errors for item in rounds),
        "rounds": [asdict(item) for item in rounds],
    }
