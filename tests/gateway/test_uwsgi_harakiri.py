"""How long a request may be inside a worker: uWSGI's own last word, by the routes that we write down for it."""

import http.client
import re
import subprocess
import sys
from pathlib import Path

from gateway.launch import render
from gateway.settings import Settings
from tests.processes import free_port

_APPLICATION = """
import time


def application(environ, start_response):
    time.sleep(float(environ["QUERY_STRING"]))
    start_response("200 OK", [])
    return [b"done"]
"""


def lines_of(settings: Settings) -> list[str]:
    return [line for line in render(settings, 2).splitlines() if line.startswith("route")]


def test_what_takes_files_in_may_take_longer(tmp_path: Path) -> None:
    """uWSGI itself, with those lines: 2 s for a quick request, 20 s for a slow one."""
    settings = Settings(data_dir=tmp_path, socket=str(tmp_path / "g.sock"), request_timeout_s=30, upload_timeout_s=600)
    lines = lines_of(settings)
    assert any("harakiri:45" in line for line in lines) and any("harakiri:615" in line for line in lines)
    port = free_port()
    (tmp_path / "sleeping.py").write_text(_APPLICATION)
    head = f"[uwsgi]\nmaster = true\nmodule = sleeping:application\npythonpath = {tmp_path}\nhttp-socket = 127.0.0.1:{port}\nenable-threads = true\n"
    assert any("generate_stream" in line and "harakiri:3615" in line for line in lines)
    short = [re.sub("harakiri:(3615|615)", "harakiri:20", line).replace("harakiri:45", "harakiri:1") for line in lines]
    (tmp_path / "u.ini").write_text(head + "\n".join(short) + "\n")
    command = [sys.executable, "-c", "import pyuwsgi; pyuwsgi.run()", "--ini", str(tmp_path / "u.ini"), "--die-on-term", "--need-app"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if line.startswith("spawned uWSGI worker 1"):
                    break
            for path in (
                *("/v1/models", "/v1/models/a/versions", "/v1/models/a/test", "/v1/uploads/0", "/uploadmodel", "/v1/batches"),
                *("/v1/batches/b/failures/file", "/v1/scripts", "/v1/scripts/s/versions", "/v1/script-checks", "/uploadscript"),
                *("/v1/deployments/a.d/script-trials", "/ui/deployments/a.d/script"),
            ):
                assert asked(port, f"{path}?0.01") == 200, path
            assert asked(port, "/v1/deployments/a.d/script-trials?3.5") == asked(port, "/v2/models/a.b/generate_stream?3.5") == 200
            assert asked(port, "/v1/models/a/predictions?6") == 0, "the worker was ended"
        finally:
            process.terminate()
            process.communicate(timeout=20)


def asked(port: int, path: str) -> int:
    """The status, 0 where the connection just ends."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (http.client.HTTPException, ConnectionError):
        return 0
    finally:
        connection.close()


def test_nginx_and_uwsgi_name_the_same_paths() -> None:
    nginx = (Path(__file__).parents[2] / "nginx" / "gateway.conf.in").read_text()
    ours = re.findall(r"route = (\S+) harakiri:615", "\n".join(lines_of(Settings(socket="/tmp/g.sock"))))
    assert len(ours) == 2 and all(f"location ~ {each} {{" in nginx for each in ours)
