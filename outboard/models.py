"""`outboard models push|reload|rollback|list|smoke-test` and the verbs of `models_serving`: an operator's work on one model host.
`convert` needs no host.

Each prints what serves before and after on standard output, progress and reasons on standard error, and returns 0, 1 where it did not do
what was asked, or 130 after Ctrl-C. None leaves the host without the version that served before.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from idl.codes import Code, ServingError
from inference_server.model_settings import MODEL_FILES
from outboard import host_access, models_convert, models_serving
from outboard.models_copy import Meter, over_rpc, over_ssh
from outboard.models_host import Host, Refused, Tested, Version
from outboard.models_serving import version_number
from outboard.models_table import print_table

MODEL_FILE, SETTINGS_FILE = MODEL_FILES[0], "model.toml"
DEFAULT_HOST = "127.0.0.1:8001"
_INTERRUPTED = 130
_CANNOT_SERVE = frozenset({Code.INVALID_MODEL, Code.MODEL_FAILED})
"""Why a version does not load that will not load the next time, either."""

Verb = Callable[[Host, argparse.Namespace], int]


def register(subparsers: Any) -> None:
    """Adds the verbs; each parser sets `run`, a function of the parsed arguments that returns the exit status."""
    push = _add(subparsers, "push", _push, "copy a model file to the host, load it and test it with a real request", name=True)
    push.add_argument("file", metavar="FILE", type=Path, help="the model; how it ends says its kind, ONNX without an ending that is known")
    push.add_argument("--version", type=version_number, help="a whole number from 1; default: the highest there is, and 1")
    push.add_argument("--model-toml", metavar="FILE", type=Path, help="settings to put beside the model's versions")
    push.add_argument("--no-load", action="store_true", help="copy only; what serves stays as it is")
    push.add_argument("--ssh", metavar="LOGIN", help="copy over SSH (user@machine or ssh://user@machine:port) and not through --host")
    push.add_argument("--ssh-path", metavar="DIR", help="with --ssh: the host's model repository there")
    push.add_argument("--ssh-config", metavar="FILE", default="", help="with --ssh: a configuration file for ssh")
    _add(subparsers, "reload", _reload, "load what the host's repository holds now, beside what serves, and swap", name=True)
    rollback = _add(subparsers, "rollback", _rollback, "serve the version before the one that serves now", name=True)
    rollback.add_argument(
        "--to", metavar="VERSION", type=version_number, help="this one; default: the highest below the one that serves that can be served"
    )
    _add(subparsers, "list", _list, "every version in the host's repository and its state", name=False)
    _add(subparsers, "smoke-test", _smoke_test, "a real request to every model version that is ready", name=False)
    models_serving.register(partial(_add, subparsers))
    text = "make an estimator of scikit-learn an ONNX model, if it answers the same"
    models_convert.add_arguments(subparsers.add_parser("convert", help=text, description=text))


def _add(subparsers: Any, verb: str, run: Verb, text: str, *, name: bool) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(verb, help=text, description=text)
    parser.add_argument("--name", required=name, default="", metavar="MODEL", help="the model" + ("" if name else "; default: all"))
    parser.add_argument(
        "--host", default=DEFAULT_HOST, metavar="ADDRESS", help=f"the host's gRPC HOST:PORT, or a URL; default {DEFAULT_HOST}"
    )
    host_access.add_token(parser)
    host_access.add_files(parser)
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="for one load or one request; default 300")
    parser.set_defaults(run=partial(_run, run))
    return parser


def _run(verb: Verb, arguments: argparse.Namespace) -> int:
    """Connects, runs the verb, and turns what it raises into a line on standard error and an exit status."""
    try:
        with host_access.connect(arguments.host, arguments, token=host_access.token(arguments)) as client:
            return verb(Host(client, arguments.timeout, _say), arguments)
    except KeyboardInterrupt:
        _say("interrupted")
        return _INTERRUPTED
    except ServingError as error:
        _say(f"{arguments.host}: {error.code.value}: {error.message}")
    except (Refused, ValueError) as error:
        _say(str(error))
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return 1


def _push(host: Host, arguments: argparse.Namespace) -> int:
    name, file = arguments.name, arguments.file
    if bool(arguments.ssh) != bool(arguments.ssh_path):
        raise Refused("--ssh and --ssh-path belong together")
    for path in filter(None, (file, arguments.model_toml)):
        if not path.is_file() or not path.stat().st_size:
            raise Refused(f"{path}: not a file, or an empty one")
    _print_versions("before", host.versions(name))
    there = host.numbers(name)
    version = arguments.version or max(there, default=0) + 1
    for local, number, remote in _files(file, arguments.model_toml, version, is_new=not there):
        _copy(host, arguments, local, number, remote)
    if arguments.no_load:
        print(f"{name}: version {version} is copied and not loaded")
        return 0
    try:
        with host.put_back_on_failure(name):
            # the newest comes in as the model's version policy says; an older one has to be asked for
            host.load(name, None if version >= max(there, default=0) else version)
            tested = host.must_answer(name, version)
    except ServingError as error:
        if error.code in _CANNOT_SERVE and f" version {version}: " in error.message:
            _say(f"{name}: version {version} stays in the repository: push a higher one, or remove its folder on the host")
        raise
    return _report(host, name, tested)


def _files(model: Path, settings: Path | None, version: int, *, is_new: bool) -> Sequence[tuple[Path, int, str]]:
    """What to copy, in the order in which a refusal or an interruption leaves nothing half done.

    Settings that differ from those of a model that is there are refused, so they go first; a new model's are not left without a model.
    """
    usual = model.name if model.name in MODEL_FILES else f"model{model.suffix}"
    files = [(model, version, usual if usual in MODEL_FILES else MODEL_FILE)]
    if settings is not None:
        files.insert(len(files) if is_new else 0, (settings, 0, SETTINGS_FILE))
    return files


def _copy(host: Host, arguments: argparse.Namespace, file: Path, version: int, remote: str) -> None:
    folders = [f"{(arguments.ssh_path or '').rstrip('/')}/{arguments.name}"]
    if version:
        folders.append(f"{folders[0]}/{version}")
    where = f"{arguments.name}/{version}/{remote}" if version else f"{arguments.name}/{remote}"
    meter = Meter(where, sys.stderr)
    try:
        if arguments.ssh:
            existed = over_ssh(arguments.ssh, arguments.ssh_config, file, folders, remote, meter)
        else:
            existed = over_rpc(host.client, file, arguments.name, version, remote, meter)
    finally:
        meter.close()
    print(f"{where}: {'the same bytes were there already' if existed else 'copied'}, SHA-256 verified", flush=True)


def _reload(host: Host, arguments: argparse.Namespace) -> int:
    name = arguments.name
    _print_versions("before", host.versions(name))
    with host.put_back_on_failure(name):
        host.load(name)
        default = host.default(name)
        if default is None:
            raise Refused("nothing of it serves after the load")
        tested = host.must_answer(name, default)
    return _report(host, name, tested)


def _rollback(host: Host, arguments: argparse.Namespace) -> int:
    name, there = arguments.name, host.numbers(arguments.name)
    if not there:
        raise Refused(f"the host's repository has no version of {name!r}")
    targets = _targets(host, name, arguments.to, there)
    _print_versions("before", host.versions(name))
    with host.put_back_on_failure(name):
        tested = _first_that_serves(host, name, targets)
    _report(host, name, tested)
    if tested.version != str(max(there)):
        _say(f"{name}: version {max(there)} stays in the repository: the next load that names no version takes what version_policy chooses")
    return 0


def _targets(host: Host, name: str, to: int | None, there: Sequence[int]) -> Sequence[int]:
    """The versions to go back to, the one to try first in front: `to` alone, else all below the one that serves. Raises Refused for none."""
    if to is not None:
        if to not in there:
            raise Refused(f"{name}: the repository has no version {to}; it has {', '.join(map(str, there))}")
        return [to]
    default = host.default(name)
    if default is None:
        raise Refused(f"nothing of {name!r} serves, so there is nothing to go back from; name a version with --to")
    below = [number for number in reversed(there) if number < default]
    if not below:
        raise Refused(f"{name}: the repository has no version below {default}, which goes on serving")
    return below


def _first_that_serves(host: Host, name: str, targets: Sequence[int]) -> Tested:
    """Loads the first of `targets` that can be loaded and answers a real request, and says which it passes over. Raises as the last did."""
    for target in targets:
        try:
            host.load(name, target)
            return host.must_serve(name, target)
        except ServingError as error:
            if error.code not in _CANNOT_SERVE or target == targets[-1]:
                raise
            reason = f"{error.code.value}: {error.message}"
        except Refused as refused:
            if target == targets[-1]:
                raise
            reason = str(refused)
        _say(f"{name}: version {target} is passed over: {reason}")
    raise AssertionError("there is at least one")


def _list(host: Host, arguments: argparse.Namespace) -> int:
    versions = host.versions(arguments.name)
    if arguments.name and not versions:
        raise Refused(f"the host's repository has no model {arguments.name!r}")
    _print_versions("", versions)
    return 0


def _smoke_test(host: Host, arguments: argparse.Namespace) -> int:
    ready = [version for version in host.versions(arguments.name) if version.state == "READY"]
    tested = [host.test(version.model, version.number) for version in ready]
    print_table(("MODEL", "VERSION", "RESULT", "LATENCY"), [_row(each) for each in tested])
    if not tested:
        _say("no model is ready")
    return 0 if tested and not any(each.failure for each in tested) else 1


def _report(host: Host, name: str, tested: Tested) -> int:
    versions = host.versions(name)
    _print_versions("after", versions)
    took = f"smoke test {tested.seconds * 1000:.1f} ms"
    if max(versions, key=lambda each: each.share).number == tested.version:
        print(f"{name}: version {tested.version} serves; {took}", flush=True)
    else:
        print(f"{name}: version {tested.version} is loaded and tested; {took}", flush=True)
        print(f"{name}: labels decide who gets it: outboard models labels --name {name} ...", flush=True)
    return 0


def _row(tested: Tested) -> tuple[str, ...]:
    return tested.model, tested.version, tested.failure or "ok", "" if tested.failure else f"{tested.seconds * 1000:.1f} ms"


def _print_versions(when: str, versions: Sequence[Version]) -> None:
    if when:
        print(f"{when}:" + ("" if versions else " nothing"), flush=True)
    if versions or not when:
        rows = [(each.model, each.number, each.state, _share(each.share), each.reason) for each in versions]
        print_table(("MODEL", "VERSION", "STATE", "SERVES", "REASON"), rows)


def _share(percent: int) -> str:
    return "default" if percent == 100 else f"{percent} %" if percent else ""


def _say(text: str) -> None:
    print(f"outboard models: {text}", file=sys.stderr, flush=True)
