"""The pages say what the code says: every route, setting, key, metric, code, verb, command and script; links lead somewhere; examples run.

What must be named is always asked of the code (the application's routes, dataclass fields, parsers, descriptors), never of a list here.
"""

import argparse
import dataclasses
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway import create_app
from gateway import settings as gateway_settings
from gateway.errors import STATUS as HTTP_STATUS
from gateway.metrics import Metrics as GatewayMetrics
from idl import tensors
from idl.codes import Code
from idl.generated import control_pb2, inference_pb2
from inference_client import Client
from inference_server import input_declarations, model_settings, provider_options, warmup_samples
from inference_server import metrics as server_metrics
from inference_server import settings as server_settings
from inference_server.transports.grpc_calls import STATUS as GRPC_STATUS
from outboard import up
from outboard.__main__ import VERBS
from tests.eventually import eventually
from tests.needs import needs
from tests.processes import Process, environment, start_up
from tests.test_layers import PACKAGES, ROOMS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
EXAMPLES = ("README.md", "docs/http.md", "docs/rpc.md", "docs/operations.md")
"""Pages whose examples are run."""

# reading pages ---------------------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line that it begins at."""

    language: str
    text: str
    line: int


class Page(NamedTuple):
    """Headings as (level, text, line), blocks, and the lines outside blocks, blocks' lines blank."""

    headings: list[tuple[int, str, int]]
    blocks: list[Block]
    prose: list[str]


def page(name: str) -> Page:
    found = Page([], [], [])
    language, begin, inside = "", 0, False
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("```"):
            if inside:
                found.blocks.append(Block(language, "\n".join(lines[begin:number]), begin))
            inside, language, begin = not inside, line[3:].strip(), number + 1
        elif not inside and (match := re.match(r"(#+) (.+)", line)):
            found.headings.append((len(match[1]), match[2], number))
        found.prose.append("" if inside or line.startswith("```") else line)
    assert not inside, f"{name}: a block is not closed"
    return found


def section(name: str, heading: str) -> str:
    """The text under `heading`, to the next heading of any level."""
    found = page(name)
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    begins = [number for _, text, number in found.headings if text == heading]
    assert begins, f"{name} has no heading {heading!r}"
    ends = [number for _, _, number in found.headings if number > begins[0]]
    return "\n".join(lines[begins[0] : ends[0] if ends else None])


def rows(text: str, first: str) -> dict[str, list[str]]:
    """Table rows whose first cell is a code span that matches `first`: that -> the other cells."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip()[1:-1].split("|")] if line.startswith("|") else []
        if cells and (match := re.fullmatch(rf"`({first})`", cells[0])):
            assert match[1] not in found, f"{match[1]} stands twice"
            found[match[1]] = cells[1:]
    return found


# what the code has -----------------------------------------------------------------------------------------------------------------


def test_every_route_is_documented_and_every_documented_route_is_there(tmp_path: Path) -> None:
    app = create_app(gateway_settings.Settings(data_dir=tmp_path))
    rules = [
        (re.sub(r"<(\w+)>", r"{\1}", rule.rule), rule.methods or set())
        for rule in app.url_map.iter_rules()
        if not rule.endpoint.startswith("pages_")
    ]
    actual = {f"{method} {path}" for path, methods in rules for method in methods - {"HEAD", "OPTIONS"}}
    documented = set()
    for route in rows(section("docs/http.md", "Every route"), r"[A-Z]+ /\S*"):
        documented |= {re.sub(r"\[.*?\]", "", route), re.sub(r"[\[\]]", "", route)}
    assert documented == actual


def spelled(value: Any) -> str:
    """A default as the pages write it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None or value == "" else str(value)


def options_of(verb: str) -> set[str]:
    """The options of `outboard VERB`, those of argparse's own left out."""
    parser = argparse.ArgumentParser()
    VERBS[verb][0](parser)
    return {option for action in parser._actions for option in action.option_strings if option.startswith("--")} - {"--help"}


SETTINGS = {
    "outboard up": {up.PREFIX + name.upper(): default or "none" for name, default in up._DEFAULTS.items()},
    "Server": {
        server_settings.PREFIX + field.name.upper(): spelled(
            field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        )
        for field in dataclasses.fields(server_settings.Settings)
    },
    "Gateway": {
        gateway_settings.PREFIX + field.name.upper(): spelled(field.default) for field in dataclasses.fields(gateway_settings.Settings)
    },
}


@pytest.mark.parametrize("heading", SETTINGS)
def test_every_setting_is_documented_with_its_default(heading: str) -> None:
    documented = rows(section("docs/configuration.md", heading), r"OUTBOARD_\w+")
    expected = dict(SETTINGS[heading])
    if heading == "outboard up":  # what may stand beside the options, whole names only: the rest are the parts' prefixes
        expected |= {name: "none" for name in up.OTHERS if not name.endswith("_")}
    assert {name: cells[0].strip("`") for name, cells in documented.items()} == expected


@pytest.mark.parametrize(("heading", "verb"), [("outboard up", "up"), ("Server", "serve")])
def test_the_option_of_each_setting_is_documented(heading: str, verb: str) -> None:
    documented = rows(section("docs/configuration.md", heading), r"OUTBOARD_\w+")
    assert {cells[1].strip("`") for cells in documented.values() if cells[1]} == options_of(verb)


def test_every_key_of_model_toml_is_documented() -> None:
    keys = {field.name for field in dataclasses.fields(model_settings.ModelSettings)}
    assert set(model_settings.READERS) == keys - {"top_k"}, "the file's keys are the value's fields"
    session, warmup, triton = (section("docs/configuration.md", name) for name in ("Session options", "Warm-up", "Triton's config.pbtxt"))
    first, _, _ = section("docs/configuration.md", "model.toml").partition(session)
    top, _, inner = first.partition("| key of an input |")
    assert set(rows(top, r"\w+")) == keys
    assert set(rows(inner, r"\w+")) == set(input_declarations.INPUT_CHECKS)
    inner_keys = {
        "python": model_settings.PYTHON_READERS,
        "state.NAME": model_settings.STATE_READERS,
        "sequence": model_settings.SEQUENCE_READERS,
    }
    inner_keys["outputs.NAME"] = input_declarations.TENSOR_CHECKS
    assert [f"{table}.{key}" for table, keys in inner_keys.items() for key in keys if f"`{table}.{key}`" not in top] == []
    providers = section("docs/configuration.md", "Execution providers")
    for name in provider_options.READERS:
        told = providers.partition(f"[onnxruntime.{name}]\n")[2].partition("[")[0]
        keys = [key.partition(".")[2] for key in provider_options.KEYS if key.startswith(f"{name}.")]
        assert [key for key in keys if not re.search(rf"^{key} = ", told, re.MULTILINE)] == [], name
    for kind in input_declarations.INPUT_KINDS:
        assert f'`"{kind}"`' in inner
    for key in model_settings.ONNXRUNTIME_READERS:
        assert f"`{key}`" in session
    for key in [*warmup_samples.SAMPLE_READERS, *warmup_samples.INPUT_READERS]:
        assert re.search(rf"\b{key}\b", warmup)
    assert [field.name for field in inference_pb2.ModelConfig.DESCRIPTOR.fields if f"`{field.name}`" not in triton] == list(UNNAMED)


UNNAMED = (
    *("cc_model_filenames", "metric_tags", "model_operations", "model_transaction_policy", "model_repository_agents"),
    *("runtime", "model_metrics"),
)
"""Fields of Triton's configuration that the page names by what they do, or that only the log names."""


def test_every_metric_is_documented() -> None:
    registry = CollectorRegistry()
    registry.register(server_metrics.Metrics())
    published = (generate_latest(registry) + GatewayMetrics().render()).decode()
    names = {name for name in re.findall(r"^# TYPE (\w+) \w+$", published, re.MULTILINE) if not name.endswith("_created")}
    assert set(rows(section("docs/operations.md", "Metrics"), r"outboard_\w+")) == names


def test_every_error_code_is_documented_with_its_statuses() -> None:
    documented = {code: cells[:2] for code, cells in rows(section("docs/rpc.md", "Error codes"), r"\w+").items()}
    assert documented == {code.value: [str(HTTP_STATUS[code]), GRPC_STATUS[code].name] for code in Code}


def test_every_verb_and_datatype_is_documented() -> None:
    services = [service for module in (inference_pb2, control_pb2) for service in module.DESCRIPTOR.services_by_name.values()]
    verbs = {method.name for service in services for method in service.methods}
    assert set(rows(section("docs/rpc.md", "Verbs") + section("docs/rpc.md", "outboard.Control"), r"\w+")) == verbs
    table = section("docs/rpc.md", "Datatypes and bytes")
    assert [name for name in tensors.DTYPES if f"`{name}`" not in table] == []


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """("outboard serve", its parser) for every command, those of `outboard models` included."""
    for verb, (build, _) in VERBS.items():
        parser = argparse.ArgumentParser()
        build(parser)
        yield f"outboard {verb}", parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from ((f"outboard {verb} {name}", inner) for name, inner in action.choices.items())


@pytest.mark.parametrize(("command", "parser"), list(parsers()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_and_option_is_documented(command: str, parser: argparse.ArgumentParser) -> None:
    words = command.split()
    text = "".join(section("docs/operations.md", " ".join(words[:count])) for count in range(2, len(words) + 1))
    options = {option for action in parser._actions for option in action.option_strings if option.startswith("--")} - {"--help"}
    assert [option for option in sorted(options) if not re.search(rf"{option}\b(?!-)", text)] == []


def test_every_script_is_documented() -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in PAGES)
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.name.startswith("_")]
    assert [path.name for path in scripts if not re.search(rf"scripts/{path.name}\b(?!-)", text)] == []


def test_the_layer_law_is_documented() -> None:
    text = section("docs/architecture.md", "The layer law")
    assert set(rows(text.partition("| room |")[0], r"\w+")) == set(PACKAGES)
    assert [room for row in ROOMS["inference_server"] for room in row if not re.search(rf"`{room}/?`", text)] == []


# links and languages ---------------------------------------------------------------------------------------------------------------


def anchors(name: str) -> set[str]:
    """The fragments that a page's headings have on GitHub."""
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for _, text, _ in page(name).headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(page(name).prose)):
        path, _, fragment = target.partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        there = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        is_there = there.exists() and there.is_relative_to(ROOT)
        if not is_there or (fragment and fragment not in anchors(there.relative_to(ROOT).as_posix())):
            wrong.append(target)
    assert wrong == []


def test_the_chinese_readme_says_the_same() -> None:
    english, chinese = page("README.md"), page("README.zh.md")
    assert [level for level, _, _ in chinese.headings] == [level for level, _, _ in english.headings]
    assert [block[:2] for block in chinese.blocks] == [block[:2] for block in english.blocks]
    pattern = re.compile(r"\]\(([^)\s]+)\)")
    own = {"README.md", "README.zh.md"}
    assert set(pattern.findall("\n".join(chinese.prose))) - own == set(pattern.findall("\n".join(english.prose))) - own


# examples --------------------------------------------------------------------------------------------------------------------------


class Stack(NamedTuple):
    """Everything running, and what the examples' addresses and folders are here."""

    up: Process
    names: dict[str, str]

    def run(self, block: Block) -> str:
        """Standard output of an example, run from the top of the repository."""
        text = self.here(block.text)
        command = [sys.executable, "-c", text] if block.language == "python" else ["bash", "-e", "-o", "pipefail", "-c", text]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def here(self, text: str) -> str:
        for there, here in self.names.items():
            text = text.replace(there, here)
        return text

    def reset(self) -> None:
        """The model of README's section "Your own model" as that section leaves it."""
        folder = Path(self.names["my-models"]) / "double"
        for name in ("serving-version", "serving-labels", "model.toml"):
            (folder / name).unlink(missing_ok=True)
        for model in folder.glob("[2-9]/model.onnx"):
            model.unlink()
        said = "user=alice&password=correct%20horse&modelname=twice&deployment=live"  # of README's section "Models of your users"
        request = urllib.request.Request(f"{self.up['http']}/deletedeployment?{said}", method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()
        with Client(self.up["grpc"]) as client:
            eventually(lambda: "alice.live" not in {entry.name for entry in client.repository_index()}, "the deployment is gone")
            client.load_model("double")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """What the pages assume: `scripts/up --models my-models`."""
    folder = tmp_path_factory.mktemp("docs")
    (made,) = [block for block in page("README.md").blocks if block.text.startswith("mkdir -p my-models")]
    models = str(folder / "my-models")
    subprocess.run(["bash", "-e", "-c", made.text.replace("my-models", models)], cwd=ROOT, check=True, timeout=60)
    process = start_up(folder / "data", "--models", models)
    thrift, grpc = process["thrift"], process["grpc"]
    names = {
        "/tmp/": f"{folder}/",
        "my-models": models,
        "http://localhost:8080": process["http"],
        "127.0.0.1:8001": grpc,
        "127.0.0.1:9090": thrift,
        '"127.0.0.1", 9090': f'"127.0.0.1", {thrift.rpartition(":")[2]}',
    }
    yield Stack(process, names)
    assert process.stop() == 0, process.log.read_text()


def matches(shown: str, printed: str, *, spaces: bool) -> bool:
    """`shown` has `...` for what varies; without `spaces` a line may be broken anywhere, as JSON may be."""
    if not spaces:
        shown, printed = re.sub(r"\s", "", shown), re.sub(r"\s", "", printed)
    pattern = ".*?".join(map(re.escape, shown.strip().split("...")))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


@needs("curl", "thrift")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_do_what_the_page_shows(stack: Stack, name: str) -> None:
    stack.reset()
    blocks = page(name).blocks
    ran = 0
    for block, following in zip(blocks, [*blocks[1:], Block("", "", -1)], strict=True):
        if block.language not in ("sh", "python") or re.search(r"^scripts/(up|test)\b", block.text, re.MULTILINE):
            continue
        printed = stack.run(block)
        ran += 1
        end = block.line + block.text.count("\n") + 1  # the line of the closing fence
        if following.language in ("text", "json") and following.line == end + 3:
            assert matches(stack.here(following.text), printed, spaces=following.language == "text"), f"{name}:{block.line}:\n{printed}"
    assert ran
