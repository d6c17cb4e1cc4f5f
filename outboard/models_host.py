"""What an operator's verbs do on one model host: look, load, test, and put back what served before where that fails."""

import re
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from idl import tensors
from idl.codes import Code, ServingError
from idl.messages import Capacity, ModelMetadata, TensorSpec
from inference_client import Client

_SHARE = re.compile(r"(\d+)(?: \((\d+) %\))?")
"""One entry of the property "default_version" of a model: "3", or "3 (90 %), 4 (10 %)"."""
_NOT_SERVING = frozenset({Code.MODEL_NOT_FOUND, Code.VERSION_NOT_FOUND, Code.NOT_FOUND, Code.NOT_READY})


class Refused(Exception):
    """The verb did not do what was asked; the message says why, and the exit status is 1."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version in the host's repository. `share`: how many in 100 of the requests that name no version it answers."""

    model: str
    number: str
    state: str
    reason: str
    share: int


@dataclass(frozen=True, slots=True)
class Tested:
    """A real request's outcome: seconds, or why it failed."""

    model: str
    version: str
    seconds: float
    failure: str


class Host:
    """One model host through its RPC port. Times are seconds; methods raise ServingError where the host refuses."""

    def __init__(self, client: Client, timeout_s: float, say: Callable[[str], None]) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._say = say

    @property
    def client(self) -> Client:
        return self._client

    def versions(self, name: str = "") -> tuple[Version, ...]:
        """What the repository has, of one model or of all, in the host's order."""
        index = [entry for entry in self._client.repository_index() if not name or entry.name == name]
        shares = {name: self.shares(name) for name in {entry.name for entry in index if entry.state == "READY"}}
        return tuple(Version(e.name, e.version, e.state, e.reason, shares.get(e.name, {}).get(e.version, 0)) for e in index)

    def numbers(self, name: str) -> tuple[int, ...]:
        """The versions that the repository has, ascending."""
        return tuple(sorted(int(version.number) for version in self.versions(name) if version.number.isdigit()))

    def default(self, name: str) -> int | None:
        """The version that serves by default (with a canary beside it: the one that most requests get), None where none does."""
        shares = self.shares(name)
        return int(max(shares, key=lambda version: shares[version])) if shares else None

    def shares(self, name: str) -> dict[str, int]:
        """Version -> how many in 100 of the requests that name none it answers; empty where nothing serves."""
        try:
            metadata = self._client.model_metadata(name)
        except ServingError as error:
            if error.code in _NOT_SERVING:
                return {}
            raise
        if said := metadata.properties.get("default_version"):
            return {version: int(percent or 100) for version, percent in _SHARE.findall(said)}
        numbers = [int(version) for version in metadata.versions if version.isdigit()]
        return {str(max(numbers)): 100} if numbers else {}

    def load(self, name: str, version: int | None = None) -> None:
        """Loads exactly `version`, or what the model's version policy chooses."""
        self._client.load_model(name, {"version": str(version)} if version else {}, timeout_s=self._timeout_s)

    def set_instances(self, name: str, count: int, version: str = "") -> None:
        """Returns when as many serve, of `version` or of each version that serves."""
        self._client.set_instances(name, count, version, timeout_s=self._timeout_s)

    def labels(self, name: str) -> str:
        """What the labels mean now, as the host writes it: "canary=4 (10 %), stable=3"; "" where there are none."""
        return self._client.model_metadata(name).properties.get("version_labels", "")

    def set_labels(self, name: str, labels: Mapping[str, int], canary_percent: int) -> None:
        self._client.set_labels(name, labels, canary_percent, timeout_s=self._timeout_s)

    def capacity(self) -> Capacity:
        return self._client.capacity()

    def test(self, name: str, version: str) -> Tested:
        """One inference with zeros (and a short text) of the smallest shape that the model allows; of several answers the first."""
        try:
            metadata = self._client.model_metadata(name, version)
            inputs = {spec.name: _zeros(spec) for spec in metadata.inputs}
            datatypes = {spec.name: spec.datatype for spec in metadata.inputs}
            begun = time.perf_counter()
            with self._client.stream(name, inputs, version=version, datatypes=datatypes, timeout_s=self._timeout_s) as answers:
                result = next(answers, None)
            seconds = time.perf_counter() - begun
        except ServingError as error:
            return Tested(name, version, 0.0, f"{error.code.value}: {error.message}")
        if result is None:  # a stream that ends at once is what some models rightly say to zeros
            return Tested(name, version, seconds, "")
        return Tested(name, result.model_version, seconds, _mismatch(metadata, version, result.model_version, result.datatypes))

    def must_serve(self, name: str, version: int) -> Tested:
        """Raises Refused unless `version` is the default one and answers a real request."""
        default = self.default(name)
        if default != version:
            raise _does_not_serve(version, default)
        return self.must_answer(name, version)

    def must_answer(self, name: str, version: int) -> Tested:
        """Raises Refused unless `version` is loaded and answers a real request, be it the default one or one that labels keep from it."""
        default = self.default(name)
        if default != version and str(version) not in {each.number for each in self.versions(name) if each.state == "READY"}:
            raise _does_not_serve(version, default)
        tested = self.test(name, str(version))
        if tested.failure:
            raise Refused(f"version {version} was loaded and failed its smoke test: {tested.failure}")
        return tested

    @contextmanager
    def put_back_on_failure(self, name: str) -> Iterator[None]:
        """What served by default before serves again when the block fails or is interrupted; where nothing did, nothing does."""
        before = self.default(name)
        try:
            yield
        except BaseException:
            self._put_back(name, before)
            raise

    def _put_back(self, name: str, before: int | None) -> None:
        try:
            now = self.default(name)
            if now == before:
                self._say(f"{name}: {f'version {before} goes on serving' if before else 'nothing of it serves, as before'}")
            elif before is None:
                self._client.unload_model(name, timeout_s=self._timeout_s)
                self._say(f"{name}: unloaded, as nothing of it served before")
            else:
                self.load(name, before)
                self._say(f"{name}: version {before}, which served before, was put back")
        except ServingError as error:
            self._say(f"{name}: what served before ({before or 'nothing'}) could NOT be put back: {error.code.value}: {error.message}")


def _does_not_serve(version: int, default: int | None) -> Refused:
    why = "" if default is None else f", version {default} does: its version policy (model.toml) or its labels decide"
    return Refused(f"version {version} does not serve{why}")


def _zeros(spec: TensorSpec) -> tensors.Array:
    shape = tuple(1 if size < 0 else size for size in spec.shape)
    if spec.datatype == "BYTES":
        return np.full(shape, b"test", object)
    return np.zeros(shape, tensors.DTYPES[spec.datatype])


def _mismatch(metadata: ModelMetadata, asked: str, answered: str, outputs: Container[str]) -> str:
    """Why an answer is not the one that the model's own description promises, "" where it is."""
    if asked and asked != answered:
        return f"version {answered} answered"
    missing = [spec.name for spec in metadata.outputs if spec.name not in outputs]
    return f"output {missing[0]!r} is missing in the answer" if missing else ""
