"""The web pages where very much is there: each page's time, then twenty sessions at once on a busy server, and how soon a change is seen.

`python -m benchmarks.pages`. Times are a caller's on this machine, through nginx and uWSGI; caller and server share its cores.
"""

import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import requests

from benchmarks import figures
from gateway.settings import Settings
from gateway.storage import Storage
from tests.e2e.pages.conftest import Site, running, seed
from tests.e2e.pages.examples import ADMINISTRATORS, ANYONES, addresses, rules
from tests.e2e.test_deployments import PASSWORD
from tests.pages.many import DEPLOYMENTS, MODELS, TASKS, fill

ROUNDS = 40
SESSIONS, LASTS_S, STAYS_S = 20, 40.0, 6.0
CALLS_A_SECOND = 100
_PIECE = re.compile(r'hx-get="([^"]+)"[^>]*hx-trigger="[^"]*every (\d+)(m?s)')
LOOKS_EVERY_S = 1.5
"""As the pages do."""


def percentile(values: list[float], share: int) -> float:
    return figures.percentile(sorted(values), share / 100)


def signed_in(home: str, name: str) -> requests.Session:
    """A browser without scripts."""
    session = requests.Session()
    found = re.search(r'name="form-token" content="([^"]+)"', session.get(f"{home}/ui/sign-in").text)
    assert found
    fields = {"form_token": found[1], "login": name, "password": PASSWORD}
    assert session.post(f"{home}/ui/sign-in", data=fields, allow_redirects=False).status_code == 303
    return session


def timed(session: requests.Session, url: str) -> tuple[float, str]:
    """Milliseconds, and what came."""
    began = time.perf_counter()
    answer = session.get(url, allow_redirects=False, headers={"HX-Request": "true"} if url.endswith("/now") else {})
    took = 1000 * (time.perf_counter() - began)
    assert answer.status_code < 400, (url, answer.status_code)
    return took, answer.text


def each_page(site: Site, wanted: dict[str, str]) -> None:
    mine, chief = signed_in(site.home, site.owner.name), signed_in(site.home, "admin")
    everything: list[float] = []
    by_page: dict[str, list[float]] = {}
    for rule, path in wanted.items():
        session = chief if rule in ADMINISTRATORS else mine
        timed(session, site.home + path)
        by_page[path] = [timed(session, site.home + path)[0] for _ in range(ROUNDS)]
        everything += by_page[path]
    print(
        f"{len(wanted)} pages, one after the other, {ROUNDS} times each: p50 {percentile(everything, 50):.1f} ms, p95 {percentile(everything, 95):.1f} ms"
    )
    for path, took in sorted(by_page.items(), key=lambda pair: -percentile(pair[1], 95))[:5]:
        print(f"  {path}: p50 {percentile(took, 50):.1f} ms, p95 {percentile(took, 95):.1f} ms")


class Crowd:
    """SESSIONS people who look at pages, stay a while, and whose pages ask for what changes as their scripts do."""

    def __init__(self, site: Site, paths: list[str]) -> None:
        self.site, self.paths = site, paths
        self.pages: list[float] = []
        self.pieces: list[float] = []
        self.calls = self.wrong = 0
        self.over = time.monotonic() + LASTS_S
        self.signed = signed_in(site.home, site.owner.name)

    def browser(self) -> requests.Session:
        """Signed in by the one sign-in of all: more of them from one address would be refused."""
        session = requests.Session()
        session.cookies.update(self.signed.cookies)
        return session

    def look(self, number: int) -> None:
        session, choose = self.browser(), random.Random(number)
        time.sleep(choose.random() * STAYS_S)
        while time.monotonic() < self.over:
            took, text = timed(session, self.site.home + choose.choice(self.paths))
            self.pages.append(took)
            pieces = [
                (where.replace("&amp;", "&"), float(every) / (1000 if unit == "ms" else 1)) for where, every, unit in _PIECE.findall(text)
            ]
            leaves = time.monotonic() + STAYS_S
            due = [[time.monotonic() + every, every, where] for where, every in pieces]
            while (now := time.monotonic()) < min(leaves, self.over):
                for each in due:
                    if now >= float(each[0]):
                        self.pieces.append(timed(session, self.site.home + str(each[2]))[0])
                        each[0] = float(each[0]) + float(each[1])
                time.sleep(0.02)

    def call(self, number: int) -> None:
        """What makes the server busy: predictions at a steady rate."""
        session = requests.Session()
        session.headers.update(self.site.owner.headers)
        step = 4 / CALLS_A_SECOND
        due = time.monotonic() + number * step / 4
        while due < self.over:
            time.sleep(max(0.0, due - time.monotonic()))
            answer = session.post(f"{self.site.home}/v1/deployments/d/predictions", json={"inputs": {"x": [[1, 0]]}})
            self.calls, self.wrong = self.calls + 1, self.wrong + (answer.status_code != 200)
            due += step


def together(jobs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def many_sessions(site: Site, paths: list[str]) -> None:
    crowd = Crowd(site, paths)
    jobs: list[Callable[[], None]] = [lambda number=number: crowd.look(number) for number in range(SESSIONS)]  # type: ignore[misc]
    jobs += [lambda number=number: crowd.call(number) for number in range(4)]  # type: ignore[misc]
    seen: list[float] = []
    jobs.append(lambda: changes(crowd, seen))
    together(jobs)
    print(
        f"{SESSIONS} sessions at once for {LASTS_S:.0f} s beside {crowd.calls / LASTS_S:.0f} predictions/s ({crowd.wrong} of them wrong):"
    )
    print(f"  {len(crowd.pages)} pages: p50 {percentile(crowd.pages, 50):.0f} ms, p95 {percentile(crowd.pages, 95):.0f} ms")
    print(
        f"  {len(crowd.pieces)} pieces that are asked for again: p50 {percentile(crowd.pieces, 50):.0f} ms, p95 {percentile(crowd.pieces, 95):.0f} ms"
    )
    print(f"  a deployment's change is seen after {max(seen):.1f} s at most ({len(seen)} changes)")


def changes(crowd: Crowd, seen: list[float]) -> None:
    """How long after a change a page shows it, that has looked just before."""
    session, wanted, site = crowd.browser(), "running", crowd.site
    while time.monotonic() < crowd.over - 8:
        wanted = "paused" if wanted == "running" else "running"
        timed(session, f"{site.home}/ui/deployments/d-1/now")
        began = time.monotonic()
        site.owner("PATCH", "/v1/deployments/d-1", {"desired_state": wanted})
        shown = ("pausing", "paused") if wanted == "paused" else ("starting", "running")
        while True:
            time.sleep(LOOKS_EVERY_S)
            if any(f'data-state="{state}"' in timed(session, f"{site.home}/ui/deployments/d-1/now")[1] for state in shown):
                break
        seen.append(time.monotonic() - began)


def main() -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = rules(Settings(data_dir=folder / "rules"))
        with running(folder) as site:
            seed(site, folder)
            storage = Storage(folder / "data" / "gateway")
            fill(storage, site.owner.name)
            storage.close()
            print(f"{MODELS} models, {DEPLOYMENTS} deployments, {TASKS} tasks of one owner")
            wanted = {rule: path for rule, path in addresses(site, found).items() if rule != "/ui/<path:anything>"}
            each_page(site, wanted)
            many_sessions(site, [path for rule, path in wanted.items() if rule not in (*ADMINISTRATORS, *ANYONES)])


if __name__ == "__main__":
    main()
