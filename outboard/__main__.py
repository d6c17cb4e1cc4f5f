"""The `outboard` command. Each verb imports what it needs, so that `outboard models` works where no server is installed."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from outboard.secret_files import FOLDER, InvalidSecret, with_secrets

Verb = Callable[[argparse.ArgumentParser], Callable[[argparse.Namespace], int]]


def _calling(module: str) -> Any:
    """A verb that calls servers: it has arrays, and computes nothing with them."""
    import_module("idl.numpy_alone").load()
    return import_module(module)


def _serve(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    server = import_module("inference_server.__main__")
    server.add_arguments(parser)
    run: Callable[[argparse.Namespace], int] = server.run
    return run


def _gateway(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    gateway = import_module("gateway.__main__")
    parser.add_argument("--check", action="store_true", help="read the settings and prepare the data folder, then end")
    return lambda arguments: int(gateway.main(["--check"] if arguments.check else []))


def _worker(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    worker = import_module("gateway.worker.__main__")
    worker.add_arguments(parser)
    run: Callable[[argparse.Namespace], int] = worker.run
    return run


def _up(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    up = import_module("outboard.up")
    up.add_arguments(parser)
    run: Callable[[argparse.Namespace], int] = up.run
    return run


def _web(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    web = import_module("outboard.web")
    web.add_arguments(parser)
    run: Callable[[argparse.Namespace], int] = web.run
    return run


def _health(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    health = _calling("outboard.health")
    health.add_arguments(parser)
    run: Callable[[argparse.Namespace], int] = health.run
    return run


def _models(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    models = _calling("outboard.models")
    models.register(parser.add_subparsers(dest="models_verb", required=True, metavar="VERB"))
    return lambda arguments: int(arguments.run(arguments))


def _top(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    top = _calling("outboard.top")
    top.add_arguments(parser)
    run: Callable[[argparse.Namespace], int] = top.run
    return run


def _doctor(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    doctor = _calling("outboard.doctor")
    doctor.add_arguments(parser)
    run: Callable[[argparse.Namespace], int] = doctor.run
    return run


def _backup(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    backup = import_module("outboard.backup")
    backup.add_arguments(parser)
    run: Callable[[argparse.Namespace], int] = backup.run
    return run


def _restore(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    backup = import_module("outboard.backup")
    backup.add_restore_arguments(parser)
    run: Callable[[argparse.Namespace], int] = backup.run_restore
    return run


class _Parser(argparse.ArgumentParser):
    """Says the usage of the verb that was misused: argparse itself leaves words that a verb does not know to the whole command."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:  # type: ignore[override]
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown


class _Version(argparse.Action):
    """Looks it up when it is asked for, which takes as long as the rest of the command line."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        print(f"outboard {import_module('importlib.metadata').version('outboard')}")
        parser.exit()


VERBS: dict[str, tuple[Verb, str]] = {
    "up": (_up, "everything on this machine: model server, gateway, web server, demo model"),
    "serve": (_serve, "the inference server alone"),
    "gateway": (_gateway, "the web gateway alone"),
    "worker": (_worker, "a task worker apart from its gateway, on the same data folder"),
    "web": (_web, "the web gateway with nginx in front"),
    "health": (_health, "asks a model host or a gateway once: is it alive, is it ready"),
    "models": (_models, "push, reload, roll back, list and test the models of a host"),
    "top": (_top, "what a model server does now: models, rates, times, memory, live in the terminal"),
    "backup": (_backup, "the gateway's state in one file, while it runs"),
    "restore": (_restore, "puts a backup back, once all of it was verified"),
    "doctor": (_doctor, "is everything here that Outboard needs, and what to do where it is not"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(prog="outboard", description="A model server: models out of the web application, behind a typed contract.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and end")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    run: Callable[[argparse.Namespace], int] | None = None
    for name, (build, text) in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text)
        if given and given[0] == name:
            try:
                run = build(verb)
            except ModuleNotFoundError as missing:
                print(
                    f"outboard {name}: {missing.name} is not installed (pip install -e '.[server,gateway,demo]' in the checkout)",
                    file=sys.stderr,
                )
                return 1
    parsed = parser.parse_args(given)
    assert run is not None  # argparse has refused every other verb
    try:
        secrets = with_secrets(os.environ)
    except InvalidSecret as error:
        print(f"outboard {parsed.verb}: {error}", file=sys.stderr)
        return 2
    os.environ.pop(FOLDER, None)
    os.environ.update(secrets)
    return run(parsed)


if __name__ == "__main__":
    sys.exit(main())
