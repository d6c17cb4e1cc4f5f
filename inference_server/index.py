"""The repository's index: every version that lies there or serves, with its state."""

from collections.abc import Callable, Mapping

from idl.messages import ModelIndex
from inference_server.repository import Repository
from inference_server.served import ServedVersion
from inference_server.served_models import ServedModel

State = Callable[[str, int, ServedVersion | None], tuple[str, str]]
"""(model, version, what serves of it) -> (state, reason)."""


def of(repository: Repository, table: Mapping[str, ServedModel], state: State) -> list[ModelIndex]:
    """By name and version. A model of which nothing can be loaded has one entry, without a version."""
    found: list[ModelIndex] = []
    for name in sorted({*repository.names(), *table}):
        model = repository.peek(name)
        loaded = table[name].versions if name in table else {}
        for version in sorted({*(model.versions if model else ()), *loaded}):
            found.append(ModelIndex(name, str(version), *state(name, version, loaded.get(version))))
        if not loaded and (model is None or not model.versions):
            found.append(ModelIndex(name, "", "UNAVAILABLE", model.problem if model else "gone from the repository"))
    return found
