"""Tasks and a batch, while their worker, the gateway and the model host are killed at seeded random moments: nothing is lost, nothing is there twice."""

import csv
import io
import json
import os
import random
import signal
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from gateway.settings import Settings
from tests.conftest import Record
from tests.eventually import eventually
from tests.gateway.conftest import PASSWORD, start_gateway
from tests.http_servers import Answer, taking_posts
from tests.onnx_models import slow, times
from tests.processes import Process, free_port, start_server

TERMINAL = ("succeeded", "failed", "cancelled", "expired")
Headers = dict[str, str]


class Receiver:
    """Takes every notice, one time in four only when it is sent again."""

    def __init__(self, chance: random.Random) -> None:
        self.got: Counter[str] = Counter()
        self._chance = chance

    def take(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        name = headers["webhook-id"]
        known = self.got[name]
        self.got[name] += 1
        return 503 if not known and self._chance.random() < 0.25 else 200, {}, b""


class Site:
    """A model host and a gateway with its task worker, that are killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.models, self.folder = folder / "models", folder
        self.models.mkdir()
        times(self.models / "triple" / "1" / "model.onnx", 3)
        slow(self.models / "crawl" / "1" / "model.onnx", 20)
        self.settings = Settings(
            data_dir=folder / "data",
            model_hosts=(f"thrift+unix://{folder / 't.sock'}",),
            http_port=free_port(),
            processes=2,
            threads=4,
            webhook_addresses="any",
            webhook_timeout_s=2.0,
            batch_requests=4,
            access_token_ttl_s=86_400,
        )
        self.host, self.gateway = self.start_host(), start_gateway(self.settings)
        self.kills: Counter[str] = Counter()

    def start_host(self) -> Process:
        return start_server(self.models, self.folder, "--thrift-socket", str(self.folder / "t.sock"))

    def worker_pid(self) -> int:
        ready = [json.loads(line)["pid"] for line in list(self.gateway.program.lines) if '"worker_ready"' in line]
        return int(ready[-1]) if ready else 0

    def kill(self, what: str) -> None:
        """Kills it, and sees to it that it is there again."""
        if what == "worker":
            count = sum('"worker_ready"' in line for line in list(self.gateway.program.lines))
            if not count:
                return
            os.kill(self.worker_pid(), signal.SIGKILL)
            self.gateway.program.wait_for('"worker_ready"', count + 1)
        elif what == "gateway":
            self.gateway.program.stop(signal.SIGKILL)
            self.gateway = start_gateway(self.settings)
        else:
            os.kill(self.host.process.pid, signal.SIGKILL)
            self.host.process.wait()
            self.host = self.start_host()
        self.kills[what] += 1

    def close(self) -> None:
        self.gateway.program.stop()
        self.host.stop()

    def ask(self, path: str, headers: Headers, body: Any = None, kind: str = "application/json") -> tuple[int, bytes]:
        """(0, b"") where nobody answers."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.gateway.url(path), data, {"Content-Type": kind, **headers})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def rows(self, sql: str) -> list[sqlite3.Row]:
        database = sqlite3.connect(f"file:{self.settings.state_dir / 'outboard.db'}?mode=ro", uri=True, timeout=30)
        database.row_factory = sqlite3.Row
        try:
            return database.execute(sql).fetchall()
        finally:
            database.close()


def submit(site: Site, ann: Headers, numbers: list[int], known: dict[str, int]) -> None:
    """Each number as a task; what is not answered is asked again, and may then be there twice."""
    for number in numbers:
        while True:
            body = {"inputs": {"x": [[number, 1]]}}
            status, content = site.ask("/v1/models/triple/predictions", {**ann, "Prefer": "respond-async"}, body)
            if status == 202:
                known[json.loads(content)["id"]] = number
                break
            assert status in (0, 429, 500, 502, 503, 504), (status, content)
            time.sleep(0.05)


def send_batch(site: Site, ann: Headers, count: int) -> str:
    """A csv file of so many rows, with a wrong one in a hundred."""
    lines = "x\n" + "".join(f"{'wrong' if number % 100 == 99 else number}\n" for number in range(count))
    boundary = "bound"
    form = f'--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\ncrawl\r\n--{boundary}\r\n'
    form += f'Content-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n{lines}\r\n--{boundary}--\r\n'
    status, content = site.ask("/v1/batches", ann, form.encode(), f"multipart/form-data; boundary={boundary}")
    assert status == 202, content
    return str(json.loads(content)["id"])


def test_every_task_ends_once_whatever_is_killed(tmp_path: Path, long: bool, figure: Record) -> None:
    count, rows, rounds, seed = (2000, 10_000, 8, 5) if long else (120, 500, 1, 5)
    chance = random.Random(seed)
    receiver = Receiver(random.Random(seed))
    with taking_posts(receiver.take) as address, closing(Site(tmp_path)) as site:
        assert site.ask("/v1/users", {}, {"username": "ann", "password": PASSWORD})[0] == 201
        ann = {
            "Authorization": "Bearer "
            + json.loads(site.ask("/v1/tokens", {}, {"username": "ann", "password": PASSWORD})[1])["access_token"]
        }
        assert site.ask("/v1/webhooks", ann, {"url": f"http://{address}/"})[0] == 201
        batch_id, known = send_batch(site, ann, rows), dict[str, int]()
        failures: list[BaseException] = []

        def run(part: list[int]) -> None:
            try:
                submit(site, ann, part, known)
            except BaseException as error:  # noqa: BLE001 - told in the main thread
                failures.append(error)

        submitters = [threading.Thread(target=run, args=(list(range(count))[place::3],)) for place in range(3)]
        for thread in submitters:
            thread.start()
        victims = ["worker", "host", "worker", "gateway"] * rounds
        chance.shuffle(victims)
        for victim in victims:
            time.sleep(chance.uniform(0.1, 1.0))  # the moment is the seed's
            site.kill(victim)
        for thread in submitters:
            thread.join(300)
        assert not failures and len(known) == count
        check(site, ann, known, batch_id, rows, receiver)
        figure(f"tasks under kill -9: {count} tasks, {rows} rows, kills {dict(site.kills)}: each task ended once")


def check(site: Site, ann: Headers, known: dict[str, int], batch_id: str, rows: int, receiver: Receiver) -> None:
    def unfinished() -> int:
        return int(site.rows(f"select count(*) as n from tasks where state not in {TERMINAL}")[0]["n"])

    eventually(lambda: unfinished() == 0, "all of them end", 300)
    states = {row["id"]: (row["state"], row["error_message"]) for row in site.rows("select id, state, error_message from tasks")}
    assert {states[task_id][0] for task_id in (*known, batch_id)} == {"succeeded"}, Counter(states.values())
    ends = Counter(row["task_id"] for row in site.rows(f"select task_id from task_events where state in {TERMINAL}"))
    assert set(ends) == set(states) and set(ends.values()) == {1}, "exactly one end each"
    for task_id, number in list(known.items())[:: max(1, len(known) // 100)]:
        status, content = site.ask(f"/v1/tasks/{task_id}/result", ann)
        assert status == 200 and json.loads(content)["outputs"] == {"y": [[3.0 * number, 3.0]]}
    results = site.rows("select task_id, body from task_bodies where part = 'result'")
    assert len(results) == len({row["task_id"] for row in results}) == len(states) - 1
    wanted = {task_id: [3.0 * number, 3.0] for task_id, number in known.items()}
    assert {row["task_id"]: json.loads(row["body"])["outputs"]["y"][0] for row in results if row["task_id"] in wanted} == wanted
    status, content = site.ask(f"/v1/batches/{batch_id}/result", ann)
    lines = list(csv.reader(io.StringIO(content.decode())))[1:]
    assert [int(line[0]) for line in lines] == list(range(1, rows + 1)), "each row once, in its order"
    for number, line in enumerate(lines):
        assert bool(line[1]) is (number % 100 == 99) and (line[1] or float(line[2]) == number)
    pending = "select count(*) as n from deliveries where state = 'pending'"
    eventually(lambda: _again(site, ann) or site.rows(pending)[0]["n"] == 0, "every notice is delivered or listed as failed", 120, 0.2)
    deliveries = site.rows("select id, task_id, state from deliveries")
    assert Counter(row["task_id"] for row in deliveries) == Counter(states.keys()), "one notice for each end"
    assert {row["id"] for row in deliveries if row["state"] == "delivered"} <= set(receiver.got)


def _again(site: Site, ann: Headers) -> None:
    """Notices that were refused after a worker had died with them wait for minutes: they are sent again by hand, as their owner would."""
    for row in site.rows(f"select id, webhook_id from deliveries where state = 'pending' and next_at > {time.time() + 30}"):
        site.ask(f"/v1/webhooks/{row['webhook_id']}/deliveries/{row['id']}/retry", ann, b"")
