"""`outboard models instances|labels|capacity`: how many processes serve a model, what its labels mean, what the host has left."""

import argparse
from collections.abc import Callable, Mapping

from idl.messages import Capacity, HostModel
from outboard.models_host import Host, Refused
from outboard.models_table import print_table, size_text

Add = Callable[..., argparse.ArgumentParser]
_STABLE, _CANARY = "stable", "canary"
_HEAD = ("MODEL", "VERSION", "STATE", "INSTANCES", "IN FLIGHT", "MEMORY", "RESERVED", "REASON")


def register(add: Add) -> None:
    """`add(verb, run, help, name=...)` makes a verb's parser with the options that all have."""
    number = add("instances", _instances, "how many processes serve a model, without a dropped request", name=True)
    number.add_argument("count", metavar="COUNT", type=_whole(1, 1024), help="from 1")
    number.add_argument("--version", type=version_number, help="of this version alone; default: of each that serves")
    labels = add("labels", _labels, "what the labels of a model's versions mean, and the share of the canary", name=True)
    for label, text in ((_STABLE, "the version that most requests get"), (_CANARY, "the version that some requests get")):
        labels.add_argument(f"--{label}", metavar="VERSION", type=version_number, help=text)
    labels.add_argument("--percent", type=_whole(0, 100), default=0, help="of the requests without a version, for the canary; default 0")
    labels.add_argument("--label", metavar="NAME=VERSION", type=_label, action="append", default=[], help="another label; may be repeated")
    labels.add_argument("--none", action="store_true", help="what was set ends: the labels of model.toml hold again")
    add("capacity", _capacity, "cores and memory of the host: who has them, what is free", name=False)


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def version_number(text: str) -> int:
    """The type of an argument that names a version."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**18):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _label(text: str) -> tuple[str, int]:
    name, _, version = text.partition("=")
    if not name or not version:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VERSION")
    return name, version_number(version)


def _instances(host: Host, arguments: argparse.Namespace) -> int:
    name = arguments.name
    print("before:")
    _print_models(host.capacity(), name)
    host.set_instances(name, arguments.count, str(arguments.version or ""))
    print("after:")
    _print_models(host.capacity(), name)
    return 0


def _labels(host: Host, arguments: argparse.Namespace) -> int:
    given = {_STABLE: arguments.stable, _CANARY: arguments.canary}
    labels = {label: version for label, version in given.items() if version is not None} | dict(arguments.label)
    if bool(labels) == arguments.none:
        raise Refused("give the labels, all of them (--stable, --canary, --label), or --none")
    host.set_labels(arguments.name, labels, arguments.percent)
    print(f"{arguments.name}: {_said(labels, arguments.percent) if labels else _left(host.labels(arguments.name))}")
    return 0


def _said(labels: Mapping[str, int], percent: int) -> str:
    share = {_CANARY: f" for {percent} % of the requests without a version"} if percent else {}
    return ", ".join(f"{label} is version {version}{share.get(label, '')}" for label, version in labels.items())


def _left(labels: str) -> str:
    """What holds when nothing is set: `labels` as the host has them, which are its files'."""
    return f"the labels of its settings hold: {labels}" if labels else "no labels"


def _capacity(host: Host, arguments: argparse.Namespace) -> int:
    found = host.capacity()
    if arguments.name and not any(model.name == arguments.name for model in found.models):
        raise Refused(f"nothing of {arguments.name!r} is loaded")
    reserved, free = size_text(found.memory_reserved_bytes), size_text(found.memory_free_bytes)
    rows = [
        ("cpus", f"{found.cpus:g}", f"{found.cpus_reserved:g}", f"{found.cpus_free:g}", ""),
        ("memory", size_text(found.memory_bytes), reserved, free, f"{size_text(found.memory_available_bytes)} unused now"),
        ("disk", "", "", size_text(found.disk_available_bytes), ""),
    ]
    print_table(("", "ALL", "RESERVED", "FREE", ""), rows)
    print()
    _print_models(found, arguments.name)
    return 0


def _print_models(capacity: Capacity, name: str) -> None:
    chosen = [model for model in capacity.models if not name or model.name == name]
    print_table(_HEAD, [_row(model) for model in sorted(chosen, key=lambda model: (model.name, len(model.version), model.version))])


def _row(model: HostModel) -> tuple[str, ...]:
    cpus = f"{model.cpus:g} cpus" if model.cpus else ""
    memory = size_text(model.memory_reserved_bytes) if model.memory_reserved_bytes else ""
    reserved = ", ".join(filter(None, (cpus, memory)))
    counts = (str(model.instances), str(model.in_flight), size_text(model.memory_bytes))
    return model.name, model.version, model.state, *counts, reserved, model.reason
