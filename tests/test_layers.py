"""The layer law: imports point down. The table is the law; a package that is not in it may not exist."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = {
    "idl": set(),
    "inference_client": {"idl"},
    "inference_server": {"idl"},
    "gateway": {"idl", "inference_client"},
    "outboard": {"idl", "inference_client", "inference_server", "gateway", "nginx"},
}
"""Package -> the packages of ours that it may import."""

ROOMS = {
    "inference_client": [
        ["client"],
        ["connections"],
        ["dispatcher", "streams"],
        ["lane_channel", "thrift_channel", "grpc_channel"],
        ["thrift_pool", "thrift_streams", "thrift_control", "grpc_streams", "lane_arrays"],
        ["thrift_tls"],
        ["thrift_connection", "thrift_infer", "traced_answers"],
        ["thrift_codec", "grpc_codec", "grpc_status", "result"],
        ["hosts", "files"],
        ["channel"],
        ["deadline", "addresses", "tls"],
    ],
    "gateway": [
        ["__main__", "wsgi", "preloaded"],
        ["launch", "front", "worker"],
        ["application"],
        ["pages"],
        ["blueprints", "hot_routes"],
        ["context"],
        ["wsgi_request", "observation", "query_strings", "url_rules"],
        ["operations"],
        ["waiters"],
        ["models_rpc", "storage"],
        ["model_declaration", "request_body", "log", "metrics", "settings", "clock", "shapes", "bells"],
        ["types"],
        ["errors"],
        ["error_texts"],
    ],
    "inference_server": [
        ["__main__"],
        ["server"],
        ["front"],
        ["transports", "listeners"],
        ["engine"],
        ["engine_stream"],
        ["library"],
        ["served_labels"],
        ["index"],
        ["pipelines"],
        ["launcher", "served_models", "validation"],
        ["served_stream"],
        ["served"],
        ["instance"],
        ["executors"],
        ["backends"],
        ["model_config", "request_checks"],
        ["repository_poll"],
        ["repository", "near_models"],
        ["user_models", "pushed_files"],
        ["repository_model"],
        ["model_folders"],
        ["triton_config", "load_order", "spool"],
        [
            "metrics",
            "routing",
            "tracing",
            "settings",
            "model_settings",
            "triton_ensemble",
            "logs",
            "host",
            "reservations",
            "run_folders",
            "tls",
            "run_time",
            "unix_sockets",
        ],
        [
            "pipeline_steps",
            "provider_options",
            "log_settings",
            "shared_memory",
            "trace_settings",
            "version_labels",
            "warmup_samples",
            "label_files",
            "input_declarations",
            "declared",
        ],
        ["model_links"],
        ["control_groups", "gpus", "setting_checks", "file_stamps", "whole_files", "load_states"],
        ["types"],
        ["errors"],
    ],
}
"""Package -> its rooms, top row first: a module imports only from rows below its own, or its own room."""


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")) if "generated" not in path.parts]


def imports(path: Path) -> list[str]:
    """Dotted names that a file imports, `from a import b` as `a.b`. Relative imports are refused outright."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            found += [f"{node.module}.{name.name}" for name in node.names]
    return found


def row(package: str, room: str) -> int:
    for number, rooms in enumerate(ROOMS[package]):
        if room in rooms:
            return number
    raise AssertionError(f"{package}.{room} has no row in the layer table")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    package, *rest = path.relative_to(ROOT).with_suffix("").parts
    room = rest[0]
    for name in imports(path):
        target, _, inner = name.partition(".")
        if target not in PACKAGES:
            continue
        assert target == package or target in PACKAGES[package], f"{package} must not import {target}"
        if target != package or package not in ROOMS or room == "__init__":
            continue
        other = inner.split(".")[0]
        if other and other != room and (ROOT / package / other).with_suffix(".py").exists() | (ROOT / package / other).is_dir():
            assert row(package, room) < row(package, other), f"{package}.{room} imports {package}.{other}: upward or sideways"


def test_gateway_and_server_meet_only_in_the_contract() -> None:
    assert "inference_server" not in PACKAGES["gateway"] and "gateway" not in PACKAGES["inference_server"]


def test_every_package_is_in_the_table() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert found == set(PACKAGES), found ^ set(PACKAGES)
