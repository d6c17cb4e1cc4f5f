"""Models made of models: in which order they are loaded, what their steps are when they are, and whether those still serve."""

import threading
from collections.abc import Callable, Collection

from idl.codes import ServingError
from inference_server import errors, pipeline_steps
from inference_server.pipeline_steps import Step
from inference_server.repository_model import RepositoryModel
from inference_server.served import ServedVersion
from inference_server.types import Signature

MOST_DEPTH = 8
"""Pipelines in pipelines."""


class Pipelines:
    """`route` gives what serves a model and version, or raises ServingError; `peek` a model as it lies on disk. Thread-safe."""

    def __init__(self, route: Callable[[str, str], ServedVersion], peek: Callable[[str], RepositoryModel | None]) -> None:
        self._route, self._peek = route, peek
        self._lock = threading.Lock()
        self._waiting: dict[str, frozenset[str]] = {}
        """Pipelines that could not be loaded for want of their steps."""

    def waves(self, names: Collection[str]) -> list[list[str]]:
        """`names` such that what a model is made of comes in an earlier wave."""
        needs: dict[str, Collection[str]] = {}
        for name in names:
            model = self._peek(name)
            needs[name] = {step.model for step in model.settings.steps} - {name} if model is not None else ()
        return pipeline_steps.waves(needs)

    def signatures(self, model: RepositoryModel) -> list[Signature]:
        """Of the models of its steps. Raises not_ready, naming the step whose model does not serve; it is then `waiting`. Raises
        invalid_model where it would be a step of itself.
        """
        found = []
        try:
            for step in model.settings.steps:
                served = self._step(model.name, step)
                self._check_depth((model.name,), served)
                found.append(served.signature)
        except ServingError:
            with self._lock:
                self._waiting[model.name] = frozenset(step.model for step in model.settings.steps)
            raise
        with self._lock:
            self._waiting.pop(model.name, None)
        return found

    def _step(self, name: str, step: Step) -> ServedVersion:
        try:
            return self._route(step.model, step.version)
        except ServingError as error:
            raise errors.not_ready(f"model {name!r}: step {step.name!r}: {error.message}") from error

    def _check_depth(self, above: tuple[str, ...], served: ServedVersion) -> None:
        way = (*above, served.name)
        if served.name in above:
            raise errors.invalid_model(above[0], f"it would be a step of itself: {' -> '.join(way)}")
        if len(way) > MOST_DEPTH:
            raise errors.invalid_model(above[0], f"more than {MOST_DEPTH} pipelines would lie in one another: {' -> '.join(way)}")
        for step in served.model.settings.steps:
            try:
                inner = self._route(step.model, step.version)
            except ServingError:
                continue
            self._check_depth(way, inner)

    def why_not(self, served: ServedVersion, depth: int = 0) -> str:
        """Which step keeps a loaded pipeline from answering; "" where none does, and for any other model."""
        for step in served.model.settings.steps:
            try:
                inner = self._step(served.name, step)
            except ServingError as error:
                return error.message
            if not inner.ready:
                return f"step {step.name!r}: model {step.model!r} is not ready"
            if depth < MOST_DEPTH and (why := self.why_not(inner, depth + 1)):
                return f"step {step.name!r}: {why}"
        return ""

    def forget(self, name: str) -> None:
        """Nobody wants it any more."""
        with self._lock:
            self._waiting.pop(name, None)

    def woken(self, name: str) -> list[str]:
        """Those that waited for model `name`, which serves now."""
        with self._lock:
            return [waiting for waiting, steps in self._waiting.items() if name in steps]
