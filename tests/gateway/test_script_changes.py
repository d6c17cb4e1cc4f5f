"""Scripts of a deployment come, change and go under its calls: none fails, and each is of one script as a whole."""

# ruff: noqa: F811 - fixtures are arguments
import io
import json
import threading
from typing import Any

from gateway.worker import work
from gateway.worker.process import Worker
from tests.eventually import eventually
from tests.gateway.deployed_host import deployed, users_host  # noqa: F401
from tests.gateway.deployed_stage import Person, Stage, plain, predict  # noqa: F401
from tests.needs import boxed

pytestmark = boxed
BOTH = """
def preprocess(inputs):
    return {"x": inputs["x"] * 10}

def postprocess(outputs):
    return {"both": outputs["y"] + 1}
"""
UNHURRIED = """
import time

def preprocess(inputs):
    time.sleep(0.05)
    return {"x": inputs["x"] * 10}

def postprocess(outputs):
    return {"both": outputs["y"] + 1}
"""
"""Its batch would take 15 s and more: the next script comes long before its end."""
AFTER = """
def postprocess(outputs):
    return {"after": outputs["y"] + 2}
"""
BEFORE = """
def preprocess(inputs):
    return {"x": inputs["x"] * 100}
"""


def put(stage: Stage, name: str, source: str) -> None:
    answer = stage.ann("POST", f"/v1/scripts?name={name}", headers={"Content-Type": "text/x-python"}, data=source)
    assert answer.status_code == 201, answer.get_data(as_text=True)


def test_no_call_fails_and_none_is_of_two_scripts(plain: Stage) -> None:
    plain.deploy()
    for name, source in (("both", BOTH), ("after", AFTER), ("before", BEFORE)):
        put(plain, name, source)
    stop, answers = threading.Event(), list[Any]()

    def ask() -> None:
        http = plain.ann.http.application.test_client()
        while not stop.is_set():
            answers.append(predict(Person(http, plain.ann.headers, plain.ann.principal)))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for name in ("both", "after", None, "before"):
            script = None if name is None else {"name": name}
            assert plain.ann("PATCH", "/v1/deployments/d", {"script": script}).status_code == 200
            plain.until("d")
            done = len(answers)
            eventually(lambda done=done: len(answers) >= done + 4, "each of them asks once more", 30)  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    wrong = [answer for answer in answers if not isinstance(answer, dict)]
    assert not wrong, (len(wrong), len(answers), wrong[:3])
    seen = {str(answer["outputs"]) for answer in answers}
    alone, both, after, before = ({"y": [[4.0, 0.0]]}, {"both": [[41.0, 1.0]]}, {"after": [[6.0, 2.0]]}, {"y": [[400.0, 0.0]]})
    assert seen == set(map(str, (alone, both, after, before)))
    record = plain.over.storage.deployments.of_owner(plain.ann.principal.user_id, "d")
    assert record is not None and record.serving_script_id == record.script_version_id
    eventually(lambda: plain.over.ready("ann.d.script") == {str(record.script_version_id): "READY"}, "nothing of those before is left", 20)


def test_a_batch_goes_on_with_the_script_that_serves(plain: Stage) -> None:
    put(plain, "both", UNHURRIED)
    put(plain, "after", AFTER)
    plain.deploy(script={"name": "both"})
    services = plain.over.services
    worker = Worker(services, 2, work.parts)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        rows = b"".join(b'{"x": [%d, 0]}\n' % number for number in range(300))
        form = {"deployment": "d", "file": (io.BytesIO(rows), "rows.jsonl")}
        made = plain.ann.http.post("/v1/batches", data=form, headers=plain.ann.headers)
        assert made.status_code == 202, made.get_data(as_text=True)
        path = f"/v1/batches/{made.get_json()['id']}"
        eventually(lambda: plain.ann("GET", path).get_json()["rows_done"] > 0, "it is under way", 30)
        assert plain.ann("PATCH", "/v1/deployments/d", {"script": {"name": "after"}}).status_code == 200
        eventually(lambda: plain.ann("GET", path).get_json()["state"] == "succeeded", "it ends", 60)
        lines = [json.loads(line) for line in plain.ann("GET", f"{path}/result").get_data(as_text=True).splitlines()]
    finally:
        worker.stop()
        thread.join(30)
    assert len(lines) == 300 and not [line for line in lines if "error" in line]
    kinds = [next(iter(line["outputs"])) for line in lines]
    assert set(kinds) == {"both", "after"} and (kinds[0], kinds[-1]) == ("both", "after")
