"""What the gateway remembers. Every SQL statement of the package is in this folder.

`Storage` owns the process's database connections and hands out one store per noun; nothing touches the disk before the first use.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from gateway.storage import secret
from gateway.storage.api_keys import ApiKeys
from gateway.storage.attempts import Attempts
from gateway.storage.audit import Audit
from gateway.storage.batches import Batches
from gateway.storage.blobs import Blobs, full
from gateway.storage.codes import Codes
from gateway.storage.database import Database
from gateway.storage.deployment_errors import DeploymentErrors
from gateway.storage.deployment_statistics import DeploymentStatistics
from gateway.storage.deployments import Deployments
from gateway.storage.golden import Golden
from gateway.storage.idempotency import Idempotency
from gateway.storage.identities import Identities
from gateway.storage.incoming import Incoming
from gateway.storage.marks import Mark
from gateway.storage.models import Models
from gateway.storage.outbox import Outbox
from gateway.storage.platform import Platform
from gateway.storage.quotas import Quotas
from gateway.storage.scripts import Scripts
from gateway.storage.sessions import Sessions
from gateway.storage.signups import Signups
from gateway.storage.task_marks import TaskMarks
from gateway.storage.task_queue import TaskQueue
from gateway.storage.tasks import Tasks
from gateway.storage.teams import Teams
from gateway.storage.test_loads import TestLoads
from gateway.storage.uploads import Uploads
from gateway.storage.users import Users
from gateway.storage.webhooks import Webhooks

__all__ = ["Storage"]


class Storage:
    """The state under `folder`. Thread-safe; belongs to the process that made it; `close` may be called again."""

    def __init__(self, folder: Path, *, busy_timeout_s: float = 5.0) -> None:
        self.database = Database(folder / "outboard.db", busy_timeout_s=busy_timeout_s)
        self.principals = Mark(folder / "principals")
        """Changes with every change of who a session stands for."""
        self.sharing = Mark(folder / "sharing")
        """Changes with every change of who may see or call what of users: teams, models, deployments."""
        self.statistics_looked = Mark(folder / "statistics-looked")
        """When the hosts' counters were read last, in ns of the monotonic clock, which all processes of a machine share."""
        self.users = Users(self.database, self.principals, self.sharing)
        self.signups = Signups(self.database)
        self.sessions = Sessions(self.database, self.principals)
        self.api_keys = ApiKeys(self.database, self.principals)
        self.identities = Identities(self.database)
        self.codes = Codes(self.database)
        self.outbox = Outbox(self.database)
        self.attempts = Attempts(self.database)
        self.teams = Teams(self.database, self.sharing)
        self.models = Models(self.database, self.sharing)
        self.test_loads = TestLoads(self.database)
        self.deployments = Deployments(self.database, self.sharing)
        self.deployment_statistics = DeploymentStatistics(self.database)
        self.deployment_errors = DeploymentErrors(self.database)
        self.golden = Golden(self.database)
        self.scripts = Scripts(self.database)
        self.audit = Audit(self.database)
        self.task_marks = TaskMarks(folder / "task-marks")
        self.tasks = Tasks(self.database, self.task_marks)
        self.task_queue = TaskQueue(self.database, self.task_marks)
        self.batches = Batches(self.database, self.task_marks, folder / "batches")
        self.webhooks = Webhooks(self.database)
        self.idempotency = Idempotency(self.database)
        self.quotas = Quotas(self.database)
        self.platform = Platform(self.database)
        self._blobs_folder = folder / "blobs"
        self.blobs = Blobs(self.database, self._blobs_folder)
        self.uploads = Uploads(self.database, folder / "uploads")
        self.scratch_folder = folder / "scratch"
        self._secret = folder / "secret"

    def secret(self) -> str:
        """The key that signs tokens, made on first use."""
        return secret.load_or_create(self._secret)

    def receive(self, limit: int) -> Callable[[str], Incoming]:
        """What begins a file of at most `limit` bytes on its way in, given the name that its sender has for it."""
        return lambda name: Incoming(self._blobs_folder, limit, name)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder, removed afterwards; what a killed process leaves there is swept. Raises insufficient_capacity."""
        try:
            self.scratch_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(dir=self.scratch_folder, ignore_cleanup_errors=True)
        except OSError as error:
            raise full(error) from error
        with made as name:
            yield Path(name)

    def sweep_scratch(self, older_than: datetime) -> int:
        """Removes what killed processes left behind; how many folders."""
        count = 0
        for path in self.scratch_folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < older_than.timestamp():
                    shutil.rmtree(path, ignore_errors=True)
                    count += 1
        return count

    def close(self) -> None:
        self.database.close()
        self.principals.close()
        self.sharing.close()
        self.statistics_looked.close()
        self.task_marks.close()
