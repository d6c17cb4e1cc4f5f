"""Tensors that lie in shared memory, and outputs that are wanted as classes, over HTTP.

Regions are registered with the model server, which alone knows their names; the gateway asks it for each request that names one, and opens the
memory itself. So it must run on the same machine. Sources: Triton's shared memory and classification extensions, "Inference Request".
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from gateway.models_rpc import Models
from idl.classification import classify, count_of
from idl.codes import Code, ServingError
from idl.messages import Tensor
from idl.shared_regions import CLASSIFICATION, OFFSET, REGION, SIZE, Place, Region, place


class Extended(NamedTuple):
    """What a request's tensors say of themselves, by name: where an input lies, where an output is to be put, how many classes of it."""

    sources: Mapping[str, Place]
    places: Mapping[str, Place]
    classes: Mapping[str, int]


class Reading:
    """Collects it while a body is read."""

    def __init__(self) -> None:
        self._sources: dict[str, Place] = {}
        self._places: dict[str, Place] = {}
        self._classes: dict[str, int] = {}

    def input(self, name: str, parameters: Mapping[str, Any]) -> bool:
        """Whether it lies in shared memory. Raises invalid_input."""
        found = place(name, parameters)
        if found is not None:
            self._sources[name] = found
        return found is not None

    def output(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Raises invalid_input."""
        if (found := place(name, parameters)) is not None:
            self._places[name] = found
        if CLASSIFICATION in parameters and (count := count_of(name, parameters[CLASSIFICATION])):
            self._classes[name] = count

    def extended(self) -> Extended | None:
        """None where nothing of the kind was said."""
        said = Extended(self._sources, self._places, self._classes)
        return said if any(said) else None


class Regions:
    """Those that one request names; closed when it goes. Raises unsupported, not_found, invalid_input."""

    def __init__(self, models: Models, said: Extended) -> None:
        self._said = said
        names = {at.region for at in (*said.sources.values(), *said.places.values())}
        if names and not models.local:
            raise ServingError(Code.UNSUPPORTED, "shared memory needs a gateway on the model's host")
        self._regions = {name: Region(models.shared_memory_status(name)[0]) for name in names}
        for tensor, at in (*said.sources.items(), *said.places.items()):
            self._regions[at.region].check(tensor, at)

    def inputs(self, given: Sequence[Tensor], limit: int) -> tuple[Tensor, ...]:
        """With the contents of those that lie there. Raises too_large where these are over `limit` bytes."""
        sources = self._said.sources
        if sum(at.size for at in sources.values()) > limit:
            raise ServingError(Code.TOO_LARGE, f"the inputs in shared memory have over {limit} bytes")
        return tuple(
            replace(each, data=self._regions[at.region].read(each.name, at)) if (at := sources.get(each.name)) else each for each in given
        )

    def put(self, outputs: Sequence[Tensor]) -> None:
        """Those that are to lie there."""
        for tensor in outputs:
            if at := self._said.places.get(tensor.name):
                self._regions[at.region].write(tensor.name, at, tensor.data)


def classified(outputs: Sequence[Tensor], classes: Mapping[str, int], labels: Mapping[str, Sequence[str]]) -> list[Tensor]:
    """Raises invalid_input for an output without numbers."""
    return [classify(each, classes[each.name], labels.get(each.name, ())) if each.name in classes else each for each in outputs]


def described(at: Place, size: int) -> dict[str, Any]:
    """An output's parameters where `size` bytes of it were put into shared memory."""
    return {REGION: at.region, SIZE: size, **({OFFSET: at.offset} if at.offset else {})}
