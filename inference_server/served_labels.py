"""Labels that are set while a model serves: kept with it, in memory where its folder cannot be written."""

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace

from inference_server import version_labels
from inference_server.index import Index
from inference_server.repository import Repository
from inference_server.repository_model import RepositoryModel
from inference_server.served_models import ServedModel, ServedModels, served_model
from inference_server.version_labels import Labels

log = logging.getLogger("outboard.server")


class ServedLabels:
    """Thread-safe."""

    def __init__(self, repository: Repository, served: ServedModels, index: Index) -> None:
        self._repository = repository
        self._served = served
        self._index = index
        self._setting = threading.Lock()
        self._labels: dict[str, Labels] = {}
        """Model -> labels that were set while it served: the file that remembers them may not be writable."""

    def labelled(self, model: RepositoryModel) -> RepositoryModel:
        """With the labels that were set while it served; files that came in a request bring their own."""
        labels = self._labels.get(model.name) if model.spooled is None else None
        return model if labels is None else replace(model, labels=labels.only(model.versions))

    def forget(self, name: str) -> None:
        self._labels.pop(name, None)

    def set(self, name: str, versions: Mapping[str, int], canary_percent: int) -> None:
        """What the labels mean from now on, all of them; none at all: what the model's settings say.

        Nothing is loaded, so it is done at once, also while the model is loading. Raises invalid_input, conflict (a version that is not
        loaded), and what a request to the model would.
        """

        def change(old: ServedModel | None) -> ServedModel:
            if old is None:
                raise self._index.why_not(name)
            settings = old.model.settings
            labels = version_labels.check(name, versions, canary_percent, old.versions)
            self._labels.pop(name, None)
            if versions:
                self._labels[name] = labels
            else:
                labels = Labels(settings.version_labels, settings.canary_percent)
            pinned = 0 if version_labels.STABLE in versions else old.model.pinned
            return served_model(replace(old.model, labels=labels.only(old.versions), pinned=pinned), old.versions)

        with self._setting:
            self._served.change(name, change)
            now = self._served.table.get(name)
            if now is not None and now.model.spooled is None:
                self._remember(now.model, self._labels.get(name))
        log.info("labels", extra={"fields": {"model": name, "labels": dict(versions), "canary_percent": canary_percent}})

    def _remember(self, model: RepositoryModel, labels: Labels | None) -> None:
        if not (version_labels.write(model.folder, labels) and self._repository.pin(model, model.pinned)):
            log.warning("the labels cannot be remembered over a restart", extra={"fields": {"model": model.name}})
