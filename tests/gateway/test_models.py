"""Models of users over `/v1`: taken in, found, changed, deleted, restored, tried; with a real model host."""

# ruff: noqa: F811 - fixtures are arguments
import io
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from gateway.blueprints.rest import write_cursor
from gateway.storage.audit import Doer
from idl.codes import ServingError
from tests.gateway.deployed_host import Deployed, deployed, own_host, users_host  # noqa: F401
from tests.gateway.owners import Place, at, fivefold, place, principal, triple  # noqa: F401

HALF = "\ud800"
"""Of a surrogate pair: JSON can spell it."""


def test_a_model_is_taken_in_and_read(place: Place, triple: Path) -> None:
    status, made = place.ann.upload(triple, name="m", type="numbers", description="Three times.", tags="a, b", card="# M")
    assert status == 201, made
    assert made["name"] == "m" and made["owner"] == "ann" and made["visibility"] == "private" and made["version"] == 1
    assert made["format"] == "onnx" and made["engine"] == "onnxruntime" and made["opset"] == 17 and made["parameter_count"] == 1
    assert made["inputs"] == [{"name": "x", "type": "FP32", "shape": ["batch", 2], "range": None, "optype": "", "values": []}]
    assert made["size"] == triple.stat().st_size and made["file_name"] == "triple.onnx" and len(made["sha256"]) == 64
    assert made["tags"] == ["a", "b"] and made["card"] == "# M" and made["type"] == "numbers"
    assert {entry["batch"] for entry in made["measured"]["latency"]} == {1, 8}
    assert all(0 < entry["p50_ms"] <= entry["p99_ms"] for entry in made["measured"]["latency"])
    assert made["measured"]["memory_bytes"] > 0 and made["measured"]["proposed"]["memory"] >= 64 << 20
    assert place.ann("GET", "/v1/models/m") == (200, made)
    assert place.ann("GET", "/v1/models/ann.m") == (200, made)
    assert place.kept() == [made["sha256"]]
    for person in (place.bob, place.nobody):
        status, refused = person("GET", "/v1/models/ann.m")
        assert status in (401, 404) and "ann" not in str(refused).replace("ann.m", "")
    assert place.bob("GET", "/v1/models/m")[0] == 404


def test_what_is_refused_leaves_nothing(place: Place, triple: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(triple.read_bytes()[:-20])
    pickle = tmp_path / "model.pkl"
    pickle.write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtins\x94.")
    for path, word in ((broken, "damaged"), (pickle, "outboard models convert")):
        status, refused = place.ann.upload(path, name="m")
        assert status == 422 and refused["code"] == "invalid_model" and word in refused["detail"], refused
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    assert place.ann.upload(empty, name="m")[0] == 422
    for wrong in (
        {"name": "a b"},
        {"name": "m", "visibility": "secret"},
        {"name": "m", "colour": "blue"},
        {"type": "x"},
        {"name": "m", "visibility": "team"},
    ):
        assert place.ann.upload(triple, **wrong)[0] == 400, wrong
    assert place.ann("POST", "/v1/models", data={"name": "m"})[0] == 415, "no multipart"
    assert place.ann("POST", "/v1/models", data={"name": "m", "other": (io.BytesIO(b"x"), "x")})[0] == 400
    assert place.ann("POST", "/v1/models", data={"name": "m", "model": "no file"})[0] == 415
    assert place.nobody.upload(triple, name="m")[0] == 401
    assert place.ann("POST", "/v1/models", data=b"--b\r\n", headers={"Content-Type": "multipart/form-data; boundary=b"})[0] == 400
    assert place.kept() == [] and place.ann("GET", "/v1/models?owner=ann")[1]["items"] == []


def test_names_are_unique_per_user(place: Place, triple: Path) -> None:
    assert place.ann.upload(triple, name="m")[0] == 201
    assert place.ann.upload(triple, name="M")[1]["code"] == "already_exists"
    assert place.bob.upload(triple, name="m")[0] == 201
    statuses: list[int] = []
    # the same client twice at once is no Flask test client's business
    clients = [place.nobody.client.application.test_client() for _ in range(4)]

    def create(client: Any) -> None:
        data = {"name": "n", "model": (io.BytesIO(triple.read_bytes()), "m.onnx")}
        statuses.append(client.post("/v1/models", data=data, headers=place.ann.headers).status_code)

    threads = [threading.Thread(target=create, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # the host tries two models at once, and refuses more for the moment
    assert statuses.count(201) == 1 and set(statuses) <= {201, 409, 429}


def test_versions(place: Place, triple: Path, fivefold: Path) -> None:
    place.ann.upload(triple, name="m")
    data = {"model": (io.BytesIO(fivefold.read_bytes()), "five.onnx")}
    status, second = place.ann("POST", "/v1/models/m/versions", data=data)
    assert status == 201 and second["version"] == 2 and second["file_name"] == "five.onnx"
    assert place.ann("GET", "/v1/models/m")[1]["version"] == 2
    listed = place.ann("GET", "/v1/models/m/versions?limit=1")[1]
    assert [entry["version"] for entry in listed["items"]] == [2]
    rest = place.ann("GET", f"/v1/models/m/versions?limit=1&cursor={listed['next']}")[1]
    assert [entry["version"] for entry in rest["items"]] == [1] and rest["next"] is None
    assert place.ann("GET", "/v1/models/m/versions/1")[1]["file_name"] == "triple.onnx"
    for missing in ("3", "x", "-1", "1.0", "99999999999"):
        assert place.ann("GET", f"/v1/models/m/versions/{missing}")[1]["code"] == "version_not_found"
    assert place.ann("DELETE", "/v1/models/m/versions/2")[0] == 204
    assert place.ann("GET", "/v1/models/m")[1]["version"] == 1
    assert place.ann("DELETE", "/v1/models/m/versions/1")[1]["code"] == "conflict"
    data = {"model": (io.BytesIO(fivefold.read_bytes()), "five.onnx")}
    assert place.ann("POST", "/v1/models/m/versions", data=data)[1]["version"] == 3, "a number is used once"


def test_what_is_said_of_a_model_changes(place: Place, triple: Path) -> None:
    place.ann.upload(triple, name="m")
    answer = place.ann.client.get("/v1/models/m", headers=place.ann.headers)
    tag = answer.headers["ETag"]
    changes = {"description": "New.", "tags": ["x"], "card": "# Card\n", "visibility": "public", "name": "new"}
    status, changed = place.ann("PATCH", "/v1/models/m", json=changes, headers={"If-Match": tag})
    assert status == 200 and changed["name"] == "new" and changed["tags"] == ["x"] and changed["visibility"] == "public"
    assert place.ann("PATCH", "/v1/models/new", json={"description": "x"}, headers={"If-Match": tag})[0] == 412
    assert place.ann("GET", "/v1/models/m")[0] == 404
    assert place.bob("GET", "/v1/models/ann.new")[0] == 200 and place.nobody("GET", "/v1/models/ann.new")[0] == 200
    assert place.bob("PATCH", "/v1/models/ann.new", json={"description": "x"})[1]["code"] == "forbidden"
    assert place.bob("DELETE", "/v1/models/ann.new")[1]["code"] == "forbidden"
    assert place.ann("PATCH", "/v1/models/new", json={"visibility": "team"})[0] == 400
    assert place.ann("PATCH", "/v1/models/new", json={"team": "nobody's"})[0] == 400
    place.ann.upload(triple, name="other")
    assert place.ann("PATCH", "/v1/models/other", json={"name": "NEW"})[1]["code"] == "already_exists"
    assert place.ann("PATCH", "/v1/models/new", json={"name": "NEW"})[0] == 200, "its own name in another case"


def test_a_team_shares_a_model(place: Place, triple: Path) -> None:
    now = place.services.now()
    team = place.services.storage.teams.create("crew", principal(place.services, "ann").user_id, now)
    assert place.ann.upload(triple, name="m", visibility="team", team="crew")[1]["team"] == "crew"
    assert place.bob("GET", "/v1/models/ann.m")[0] == 404
    with place.services.storage.database.write() as db:
        row = [team.id, principal(place.services, "bob").user_id, "2026"]
        db.execute("insert into team_members (team_id, user_id, role, added_at) values (?, ?, 'editor', ?)", row)
    assert place.bob("GET", "/v1/models/ann.m")[0] == 200
    assert [entry["name"] for entry in place.bob("GET", "/v1/models?owner=ann")[1]["items"]] == ["m"]
    assert place.bob("PATCH", "/v1/models/ann.m", json={"description": "Bob's words."})[0] == 200
    assert place.bob("PATCH", "/v1/models/ann.m", json={"visibility": "public"})[0] == 403
    assert place.bob("DELETE", "/v1/models/ann.m")[0] == 403
    assert place.ann("PATCH", "/v1/models/m", json={"visibility": "private"})[1]["team"] is None
    assert place.bob("GET", "/v1/models/ann.m")[0] == 404


def test_lists_and_searches(place: Place, triple: Path) -> None:
    for number in range(3):
        place.ann.upload(triple, name=f"a{number}", tags="even" if number % 2 == 0 else "odd", type="numbers")
    place.bob.upload(triple, name="b", visibility="public", description="100% pure_maths")

    def names(query: str) -> list[str]:
        found: list[str] = []
        cursor = ""
        while True:
            page = place.ann("GET", f"/v1/models?limit=2&{query}{cursor}")[1]
            found += [entry["name"] for entry in page["items"]]
            if page["next"] is None:
                return found
            cursor = f"&cursor={page['next']}"

    assert names("") == ["triple", "a0", "a1", "a2", "b"], "the operators' first, then users', by name"
    assert names("owner=ann") == ["a0", "a1", "a2"] and names("tag=EVEN") == ["a0", "a2"] and names("type=numbers") == ["a0", "a1", "a2"]
    assert names("q=100%25") == ["b"] and names("q=pure_m") == ["b"] and names("q=pure%25m") == [] and names("q=rip") == ["triple"]
    assert names("visibility=public") == ["triple", "b"] and names("visibility=private") == ["a0", "a1", "a2"]
    assert [entry["name"] for entry in place.nobody("GET", "/v1/models")[1]["items"]] == ["triple", "b"]
    for wrong in (
        "limit=0",
        "limit=x",
        "cursor=%ff",
        "cursor=WzFd",
        "colour=blue",
        "visibility=x",
        "cursor=WyJhIiwxMjM0NTY3ODkwMTIzNDU2Nzg5MDEyXQ",
        f"cursor={write_cursor([HALF, 1])}",
        f"cursor={write_cursor([HALF])}",
        f"cursor={write_cursor(['a', 1, 2])}",
    ):
        assert place.ann("GET", f"/v1/models?{wrong}")[0] == 400, wrong


def test_an_operators_model_is_read(place: Place) -> None:
    status, found = place.nobody("GET", "/v1/models/triple")
    assert status == 200 and found["owner"] is None and found["version"] == 1 and found["inputs"][0]["shape"] == [-1, 2]
    assert place.ann("PATCH", "/v1/models/triple", json={"description": "mine"})[0] == 404
    assert place.ann("GET", "/v1/models/nothing")[0] == 404 and place.nobody("GET", "/v1/models/nothing")[0] == 401


def test_a_deleted_version_comes_back(place: Place, triple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = place.ann.upload(triple, name="m")[1]
    with place.services.storage.database.write() as db:  # another version of the same file: it need not be tried again
        columns = [row["name"] for row in db.execute("pragma table_info(model_versions)").fetchall() if row["name"] not in ("id", "number")]
        names = ", ".join(columns)
        db.execute(f"insert into model_versions (number, {names}) select 2, {names} from model_versions")
    path = "/v1/models/m/versions/2"
    assert place.ann("POST", f"{path}/restore")[1]["code"] == "version_not_found", "it is there"
    assert place.ann("DELETE", path)[0] == 204 and place.ann("GET", path)[0] == 404
    assert place.bob("POST", "/v1/models/ann.m/versions/2/restore")[0] == 404
    assert place.ann("POST", f"{path}/restore")[1]["sha256"] == first["sha256"]
    assert place.ann("GET", "/v1/models/m")[1]["version"] == 2 and place.ann("GET", path)[0] == 200
    assert place.ann("DELETE", path)[0] == 204
    library, later = place.services.library, place.services.now() + timedelta(days=31)
    monkeypatch.setattr(library, "_now", lambda: later)
    library.tidy()
    assert place.ann("POST", f"{path}/restore")[0] == 404 and place.ann("GET", "/v1/models/m")[1]["version"] == 1


def test_deleted_restored_and_purged(place: Place, triple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = place.ann.upload(triple, name="m", tags="a")[1]["sha256"]
    assert place.ann("DELETE", "/v1/models/m", headers={"If-Match": '"9"'})[0] == 412
    assert place.ann("DELETE", "/v1/models/m")[0] == 204 and place.ann("DELETE", "/v1/models/m")[0] == 404
    assert place.ann("GET", "/v1/models/m")[0] == 404 and place.ann("GET", "/v1/models?owner=ann")[1]["items"] == []
    assert [entry["name"] for entry in place.ann("GET", "/v1/models?deleted=true")[1]["items"]] == ["m"]
    assert place.bob("GET", "/v1/models?deleted=true")[1]["items"] == []
    assert place.bob("POST", "/v1/models/ann.m/restore")[0] == 404
    assert place.ann.upload(triple, name="m")[0] == 201
    assert place.ann("POST", "/v1/models/m/restore")[1]["code"] == "already_exists"
    assert place.ann("DELETE", "/v1/models/m")[0] == 204
    assert place.ann("POST", "/v1/models/m/restore")[1]["deleted_at"] is None, "the last one"
    assert place.ann("PATCH", "/v1/models/m", json={"name": "second"})[0] == 200
    assert place.ann("POST", "/v1/models/m/restore")[1]["tags"] == ["a"]
    for name in ("m", "second"):
        assert place.ann("DELETE", f"/v1/models/{name}")[0] == 204
    library = place.services.library
    assert library.tidy()["models"] == 0
    later = place.services.now() + timedelta(days=31)
    monkeypatch.setattr(library, "_now", lambda: later)
    assert library.tidy(dry_run=True)["models"] == 2 and place.kept() == [sha256]
    assert library.tidy() == {"models": 2, "files": 1, "bytes": triple.stat().st_size}
    assert place.kept() == [] and place.ann("POST", "/v1/models/m/restore")[0] == 404


def test_a_model_in_use_is_neither_deleted_nor_purged(place: Place, triple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.ann.upload(triple, name="m")
    store, now, ann = place.services.storage, place.services.now(), principal(place.services, "ann")
    model = store.models.of_owner(ann.user_id, "m")
    assert model is not None
    version = store.models.version(model.id, 1)
    assert version is not None
    values = {
        "owner_id": ann.user_id,
        "name": "d",
        "model_id": model.id,
        "version_id": version.id,
        "desired_state": "running",
        "state": "running",
    }
    made = store.deployments.create(values, Doer(ann.user_id, "ann"), now)
    status, refused = place.ann("DELETE", "/v1/models/m")
    assert status == 409 and "ann.d" in refused["detail"]
    with store.database.write() as db:
        db.execute("update deployments set state = 'deleting', deleted_at = '2026' where id = ?", [made.id])
    assert place.ann("DELETE", "/v1/models/m")[0] == 204
    library, later = place.services.library, now + timedelta(days=31)
    monkeypatch.setattr(library, "_now", lambda: later)
    assert library.tidy()["models"] == 0, "the host still has it"
    with store.database.write() as db:
        db.execute("update deployments set state = 'deleted' where id = ?", [made.id])
    assert library.tidy()["models"] == 1 and place.kept() == []


def test_a_quota_is_kept(place: Place, triple: Path) -> None:
    place.services.storage.quotas.defaults = {"models": 1, "bytes": 10_000}
    assert place.ann.upload(triple, name="m")[0] == 201
    status, refused = place.ann.upload(triple, name="n")
    assert status == 507 and "models" in refused["detail"]
    place.services.storage.quotas.defaults = {"bytes": triple.stat().st_size + 1}
    assert place.ann.upload(triple, name="n")[0] == 507


def test_the_same_creation_again_gives_the_same_answer(place: Place, triple: Path) -> None:
    headers = {**place.ann.headers, "Idempotency-Key": "once"}
    _, body = encode_multipart({"name": "m", "model": FileStorage(io.BytesIO(triple.read_bytes()), "m.onnx")}, boundary="b")
    kind = "multipart/form-data; boundary=b"
    answers = [place.ann.client.post("/v1/models", data=body, content_type=kind, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201] and answers[0].get_json() == answers[1].get_json()


def test_several_files_are_one_model(place: Place, triple: Path) -> None:
    data = {
        "name": "m",
        "model": (io.BytesIO(triple.read_bytes()), "any name.onnx"),
        "files": [(io.BytesIO(b'[labels]\ny = "labels.txt"\ntop_k = 1\n'), "model.toml"), (io.BytesIO(b"left\nright\n"), "labels.txt")],
    }
    status, made = place.ann("POST", "/v1/models", data=data)
    assert status == 201, made
    status, answer = place.ann("POST", "/v1/models/m/test", json={"inputs": {"x": [[1, 2]]}})
    assert status == 200 and answer["labels"] == [[{"label": "right", "index": 1, "score": 6.0}]], answer
    for name in ("../x", "/etc/passwd", "a/b/c/d/e"):
        data["files"] = (io.BytesIO(b"x"), name)
        data["model"] = (io.BytesIO(triple.read_bytes()), "m.onnx")
        assert place.ann("POST", "/v1/models", data=data | {"name": "n"})[0] == 400, name


def test_a_model_is_tried_and_goes_when_idle(place: Place, triple: Path, fivefold: Path) -> None:
    place.ann.upload(triple, name="m")
    ask = {"inputs": {"x": [[1, 2]]}}
    status, answer = place.ann("POST", "/v1/models/m/test", json=ask)
    assert status == 200 and answer["outputs"] == {"y": [[3, 6]]} and answer["model"] == "m" and answer["version"] == "1"
    assert place.deployed.ready("ann.m.test") == {"1": "READY"}
    place.ann("POST", "/v1/models/m/versions", data={"model": (io.BytesIO(fivefold.read_bytes()), "five.onnx")})
    assert place.ann("POST", "/v1/models/m/test", json=ask)[1]["outputs"] == {"y": [[5, 10]]}
    assert place.ann("POST", "/v1/models/m/test?version=1", json=ask)[1]["outputs"] == {"y": [[3, 6]]}
    assert place.ann("POST", "/v1/models/m/test?version=9", json=ask)[1]["code"] == "version_not_found"
    assert place.ann("POST", "/v1/models/m/test", json={"inputs": {"x": [[1]]}})[1]["code"] == "invalid_input"
    assert place.bob("POST", "/v1/models/ann.m/test", json=ask)[0] == 404
    place.ann("PATCH", "/v1/models/m", json={"visibility": "public"})
    assert place.bob("POST", "/v1/models/ann.m/test", json=ask)[0] == 403
    tests = place.services.model_tests
    assert not tests.sweep() and place.deployed.ready("ann.m.test")
    with place.services.storage.database.write() as db:
        db.execute("update test_loads set used_at = used_at - 1000")
    assert tests.sweep() and not place.deployed.ready("ann.m.test")
    # somebody has unloaded it, and nobody has told the gateway
    assert place.ann("POST", "/v1/models/m/test", json=ask)[0] == 200
    place.deployed.client.remove_model("ann.m.test")
    assert place.ann("POST", "/v1/models/m/test", json=ask)[1]["outputs"] == {"y": [[5, 10]]}


def test_many_try_one_model_at_once(place: Place, triple: Path) -> None:
    place.ann.upload(triple, name="m")
    caller, answers = principal(place.services, "ann"), []

    def ask(on_host: str, version: str) -> float:
        return place.deployed.asked(on_host, 2.0, version)

    def run() -> None:
        answers.append(place.services.model_tests.run(caller, "m", None, time.monotonic() + 20, ask))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [6.0] * 8


def test_tried_models_share_a_budget(place: Place, triple: Path) -> None:
    for name in ("a", "b", "c"):
        place.ann.upload(triple, name=name)
    one = place.ann("GET", "/v1/models/a")[1]["measured"]["proposed"]["memory"]
    tests, caller = place.services.model_tests, principal(place.services, "ann")
    object.__setattr__(tests._settings, "test_memory_bytes", 2 * one)

    def ask(name: str) -> Any:
        return tests.run(caller, name, None, time.monotonic() + 20, lambda on_host, version: place.deployed.asked(on_host, 2.0, version))

    loaded = lambda: [load.name for load in place.services.storage.test_loads.all()]  # noqa: E731
    for name in ("a", "b", "a", "c"):
        assert ask(name) == 6.0
    assert loaded() == ["ann.a.test", "ann.c.test"], "the longest unused has gone"
    assert not place.deployed.ready("ann.b.test")
    object.__setattr__(tests._settings, "test_memory_bytes", one - 1)
    with pytest.raises(ServingError, match="deploy it"):
        ask("b")


def test_after_a_kill_of_either_side_it_is_tried_again(own_host: Deployed, triple: Path) -> None:
    place = at(own_host)
    place.ann.upload(triple, name="m")
    ask = {"inputs": {"x": [[1, 2]]}}
    assert place.ann("POST", "/v1/models/m/test", json=ask)[0] == 200
    own_host.host.stop(signal.SIGKILL)
    assert place.ann("POST", "/v1/models/m/test", json=ask)[0] == 503
    own_host.restart()
    assert place.ann("POST", "/v1/models/m/test", json=ask)[1]["outputs"] == {"y": [[3, 6]]}
    # a gateway that was killed while it loaded the model, half of whose files lie there
    own_host.client.remove_model("ann.m.test")
    own_host.client.put_file(triple, "ann.m.test", 1, "model.onnx", user=True)
    with place.services.storage.database.write() as db:
        db.execute("update test_loads set ready = 0")
    assert place.ann("POST", "/v1/models/m/test", json=ask)[1]["outputs"] == {"y": [[3, 6]]}
    # and one that was killed, and never asked again
    with place.services.storage.database.write() as db:
        db.execute("update test_loads set ready = 0, used_at = used_at - 1000")
    assert place.services.model_tests.sweep() and not own_host.ready("ann.m.test")
