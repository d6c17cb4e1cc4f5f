"""`model.toml`: what a model's owner says about it besides the file itself. Every key is optional, an unknown one is an error.

The same keys may come as JSON, with a load request or inside a `config.pbtxt`; what several places say is put together key by key.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from idl import toml_text
from inference_server import input_declarations, label_files, pipeline_steps, provider_options, version_labels, warmup_samples
from inference_server.setting_checks import (
    InvalidModelSettings,
    Reader,
    bad,
    boolean,
    byte_count,
    byte_size,
    cores,
    is_number,
    is_whole,
    one_of,
    plain_name,
    shown,
    table,
    text,
    whole,
    wholes,
)

FILE = "model.toml"
MODEL_FILE = "model.onnx"
BACKENDS = {".onnx": "onnx", ".py": "python", ".pmml": "pmml", ".pt2": "pytorch", ".pt": "pytorch"}
"""How a model file's name ends -> what runs it."""
SCRIPT_FILE, SCRIPT = "script.py", "script"
MODEL_FILES = (*(f"model{suffix}" for suffix in BACKENDS), SCRIPT_FILE)
"""The usual names, the first that is there counts."""
SCRIPT_TIMEOUT_S, SCRIPT_MEMORY = 5.0, 256 * 2**20
"""Of one call of a script, where its owner says nothing."""
_SCRIPT_BOX_MEMORY, _LEAST_SCRIPT_MEMORY = 64 * 2**20, 16 * 2**20
"""What its box and the process that owns it have, at most."""
_MAX_BYTES = 2**20
_FLAG = re.compile(r"-[bBdEIOsSuvqx]{1,8}|-[WX]?[A-Za-z0-9_][A-Za-z0-9_=:.,-]{0,100}|-[WX]|[A-Za-z0-9_][A-Za-z0-9_=:.,-]{0,100}")
"""Those that need no file and run nothing of their own (`-c` and `-m` do)."""
_CPU_PROVIDERS = frozenset({"CPUExecutionProvider", "OpenVINOExecutionProvider", "DnnlExecutionProvider", "XnnpackExecutionProvider"})
"""onnxruntime's providers that need no GPU."""


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions are loaded: the `latest` n, or the `specific` ones, or, where both are empty, all."""

    latest: int = 1
    specific: tuple[int, ...] = ()

    def choose(self, versions: tuple[int, ...]) -> tuple[int, ...]:
        """Of `versions`, ascending, those to load."""
        if self.specific:
            return tuple(version for version in versions if version in self.specific)
        return versions[-self.latest :] if self.latest else versions


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """`memory` is in bytes, 0 for no limit; `threads` of one run, 0 for what `cpus` or the server says.

    `device_id`: which GPU, from 0. `max_batch_size`, `max_queue_delay_us` and `max_queue_size` None: found out at load, or the server's default. `batching` False: never.
    `preferred_batch_sizes`: rows. Priorities are 1, the highest, to `priority_levels`, 0 for none; `default_priority` 0: the middle one.
    `default_timeout_us`: longest wait in the queue of a request that says none, 0 for ever. `device` "": what the server has.
    `model_file` "": one of the usual names. `labels`: output name -> one label per index. `inputs`, `outputs`: name -> declaration.
    `parameters` are the model's own. `python`: how its interpreter is started. `max_streams`: requests with several answers under way at
    once, 0 for the server's default. `state`: input name -> which output it is the next time; `sequence`: limits of sequences. `steps`: of a pipeline, which
    has no file of its own. `cache`: limits of the response cache, None for no cache. `backend` "": what the file's name says. `script`: limits
    of one call.
    """

    public: bool = True
    description: str = ""
    max_batch_size: int | None = None
    preferred_batch_sizes: tuple[int, ...] = ()
    batching: bool = True
    max_queue_delay_us: int | None = None
    max_queue_size: int | None = None
    default_timeout_us: int = 0
    priority_levels: int = 0
    default_priority: int = 0
    instances: int = 1
    executor: str = "process"
    device: str = ""
    device_id: int = 0
    cpus: float = 0.0
    threads: int = 0
    memory: int = 0
    model_file: str = ""
    onnxruntime: Mapping[str, Any] = field(default_factory=dict)
    version_policy: VersionPolicy = VersionPolicy()
    version_labels: Mapping[str, int] = field(default_factory=dict)
    canary_percent: int = 0
    warmup: tuple[warmup_samples.Sample, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    top_k: int = 5
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    python: Mapping[str, Any] = field(default_factory=dict)
    max_streams: int = 0
    state: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sequence: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[pipeline_steps.Step, ...] = ()
    cache: Mapping[str, Any] | None = None
    backend: str = ""
    script: Mapping[str, Any] = field(default_factory=dict)

    def providers(self, server: Sequence[str]) -> tuple[str, ...]:
        """Of the server's execution providers those that this model may use; the CPU's own where none would be left."""
        if self.device != "cpu":
            return tuple(server)
        return tuple(name for name in server if name in _CPU_PROVIDERS) or ("CPUExecutionProvider",)

    def unmet(self, providers: Sequence[str]) -> tuple[str, ...]:
        """Keys that ask for what the providers, those that a loaded model got, do not have."""
        return ("device",) if self.device == "gpu" and not on_gpu(providers) else ()

    def published(self) -> dict[str, Any]:
        """What callers and the gateway are told, as JSON values."""
        return {
            "public": self.public,
            "description": self.description,
            "labels": {name: list(values) for name, values in self.labels.items()},
            "top_k": self.top_k,
            "inputs": {name: input_declarations.published(value) for name, value in self.inputs.items()},
        }


def on_gpu(providers: Sequence[str]) -> bool:
    """Whether one of onnxruntime's providers `providers` needs a GPU."""
    return not _CPU_PROVIDERS.issuperset(providers)


def read(folder: Path) -> ModelSettings:
    """`folder/model.toml` and the label files that it names. Raises InvalidModelSettings."""
    return combined(read_toml(folder))


def read_toml(folder: Path) -> dict[str, Any]:
    """The fields of ModelSettings that `folder/model.toml` sets. Raises InvalidModelSettings."""
    try:
        with (folder / FILE).open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidModelSettings(f"{FILE} cannot be read: {type(error).__name__}") from error
    if len(raw) > _MAX_BYTES:
        raise InvalidModelSettings(f"{FILE} has more than {_MAX_BYTES} bytes")
    try:
        given = toml_text.loads(raw)
    except ValueError as error:
        raise InvalidModelSettings(f"{FILE} is not TOML: {error}") from error
    return values(FILE, given, folder)


def values(source: str, given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What `checked` gives. Raises InvalidModelSettings, naming `source`."""
    try:
        return checked(given, folder)
    except InvalidModelSettings as error:
        raise InvalidModelSettings(f"{source}: {error}") from error


def checked(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Keys and values as TOML or JSON has them -> fields of ModelSettings. Raises InvalidModelSettings."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        if (reader := READERS.get(key)) is None:
            raise InvalidModelSettings(f"there is no key {shown(key)}; known are {', '.join(sorted(READERS))}")
        found[key] = reader(key, value, folder)
    if "labels" in given and "top_k" in given["labels"]:
        found["top_k"] = top_k("labels.top_k", given["labels"]["top_k"], folder)
    return found


def combined(*places: Mapping[str, Any]) -> ModelSettings:
    """Fields out of several places, a later one stands above an earlier one. Raises InvalidModelSettings where they do not go together."""
    given: dict[str, Any] = {}
    for place in places:
        given |= place
    if given.get("backend") == SCRIPT:
        given.setdefault("model_file", SCRIPT_FILE)
    settings = ModelSettings(**given)
    _check_together(settings)
    return settings


def _check_together(settings: ModelSettings) -> None:
    most, sizes = settings.max_batch_size, settings.preferred_batch_sizes
    if most is not None and sizes and sizes[-1] > max(most, 1):
        raise InvalidModelSettings(f"preferred_batch_sizes has {sizes[-1]}, and max_batch_size is {most}")
    if settings.default_priority > settings.priority_levels:
        raise InvalidModelSettings(f"default_priority = {settings.default_priority}, and priority_levels is {settings.priority_levels}")
    if settings.backend and not settings.model_file.endswith(".py"):
        raise InvalidModelSettings(f"model_file = {shown(settings.model_file)}, and backend says that it is a script, a .py file")
    if settings.memory and settings.script.get("memory", 0) > (left := script_memory(settings.memory)):
        raise InvalidModelSettings(f"script.memory is more than memory leaves for a call: {left // 2**20} MiB")
    for key in ("state", "onnxruntime", "python", "model_file", "backend", "script"):
        if settings.steps and getattr(settings, key):
            raise InvalidModelSettings(f"{key} and steps do not go together: a pipeline has no model of its own")
    for key in ("state", "steps"):
        if settings.cache is not None and getattr(settings, key):
            raise InvalidModelSettings(f"cache and {key} do not go together: the same question may have another answer the next time")
    version_labels.checked(settings.version_labels, settings.canary_percent)


def script_memory(memory: int) -> int:
    """Bytes for one call of a script whose owner says none: what `memory`, the limit of all processes of an instance, leaves beside the others."""
    return max(_LEAST_SCRIPT_MEMORY, memory - _SCRIPT_BOX_MEMORY) if memory else SCRIPT_MEMORY


def unfit_for_script(settings: ModelSettings) -> str:
    """Which key says something that a script has not got; "" where none does. What runs a version is only known with its file."""
    if settings.executor == "thread":
        return "executor"
    if settings.python.get("flags") or settings.python.get("sandbox") == "off":
        return "python"
    if settings.cache is not None:
        return "cache"
    if (settings.max_batch_size or 0) > 1:
        return "max_batch_size"
    return next(
        (key for key in ("inputs", "outputs", "labels", "warmup", "state", "sequence", "onnxruntime") if getattr(settings, key)), ""
    )


def _version_policy(key: str, value: Any, folder: Path) -> VersionPolicy:
    want = '"all", { latest = N } or { specific = [N, ...] }'
    if value == "all":
        return VersionPolicy(latest=0)
    if not isinstance(value, dict) or len(value) != 1:
        raise bad(key, value, want)
    ((kind, inner),) = value.items()
    if kind == "latest" and is_whole(inner, 1, 10**18):
        return VersionPolicy(latest=inner)
    if kind == "specific" and isinstance(inner, list) and inner and all(is_whole(item, 1, 10**18) for item in inner):
        return VersionPolicy(specific=tuple(sorted(set(inner))))
    raise bad(key, value, want)


def _onnxruntime(key: str, value: Any, folder: Path) -> dict[str, Any]:
    return table(key, value, ONNXRUNTIME_READERS, folder)


def _python(key: str, value: Any, folder: Path) -> dict[str, Any]:
    return table(key, value, PYTHON_READERS, folder)


def _script(key: str, value: Any, folder: Path) -> dict[str, Any]:
    return table(key, value, SCRIPT_READERS, folder)


def _state(key: str, value: Any, folder: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict):
        raise bad(key, value, "a table of input name = declaration")
    found = {str(name): table(f"{key}.{name}", said, STATE_READERS, folder) for name, said in value.items()}
    for name, said in found.items():
        if "output" not in said:
            raise InvalidModelSettings(f"{key}.{name} does not say which output it is the next time: {key}.{name}.output")
    return found


def _sequence(key: str, value: Any, folder: Path) -> dict[str, Any]:
    return table(key, value, SEQUENCE_READERS, folder)


def _cache(key: str, value: Any, folder: Path) -> dict[str, Any]:
    return table(key, value, CACHE_READERS, folder)


def _sizes(key: str, value: Any, folder: Path) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(is_whole(item, 1, 2**40) for item in value):
        raise bad(key, value, "a list of sizes")
    return tuple(value)


def _seconds(key: str, value: Any, folder: Path) -> float:
    if not is_number(value) or not 0 < value <= 86_400:
        raise bad(key, value, "a number of seconds above 0, at most a day")
    return float(value)


def _flags(key: str, value: Any, folder: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(flag, str) and _FLAG.fullmatch(flag) for flag in value):
        raise bad(key, value, 'a list of interpreter flags, such as ["-O", "-X", "utf8"]')
    return tuple(value)


def _parameters(key: str, value: Any, folder: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise bad(key, value, "a table of texts")
    return dict(value)


top_k = whole(1, 100_000)
"""Of the key `top_k`, which stands under `labels`."""

STATE_READERS: dict[str, Reader] = {"output": text, "batch_axis": whole(0, 31), "shape": _sizes}
"""Keys of `[state.NAME]`."""

SEQUENCE_READERS: dict[str, Reader] = {"idle_timeout_s": _seconds, "max_sequences": whole(1, 1_000_000)}
"""Keys of `[sequence]`."""

CACHE_READERS: dict[str, Reader] = {"entries": whole(1, 100_000_000), "bytes": byte_count, "ttl_s": _seconds}
"""Keys of `[cache]`."""

SCRIPT_READERS: dict[str, Reader] = {"timeout": _seconds, "memory": byte_size}
"""Keys of `[script]`."""

PYTHON_READERS: dict[str, Reader] = {"flags": _flags, "sandbox": one_of("auto", "required", "off")}
"""Keys of `[python]`."""

ONNXRUNTIME_READERS: dict[str, Reader] = {
    "execution_mode": one_of("sequential", "parallel"),
    "inter_op_threads": whole(0, 1024),
    "graph_optimization": one_of("all", "extended", "basic", "none"),
    "memory_arena": boolean,
    "memory_pattern": boolean,
    **provider_options.READERS,
}
"""Keys of `[onnxruntime]`."""

READERS: dict[str, Callable[[str, Any, Path], Any]] = {
    "public": boolean,
    "description": text,
    "max_batch_size": whole(0, 65536),
    "preferred_batch_sizes": wholes(1, 65536),
    "batching": boolean,
    "max_queue_delay_us": whole(0, 60_000_000),
    "max_queue_size": whole(1, 1_000_000),
    "default_timeout_us": whole(0, 3_600_000_000),
    "priority_levels": whole(0, 16),
    "default_priority": whole(0, 16),
    "instances": whole(1, 1024),
    "executor": one_of("process", "thread"),
    "device": one_of("cpu", "gpu"),
    "device_id": whole(0, 1023),
    "cpus": cores,
    "threads": whole(0, 1024),
    "memory": byte_size,
    "model_file": plain_name,
    "onnxruntime": _onnxruntime,
    "version_policy": _version_policy,
    "version_labels": version_labels.reader,
    "canary_percent": whole(0, 100),
    "warmup": warmup_samples.reader,
    "labels": label_files.labels,
    "inputs": input_declarations.inputs,
    "outputs": input_declarations.outputs,
    "parameters": _parameters,
    "python": _python,
    "state": _state,
    "sequence": _sequence,
    "steps": pipeline_steps.reader,
    "cache": _cache,
    "max_streams": whole(1, 65536),
    "backend": one_of(SCRIPT),
    "script": _script,
}
"""Key of `model.toml` -> what reads it."""

FIELDS = frozenset(each.name for each in fields(ModelSettings))
