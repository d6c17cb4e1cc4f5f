"""Starts the comparison application: nginx, uWSGI with several workers, the model in each."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import payloads
from benchmarks.inprocess import LABELS_VARIABLE, MODEL_VARIABLE
from benchmarks.machine import ROOT
from benchmarks.processes import free_port, running, wait_until
from benchmarks.workload import Workload

PATH = "/predictions"


@dataclass(frozen=True, slots=True)
class Application:
    """`link` names the model that workers load when they start; `fifo` is uWSGI's control."""

    http: str
    pids: tuple[int, int]
    link: Path
    fifo: Path

    def change(self, model: Path, command: bytes) -> None:
        """Puts another model in place and has uWSGI reload: `w` all workers at once, `c` one after the other."""
        fresh = self.link.with_suffix(".next")
        fresh.symlink_to(model)
        fresh.replace(self.link)
        with self.fifo.open("wb", buffering=0) as control:
            control.write(command)


@contextmanager
def application(folder: Path, load: Workload, workers: int) -> Iterator[Application]:
    """Ready: each worker has its model. Needs nginx."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        raise RuntimeError("the comparison needs nginx; on Debian or Ubuntu: apt-get install nginx")
    folder.mkdir()
    port, link, fifo, log = free_port(), folder / "model.onnx", folder / "control", folder / "log"
    link.symlink_to(load.file)
    environ = {**os.environ, MODEL_VARIABLE: str(link), LABELS_VARIABLE: str(load.file.parents[1] / "labels.json")}
    config = folder / "nginx.conf"
    template = (Path(__file__).parent / "nginx.conf").read_text()
    # started by root, nginx would give its workers to a user who may not open the socket
    user = "user root;\n" if os.geteuid() == 0 else ""
    config.write_text(user + template.replace("FOLDER", str(folder)).replace("PORT", str(port)))
    with ExitStack() as stack:
        uwsgi = stack.enter_context(running(_uwsgi(folder / "app.sock", fifo, workers), log=log, environ=environ))
        front = stack.enter_context(running([nginx, "-p", str(folder), "-e", str(log), "-c", str(config)], log=log))
        found = Application(f"http://127.0.0.1:{port}", (uwsgi.pid, front.pid), link, fifo)
        try:
            wait_until(lambda: _is_ready(found, load), "the in-process application", pause_s=0.1)
        except TimeoutError as error:
            raise RuntimeError(f"{error}:\n{log.read_text()[-4000:]}") from error
        yield found


def _uwsgi(sock: Path, fifo: Path, workers: int) -> list[str]:
    options = ["--master", "--need-app", "--lazy-apps", "--die-on-term", "--disable-logging", "--processes", str(workers)]
    options += [
        "--uwsgi-socket",
        str(sock),
        "--master-fifo",
        str(fifo),
        "--listen",
        "128",
        "--chdir",
        str(ROOT),
        "--virtualenv",
        sys.prefix,
    ]
    return [str(Path(sys.executable).with_name("uwsgi")), *options, "--module", "benchmarks.inprocess.app:application"]


def _is_ready(app: Application, load: Workload) -> bool:
    try:
        payloads.check_photograph(app.http, load, PATH)
    except payloads.RefusedError:
        return False
    return True
