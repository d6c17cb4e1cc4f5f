"""`ensemble_scheduling` of a Triton configuration, as the `steps` that a pipeline of ours has.

The message and its rules: `ModelEnsembling` of Triton's model_config.proto, "Ensemble Models" of its user guide.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from inference_server.pipeline_steps import MOST_STEPS, PLATFORM, Step
from inference_server.setting_checks import InvalidModelSettings, bad, shown

FIELD = "ensemble_scheduling"
NEWEST = -1
"""`model_version` of a step: what the model serves by default."""
_PASSED_OVER = ("default_model_filename", "optimization", "response_cache")
"""What an ensemble may set and has no use for: it has no file, and nothing of its own to be kept."""


def is_one(config: Any) -> bool:
    """`config`: an `inference.ModelConfig`. Raises InvalidModelSettings where it says both that it is an ensemble and that it is none."""
    says = bool(config.WhichOneof("scheduling_choice") == FIELD)
    for what, name in (("platform", config.platform), ("backend", config.backend)):
        if name == PLATFORM and not says:
            raise InvalidModelSettings(f"{what} {PLATFORM!r} needs {FIELD}, which is not there")
        if says and name not in ("", PLATFORM):
            raise InvalidModelSettings(f"{FIELD} needs platform {PLATFORM!r}, and {what} is {shown(name)}")
    return says


def steps(config: Any) -> list[dict[str, Any]]:
    """As `steps` of `model.toml` has them, for `pipeline_steps.reader`. Raises InvalidModelSettings."""
    said = config.ensemble_scheduling.step
    if not said:
        raise InvalidModelSettings(f"{FIELD} has no step")
    if len(said) > MOST_STEPS:
        raise InvalidModelSettings(f"{FIELD} has {len(said)} steps, at most {MOST_STEPS} are taken")
    for side, tensors in (("input", config.input), ("output", config.output)):
        _check_tensors(side, tensors)
    return [_step(f"{FIELD}.step[{number}]", step) for number, step in enumerate(said, 1)]


def _check_tensors(side: str, tensors: Any) -> None:
    names = [tensor.name for tensor in tensors]
    for tensor in tensors:
        if names.count(tensor.name) > 1:
            raise InvalidModelSettings(f"{side} {shown(tensor.name)} is there twice")
        if tensor.HasField("reshape"):
            raise InvalidModelSettings(
                f"{side} {shown(tensor.name)} has a reshape: an ensemble's tensors are shaped as its steps have them"
            )


def _step(key: str, step: Any) -> dict[str, Any]:
    if not step.model_name:
        raise InvalidModelSettings(f"{key} has no model_name")
    if step.model_namespace:
        raise InvalidModelSettings(f"{key}.model_namespace = {shown(step.model_namespace)}: there are no namespaces here")
    if step.model_version < NEWEST or not step.model_version:
        raise bad(f"{key}.model_version", step.model_version, f"{NEWEST}, for what the model serves by default, or a version's number")
    for name, tensors in (("input_map", step.input_map), ("output_map", step.output_map)):
        if not tensors:
            raise InvalidModelSettings(f"{key} ({step.model_name}) has no {name}")
        for tensor, target in tensors.items():
            if not tensor or not target:
                raise InvalidModelSettings(f"{key}.{name} of {shown(tensor or target)} names a tensor without a name")
    version = {} if step.model_version == NEWEST else {"version": step.model_version}
    return {"model": step.model_name, "inputs": dict(step.input_map), "outputs": dict(step.output_map), **version}


def without(given: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Of keys of `model.toml` and their values those that a pipeline has."""
    return ((key, value) for key, value in given if key not in ("cache", "model_file", "onnxruntime"))


def unused(config: Any) -> Iterator[str]:
    """Names of what is set and changes nothing."""
    for name in _PASSED_OVER:
        if any(field.name == name for field, _ in config.ListFields()):
            yield name
    if config.ensemble_scheduling.max_inflight_requests:
        yield f"{FIELD}.max_inflight_requests"


def described(given: Iterable[Step]) -> dict[str, Any]:
    """The message as JSON: every tensor of every step by its name."""
    return {"step": [_described(step) for step in given]}


def _described(step: Step) -> dict[str, Any]:
    version = int(step.version) if step.version.isdigit() else NEWEST
    maps = {"input_map": dict(step.inputs or {}), "output_map": dict(step.outputs or {})}
    return {"model_name": step.model, "model_version": version, **maps}


def untold(given: Iterable[Step]) -> dict[str, Any]:
    """Of steps what the message has no word for, names and labels, as keys of `model.toml`: number of the step, from 1, in text -> them."""
    found: dict[str, Any] = {}
    for number, step in enumerate(given, 1):
        told = {} if step.name in (step.model, f"{step.model}#{number}") else {"name": step.name}
        if step.version and not step.version.isdigit():
            told["version"] = step.version
        if told:
            found[str(number)] = told
    return found


def with_untold(key: str, said: list[dict[str, Any]], told: Any) -> list[dict[str, Any]]:
    """`said`, as `steps` gives them, with what `untold` gave, out of a configuration that somebody sends: a version's number in the message
    stands above a label. Raises InvalidModelSettings.
    """
    if not isinstance(told, Mapping):
        raise bad(key, told, "a table of a step's number = its name and label")
    for number, more in told.items():
        if number not in map(str, range(1, len(said) + 1)):
            raise InvalidModelSettings(f"{key} has step {shown(number)}, and there are {len(said)}")
        if not isinstance(more, Mapping) or not more.keys() <= {"name", "version"}:
            raise bad(f"{key}.{number}", more, "a table of name and version")
    return [{**told.get(str(number), {}), **step} for number, step in enumerate(said, 1)]
