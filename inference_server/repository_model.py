"""One model as it lies on disk: its versions, what its owner says about it, and what is to be loaded of it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from inference_server import model_folders, model_settings, triton_config, version_labels
from inference_server.declared import Declared, DeclaredTensor
from inference_server.file_stamps import Stamp, stamps
from inference_server.load_order import PIN_FILE, VERSION
from inference_server.model_settings import FILE, MODEL_FILE, ModelSettings, VersionPolicy
from inference_server.setting_checks import InvalidModelSettings
from inference_server.spool import Spooled
from inference_server.triton_config import TritonConfig
from inference_server.version_labels import Labels

PIPELINE = "pipeline"
SENT = "the config of the load request"
"""What messages about a configuration that came with a load request begin with."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a loaded version was made of: two that are equal would be loaded to the same end."""

    files: tuple[Stamp, ...]
    settings: ModelSettings
    declared: Declared | None


@dataclass(frozen=True, slots=True)
class RepositoryModel:
    """One model as it lies on disk now. `versions` ascend; `problem` is why it cannot be served, "" where it can.

    `pinned`: the version that the last load named, 0 where it named none; it stands above policy and labels. `declared`, `parameters` and
    `unused`: of its Triton configuration. `spooled`: where its files came in a load request. `user`: it is a user's, see `user_models`.
    """

    name: str
    folder: Path
    versions: tuple[int, ...]
    settings: ModelSettings
    problem: str
    pinned: int = 0
    labels: Labels = field(default_factory=Labels)
    declared: Declared | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    spooled: Spooled | None = None
    user: bool = False

    def wanted(self) -> tuple[int, ...]:
        """The versions to load, ascending: what the policy chooses, what a load named, and what has a label."""
        policy = self.settings.version_policy
        chosen = set(policy.choose(self.versions))
        if self.pinned in self.versions:
            chosen = {self.pinned} if policy == VersionPolicy() else chosen | {self.pinned}
        return tuple(sorted(chosen | {version for version in self.labels.versions.values() if version in self.versions}))

    def why_none(self) -> str:
        """Why nothing of it is to be loaded, where that is so."""
        if self.problem or not self.settings.version_policy.specific:
            return self.problem or "its version policy chooses none of its versions"
        asked, there = (", ".join(map(str, numbers)) for numbers in (self.settings.version_policy.specific, self.versions))
        return f"version_policy names version {asked}, and there {_are(self.versions)} {there}"

    def instead(self, wanted: int) -> tuple[int, ...]:
        """Where `wanted` cannot be loaded: what a start tries in its place, best first. Only where no version was named."""
        policy = self.settings.version_policy
        if policy.specific or not policy.latest or self.pinned:
            return ()
        return tuple(version for version in reversed(self.versions) if version < wanted)

    def default(self, loaded: Collection[int]) -> tuple[tuple[int, int], ...]:
        """((version, weight), ...) of requests that name none: what a load named, else by `stable` and `canary`, else the highest."""
        if self.pinned in loaded:
            return ((self.pinned, 1),)
        return self.labels.only(loaded).split(max(loaded))

    def file(self, version: int) -> Path:
        return model_folders.model_file(self.folder / str(version), self.settings.model_file)

    def backend(self, version: int) -> str:
        """What runs it."""
        return PIPELINE if self.settings.steps else self.settings.backend or model_folders.backend(self.file(version))

    def only(self, versions: Collection[int]) -> "RepositoryModel":
        """As if the other versions were not there."""
        return replace(self, versions=tuple(version for version in self.versions if version in versions))

    def fingerprint(self, version: int) -> Fingerprint:
        """Of a version as its files lie now. What only decides about routing is left out."""
        made = replace(self.settings, version_policy=VersionPolicy(), version_labels={}, canary_percent=0)
        return Fingerprint(tuple(stamps(self.folder / str(version))), made, self.declared)


def read(name: str, folder: Path, sent: str = "") -> RepositoryModel:
    """Model `name`, whose files lie in `folder`. `sent`: a configuration as JSON that came with a load request."""
    try:
        settings, triton = _configured(name, folder, sent)
    except InvalidModelSettings as error:
        return RepositoryModel(name, folder, model_folders.versions(folder), ModelSettings(public=False), str(error))
    versions = model_folders.versions(folder, settings.model_file, bare=bool(settings.steps))
    labels = version_labels.read(folder) or Labels(settings.version_labels, settings.canary_percent)
    wanted = "folder, such as 1" if settings.steps else f"with a model file ({settings.model_file or MODEL_FILE})"
    problem = _problem(versions, settings) if versions else f"it has no version {wanted}"
    return RepositoryModel(
        name,
        folder,
        versions,
        settings,
        problem,
        _pinned(folder),
        labels.only(versions),
        _declared(settings) or triton.declared,
        triton.parameters,
        triton.unused,
    )


def _configured(name: str, folder: Path, sent: str) -> tuple[ModelSettings, TritonConfig]:
    """`model.toml` stands above `config.pbtxt`, key by key, and what a request sends above both, in the place of the latter."""
    toml = model_settings.read_toml(folder)
    if not sent:
        triton = triton_config.read(folder, name) or TritonConfig()
        return model_settings.combined(triton.values, toml), triton
    triton = triton_config.translated(triton_config.parse_json(SENT, sent), name, folder, SENT)
    return model_settings.combined(toml, triton.values), triton


def _declared(settings: ModelSettings) -> Declared | None:
    """What `model.toml` says of the tensors themselves, None where it says nothing; shapes stand there with the batch axis."""
    sides = [
        tuple(
            DeclaredTensor(name, said.get("datatype", ""), tuple(said["shape"]) if "shape" in said else None)
            for name, said in tensors.items()
            if said.keys() & {"datatype", "shape"}
        )
        for tensors in (settings.inputs, settings.outputs)
    ]
    return Declared(0, sides[0], sides[1], FILE) if any(sides) else None


def _problem(versions: tuple[int, ...], settings: ModelSettings) -> str:
    """An owner's label must name a version that is there: a slip of the pen is no reason to serve something else."""
    for label, version in settings.version_labels.items():
        if version not in versions:
            return f"version_labels.{label} = {version}, and there are only versions {', '.join(map(str, versions))}"
    return ""


def _are(versions: tuple[int, ...]) -> str:
    return "are versions" if len(versions) > 1 else "is only version"


def _pinned(folder: Path) -> int:
    try:
        text = (folder / PIN_FILE).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if VERSION.fullmatch(text) else 0
