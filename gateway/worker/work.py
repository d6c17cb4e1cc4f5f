"""What the worker does: every job, and the parts that have more than one thread. Whoever adds a job adds a line here."""

from collections.abc import Sequence

from gateway.context import Services
from gateway.operations.confirmations import MAIL_JOB
from gateway.worker import deploying
from gateway.worker.deliveries import Deliveries
from gateway.worker.jobs import Job, Loop, Part
from gateway.worker.task_runner import TaskRunner


def _tidy(services: Services) -> None:
    """Nothing more is to be done at once, however much it was."""
    services.library.tidy()


JOBS: tuple[Job, ...] = (
    Job("tidying", 3600.0, _tidy),
    Job("tried models", 10.0, lambda services: services.model_tests.sweep()),
    Job(MAIL_JOB, 5.0, lambda services: services.mail.send_due()),
    Job("cleaning", 10.0, lambda services: services.tasks.clean()),
    Job("batch files", 600.0, lambda services: services.storage.batches.sweep()),
)


def parts(services: Services, number: int) -> Sequence[Part]:
    """All of it, for worker `number`, not started."""
    return [TaskRunner(services, number), Deliveries(services), *(Loop(job, services) for job in JOBS), *deploying.parts(services, number)]
