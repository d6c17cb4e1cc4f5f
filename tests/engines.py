"""An engine with real executor processes, wired as the server wires it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from inference_server import host
from inference_server.engine import Engine
from inference_server.executors.memory_limit import MemoryLimits
from inference_server.executors.process import Watcher, Zygote
from inference_server.launcher import Launcher
from inference_server.library import Library
from inference_server.metrics import Metrics
from inference_server.repository import Repository
from inference_server.repository_poll import RepositoryPoll
from inference_server.reservations import Reservations
from inference_server.routing import RoutePublisher
from inference_server.served_models import ServedModels
from inference_server.settings import Settings
from inference_server.spool import Spool
from inference_server.user_models import UserModels
from inference_server.validation.validations import ValidationLimits, Validations

LIMIT = 8 * 2**20


@contextmanager
def engine_over(
    zygote: Zygote, watcher: Watcher, models: Path, *, limit: int = LIMIT, drain_timeout_s: float = 10, **said: Any
) -> Iterator[Engine]:
    """Loads nothing by itself. `said`: settings of the server."""
    settings = Settings(models=(models,), **{"max_message_bytes": limit, "model_threads": 1, "memory_limits": "watch", **said})
    metrics, routes, limits = Metrics(), RoutePublisher(zygote.run_dir, limit), MemoryLimits(settings.memory_limits)
    reservations = Reservations(host.cores(), host.cpus(), host.memory()[0], default_threads=settings.model_threads)
    launcher = Launcher(settings, metrics, zygote, watcher, reservations, limits)
    users = UserModels(settings.user_models) if settings.user_models else None
    repository = Repository(settings.models, users=users)
    served, spool = ServedModels(metrics, routes, drain_timeout_s), Spool(zygote.run_dir, limit)
    library = Library(
        repository, launcher, served, metrics, spool, RepositoryPoll(repository) if settings.model_control == "poll" else None
    )
    bounds = ValidationLimits(
        settings.validations, settings.validation_max_bytes, settings.validation_timeout_s, settings.validation_memory_bytes
    )
    validations = Validations(zygote.run_dir / "trials", limits, bounds)
    engine = Engine(library, served, metrics, routes, reservations, version="test", validations=validations)
    try:
        yield engine
    finally:
        engine.close()
        launcher.close()
        validations.close()
        spool.close()
        limits.close()


@contextmanager
def own_zygote(folder: Path) -> Iterator[Zygote]:
    """One that a test may harm, and whose standard error is the test's."""
    folder.mkdir()
    made = Zygote(folder, LIMIT)
    try:
        yield made
    finally:
        made.close()


# fixtures, for the packages that have them in their conftest ---------------------------------------------------------------------------


def started_once(scope: Literal["session", "package"]) -> tuple[Any, Any]:
    """The fixtures `zygote` and `watcher`, which live as long as `scope` says."""

    @pytest.fixture(scope=scope, name="zygote")
    def zygote_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
        made = Zygote(tmp_path_factory.mktemp("run"), LIMIT)
        yield made
        made.close()

    @pytest.fixture(scope=scope, name="watcher")
    def watcher_fixture() -> Iterator[Watcher]:
        made = Watcher()
        yield made
        made.close()

    return zygote_fixture, watcher_fixture


@pytest.fixture(name="repository")
def repository_fixture(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture(name="engine")
def engine_fixture(zygote: Zygote, watcher: Watcher, repository: Path) -> Iterator[Engine]:
    with engine_over(zygote, watcher, repository) as made:
        yield made
