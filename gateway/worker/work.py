"""What the worker does: every job, and the parts that have more than one thread. Whoever adds a job adds a line here."""

from collections.abc import Sequence

from gateway.context import Services
from gateway.worker import deploying
from gateway.worker.jobs import Job, Loop, Part

JOBS: tuple[Job, ...] = ()


def parts(services: Services, number: int) -> Sequence[Part]:
    """All of it, for worker `number`, not started."""
    return [*(Loop(job, services) for job in JOBS), *deploying.parts(services, number)]
