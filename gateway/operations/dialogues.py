"""Whom one can talk to: models and deployments that take one text and give text, as their signatures say."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.operations.access import Can
from gateway.operations.deployed import Deployed
from gateway.operations.deployment_changes import Deployments
from gateway.operations.deployment_changes import Wanted as WantedDeployments
from gateway.operations.host_models import HostModels
from gateway.storage import Storage
from gateway.storage.deployments import DELETING, DeploymentRecord
from gateway.types import Principal

TEXT = "BYTES"
_MOST = 500
"""Deployments that are looked through, the oldest first."""


@dataclass(frozen=True, slots=True)
class Partner:
    """`name`: what `/v2` calls it. `question`, `answer`: its input and its output. `streams` False: it has a script, so it is asked over
    `/v1/deployments`. `anyone`: no sign-in is needed. `owner` "" and `state` "": a model of the operators'."""

    name: str
    question: str
    answer: str
    streams: bool
    anyone: bool
    owner: str = ""
    model: str = ""
    state: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor of a signature; sizes below 1, or with a name, are any."""

    name: str
    datatype: str
    shape: Sequence[Any]


def names_of(inputs: Iterable[Spec], outputs: Iterable[Spec]) -> tuple[str, str] | None:
    """The input that takes a text and the output that gives one; None where there is no such pair, or more to say than a text."""
    given, taken = list(inputs), [each.name for each in outputs if each.datatype == TEXT]
    if len(given) != 1 or given[0].datatype != TEXT or not taken:
        return None
    if any(isinstance(size, int) and size > 1 for size in given[0].shape):
        return None
    return given[0].name, taken[0]


class Dialogues:
    """Thread-safe."""

    def __init__(self, storage: Storage, deployments: Deployments, deployed: Deployed, host_models: HostModels) -> None:
        self._storage = storage
        self._deployments = deployments
        self._deployed = deployed
        self._host_models = host_models

    def partners(self, principal: Principal) -> list[Partner]:
        """The caller's own deployments first, then what others let him call, then the operators' models; each by name."""
        records = self._deployments.listed(principal, WantedDeployments(shared=True), 0, _MOST)
        versions = self._storage.models.versions_by_id({each.serving_version_id or each.version_id for each in records})
        own, others = list[Partner](), list[Partner]()
        for record in records:
            version = versions.get(record.serving_version_id or record.version_id)
            found = None if version is None else names_of(_specs(version.signature["inputs"]), _specs(version.signature["outputs"]))
            if found is not None and self._may_call(principal, record):
                (own if record.owner_id == principal.user_id else others).append(_partner(record, *found))
        return [*sorted(own, key=_by_name), *sorted(others, key=_by_name), *self._hosts(principal)]

    def _may_call(self, principal: Principal, record: DeploymentRecord) -> bool:
        return record.state != DELETING and Can.CALL in self._deployed.look_up(principal, record.rpc_name)[1]

    def _hosts(self, principal: Principal) -> list[Partner]:
        found = []
        for each in self._host_models.listed(principal, "", "", "", _MOST):
            assert each.metadata is not None, "a list has those that serve"
            specs = (
                [Spec(spec.name, spec.datatype, spec.shape) for spec in side] for side in (each.metadata.inputs, each.metadata.outputs)
            )
            if (names := names_of(*specs)) is not None:
                found.append(Partner(each.name, *names, True, each.public, description=each.description))
        return found


def _partner(record: DeploymentRecord, question: str, answer: str) -> Partner:
    public, model = record.visibility == "public", f"{record.model} v{record.serving_version or record.version}"
    return Partner(record.rpc_name, question, answer, record.script is None, public, record.owner, model, record.state)


def _specs(given: Iterable[dict[str, Any]]) -> list[Spec]:
    return [Spec(each["name"], each["type"], each.get("shape") or ()) for each in given]


def _by_name(partner: Partner) -> str:
    return partner.name.lower()
