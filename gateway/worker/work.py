"""What the worker does: every job, and the parts that have more than one thread. Whoever adds a job adds a line here."""

from collections.abc import Sequence

from gateway.context import Services
from gateway.worker import deploying
from gateway.worker.jobs import Job, Loop, Part


def _tidy(services: Services) -> None:
    """Nothing more is to be done at once, however much it was."""
    services.library.tidy()


JOBS: tuple[Job, ...] = (
    Job("tidying", 3600.0, _tidy),
    Job("tried models", 10.0, lambda services: services.model_tests.sweep()),
)


def parts(services: Services, number: int) -> Sequence[Part]:
    """All of it, for worker `number`, not started."""
    return [*(Loop(job, services) for job in JOBS), *deploying.parts(services, number)]
