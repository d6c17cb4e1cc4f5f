"""Where and with what a measurement was made."""

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("numpy", "onnx", "onnxruntime", "grpcio", "protobuf", "thriftpy2", "Flask", "pyuwsgi", "pillow", "tritonclient")
_TOOLS = {"nginx": ["nginx", "-v"], "wrk": ["wrk", "-v"], "h2load": ["h2load", "--version"]}


def describe() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]).strip(),
        "machine": {
            "cpu": _field("/proc/cpuinfo", r"model name\s*:\s*(.+)"),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(int(_field("/proc/meminfo", r"MemTotal:\s*(\d+)")) / 2**20, 1),
            "kernel": platform.release(),
            "load_before": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), **_packages(), **_tools()},
    }


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _tools() -> dict[str, str]:
    found = {}
    for name, command in _TOOLS.items():
        numbers = re.search(r"\d+(\.\d+)+", _output(command)) if shutil.which(name) else None
        found[name] = numbers.group() if numbers else "absent"
    return found


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return ""
    return done.stdout + done.stderr


def _field(path: str, pattern: str) -> str:
    found = re.search(pattern, Path(path).read_text())
    return found.group(1).strip() if found else "0"
