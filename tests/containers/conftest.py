"""Containers started as compose.yaml says, with podman. `scripts/test-containers` builds the images and sets the engine up; else nothing runs.

What compose.yaml asks for is translated option by option; one that this file does not know is an error, so that nothing is passed over.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.eventually import eventually

COMPOSE = os.environ.get("OUTBOARD_COMPOSE", "")
"""compose.yaml as JSON."""
NAME = "outboard-test"
_ENGINES_BUSINESS = frozenset(
    {"profiles", "build", "restart", "logging", "ports", "networks", "secrets", "volumes", "environment", "image"}
)
"""Handled apart, or of no matter for one run; what is not among these or below is refused."""

Options = Callable[[Any], list[str]]
_FLAGS: Mapping[str, Options] = {
    "init": lambda on: ["--init"] if on else [],
    # podman mounts tmpfs over /run, /tmp and /var/tmp otherwise, and Docker does not
    "read_only": lambda on: ["--read-only", "--read-only-tmpfs=false"] if on else [],
    "cap_drop": lambda names: [f"--cap-drop={name}" for name in names],
    "security_opt": lambda texts: [f"--security-opt={text.removesuffix(':true')}" for text in texts],
    "pids_limit": lambda number: [f"--pids-limit={number}"],
    "ulimits": lambda limits: [f"--ulimit={name}={number}:{number}" for name, number in limits.items()],
    "tmpfs": lambda mounts: [f"--tmpfs={mount}" for mount in mounts],
    "shm_size": lambda size: [f"--shm-size={size}"],
    "cpus": lambda number: [f"--cpus={number}"],
    "mem_limit": lambda size: [f"--memory={size}"],
    "stop_grace_period": lambda text: [f"--stop-timeout={text.removesuffix('s')}"],
}


def podman(*arguments: object, check: bool = True) -> str:
    """Standard output; standard error as well where the command fails."""
    done = subprocess.run(["podman", *map(str, arguments)], capture_output=True, text=True, timeout=180)
    assert not check or done.returncode == 0, f"podman {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@dataclass
class Container:
    """One running container of a service."""

    name: str
    port: int = 0

    def run(self, *command: str) -> str:
        """A command inside, as the container's own user."""
        return podman("exec", self.name, *command)

    def inspect(self, template: str) -> str:
        return podman("inspect", "--format", template, self.name)

    def healthy(self) -> bool:
        """One round of the image's own health check: without systemd nothing else makes podman look."""
        return subprocess.run(["podman", "healthcheck", "run", self.name], capture_output=True, timeout=60).returncode == 0

    def wait(self) -> "Container":
        try:
            eventually(self.healthy, f"{self.name} is not healthy", within_s=90)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.logs()[-8000:]}") from None
        return self

    def stop(self) -> int:
        """As `docker compose stop` does it: SIGTERM, and SIGKILL after the grace period; the exit status."""
        podman("stop", self.name)
        return int(self.inspect("{{.State.ExitCode}}"))

    def logs(self) -> str:
        """What it has said on both of its outputs."""
        return subprocess.run(["podman", "logs", self.name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


@dataclass
class Machine:
    """What one machine has: a network, volumes, secrets. Two of them are two machines that share nothing."""

    name: str
    folder: Path
    """Where its owner's commands run: it gets the folder `secrets`."""
    services: Mapping[str, Any]
    running: list[Container] = field(default_factory=list)

    def secret(self, name: str) -> str:
        return (self.folder / "secrets" / name).read_text().strip()

    def follow(self, commands: str, names: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """Runs commands of the page, with this machine's names and folders in the place of the page's; standard output."""
        names = dict(names or {}) | {
            "outboard_": f"{self.name}-",
            "docker run": "podman run",
            " outboard-gateway": " localhost/outboard-gateway:latest",
        }
        for there, here in names.items():
            commands = commands.replace(there, here)
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", commands], cwd=cwd or self.folder, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def volume(self, name: str) -> str:
        return f"{self.name}-{name}"

    def start(self, service: str, **environment: str) -> Container:
        said = self.services[service]
        unknown = said.keys() - _FLAGS.keys() - _ENGINES_BUSINESS
        assert not unknown, f"compose.yaml: {service}: {unknown} is not known here"
        options = [word for key, make in _FLAGS.items() if key in said for word in make(said[key])]
        for network in said["networks"]:
            if f"{self.name}-{network}" not in podman("network", "ls", "--quiet").split():
                podman("network", "create", f"{self.name}-{network}")
        aliases = {f"--network-alias={alias}" for network in said["networks"] for alias in _aliases(said["networks"], network)}
        options += ["--network", ",".join(f"{self.name}-{network}" for network in said["networks"]), *sorted(aliases)]
        for key, text in {**{name: _default(text) for name, text in said["environment"].items()}, **environment}.items():
            options.append(f"--env={key}={text}")
        options += [
            f"--volume={self.folder / 'secrets' / secret['source']}:/run/secrets/{secret['target']}:ro" for secret in said["secrets"]
        ]
        options += [f"--volume={self.volume(mount.partition(':')[0])}:{mount.partition(':')[2]}" for mount in said["volumes"]]
        inside = [port.rpartition(":")[2] for port in said["ports"]]
        options += [f"--publish=127.0.0.1::{port}" for port in inside]
        name = f"{self.name}-{service}"
        podman("rm", "--force", "--ignore", name)
        image = said["image"] if ":" in said["image"] else f"{said['image']}:latest"
        podman(
            "run", "--detach", "--name", name, *options, "--ulimit=nproc=4096:4096", f"localhost/{image}"
        )  # podman's own may be too high for this machine
        made = Container(name, int(podman("port", name, f"{inside[0]}/tcp").rpartition(":")[2]))
        self.running.append(made)
        return made

    def remove(self) -> None:
        for container in self.running:
            podman("rm", "--force", "--ignore", "--time", "5", container.name)
        for name in podman("volume", "ls", "--quiet").split():
            if name.startswith(f"{self.name}-"):
                podman("volume", "rm", "--force", name)
        for name in podman("network", "ls", "--quiet").split():
            if name.startswith(f"{self.name}-"):
                podman("network", "rm", "--force", name)


def _aliases(networks: Any, name: str) -> list[str]:
    return networks[name].get("aliases", []) if isinstance(networks, dict) else []


def _default(text: str) -> str:
    """What `${NAME:-default}` is without the variable."""
    return text.partition(":-")[2].removesuffix("}") if text.startswith("${") else text


@pytest.fixture(scope="session")
def services() -> Mapping[str, Any]:
    if not COMPOSE:
        pytest.skip("run by scripts/test-containers")
    found: dict[str, Any] = json.loads(Path(COMPOSE).read_text())["services"]
    return found


@pytest.fixture(scope="module")
def machine(services: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Machine]]:
    """Makes machines, without secrets."""
    made: list[Machine] = []

    def make(name: str) -> Machine:
        made.append(Machine(f"{NAME}-{name}", tmp_path_factory.mktemp(name), services))
        return made[-1]

    yield make
    for one in made:
        one.remove()
