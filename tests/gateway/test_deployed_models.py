"""What becomes of models that are deployed, deleted, promoted and pinned: rules that a hasty or a greedy user meets."""

# ruff: noqa: F811 - fixtures are arguments
import io
import json
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.operations import kept_bodies, prediction_bodies, script_tensors
from gateway.operations.host_side import HostSide
from gateway.storage.audit import Doer
from gateway.types import Principal, Role
from idl import archives
from idl.codes import Code, ServingError
from inference_server import load_order, version_labels, warmup_samples
from tests.eventually import eventually
from tests.gateway.deployed_host import Deployed, deployed, users_host  # noqa: F401
from tests.gateway.deployed_rows import DOER, NOW, deployment, model, user
from tests.gateway.deployed_stage import Person, Stage, plain, predict  # noqa: F401
from tests.gateway.owners import Place, fivefold, place, principal, triple  # noqa: F401
from tests.onnx_models import times

DONE = (200, {"status": "success"})


def test_a_canary_that_has_not_begun_is_asked_before_it_is_promoted(deployed: Deployed, tmp_path: Path) -> None:
    ann = user(deployed.storage, "ann")
    model_id, versions = model(deployed.storage, ann, "m", *(times(tmp_path / f"{factor}.onnx", factor) for factor in (2, 2.0001, 5)))
    made = deployment(deployed.storage, ann, "d", model_id, versions[0])
    deployed.turn()
    body = kept_bodies.encode(prediction_bodies.from_json(b'{"inputs": {"x": [[1000, 1]]}}'))
    blobs = [deployed.storage.blobs.put([content], NOW)[0] for content in (body, json.dumps({"y": [[2000, 2]]}).encode())]
    deployed.storage.golden.pin(made.id, "g", blobs[0], "application/json", blobs[1], Doer(ann.user_id, "ann"), NOW, 10)
    deployments, asked = deployed.services.deployments, list[int]()

    def check(record: Any, version: int) -> str:
        asked.append(version)
        return replay(record, version)

    replay, deployed.check = deployed.check, check
    deployed.begin_anew()
    deployments.change(ann, "d", {"canary": {"version": 3, "percent": 10}}, DOER)
    deployments.promote(ann, "d", DOER)
    deployed.turn()
    found = deployed.record(made.id)
    assert asked == [3] and (found.version, found.serving_version) == (1, 1) and "version 3 was refused" in found.notice
    deployments.change(ann, "d", {"canary": {"version": 2, "percent": 10}}, DOER)
    deployed.turn()
    deployments.promote(ann, "d", DOER)
    deployed.turn()
    assert asked == [3, 2] and deployed.record(made.id).serving_version == 2, "one that has begun is promoted at once"


def test_what_is_pinned_is_never_a_canarys_answer(plain: Stage) -> None:
    plain.deploy()
    plain.ann("PATCH", "/v1/deployments/d", {"canary": {"version": 3, "percent": 100}})
    plain.until("d")
    assert predict(plain.ann)["outputs"] == {"y": [[10, 0]]}
    pinned = plain.ann.made("/v1/deployments/d/golden?name=g", {"inputs": {"x": [[2, 0]]}})
    assert pinned["outputs"] == {"y": [[4, 0]]}


def test_a_deployment_is_never_not_modified(plain: Stage) -> None:
    """What becomes of it changes without its revision, which If-Match is for."""
    tag = plain.ann("POST", "/v1/deployments", {"name": "d", "model": "m"}).headers["ETag"]
    plain.until("d")
    again = plain.ann("GET", "/v1/deployments/d", headers={"If-None-Match": tag})
    assert (again.status_code, again.headers["ETag"], again.get_json()["state"]) == (200, tag, "running")
    assert plain.ann("PATCH", "/v1/deployments/d", {"instances": 1}, headers={"If-Match": tag}).status_code == 200
    assert plain.ann("PATCH", "/v1/deployments/d", {"instances": 1}, headers={"If-Match": tag}).status_code == 412


def test_a_form_deletes_a_model_that_is_in_use(place: Place, triple: Path, fivefold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deployments go on and it is kept for them: `/deletemodel` has no status that would say otherwise."""
    store, now = place.services.storage, place.services.now()
    assert place.ann.upload(triple, name="m")[0] == 201
    owner = principal(place.services, "ann")
    record = store.models.of_owner(owner.user_id, "m")
    version = store.models.versions(record.id)[0]  # type: ignore[union-attr]
    made = deployment(store, Principal(owner.user_id, "ann", Role.USER), "d", version.model_id, version.id)
    assert place.ann("DELETE", "/v1/models/m")[0] == 409, "the other interface can say it"
    assert place.ann.form("DELETE", "/deletemodel", modelname="m") == DONE
    assert place.ann.form("DELETE", "/deletemodel", modelname="m")[1]["status"] == "model not found"
    assert place.ann.form("GET", "/getusermodel")[1]["model"] == []
    assert place.ann.upload(fivefold, name="m")[0] == 201, "its name is free"
    place.deployed.turn()
    answer = place.ann.form("POST", "/predict", modelname="m", deployment="d", filetype="none", input='{"x": [1, 2]}')[1]
    assert answer == {"status": "success", "output": {"y": [[3, 6]]}}
    library = place.services.library
    monkeypatch.setattr(library, "_now", lambda: now + timedelta(days=31))
    assert library.tidy()["models"] == 0, "and it is not purged"
    assert place.ann.form("DELETE", "/deletedeployment", modelname="m", deployment="d") == DONE
    place.deployed.turn()
    assert store.deployments.by_id(made.id).state == "deleted" and library.tidy()["models"] == 1  # type: ignore[union-attr]


def test_all_files_of_a_model_count_and_deleted_ones_for_a_while(place: Place, triple: Path) -> None:
    quotas, owner, size = place.services.storage.quotas, principal(place.services, "ann").user_id, triple.stat().st_size
    labels = b"left\nright\n" * 1000
    files = {"files": (io.BytesIO(labels), "labels.txt")}
    assert place.ann.upload(triple, name="m", **files)[0] == 201
    assert quotas.used(owner, "bytes") == size + len(labels), "not the model's own file alone"
    assert place.ann("DELETE", "/v1/models/m")[0] == 204 and quotas.used(owner, "bytes") == 0
    quotas.defaults = {"bytes": size + len(labels)}
    for name in ("a", "b", "c"):
        status, refused = place.ann.upload(triple, name=name, files=(io.BytesIO(labels), "labels.txt"))
        assert status == (201 if name == "a" else 507), refused
        if status == 201:
            assert place.ann("DELETE", f"/v1/models/{name}")[0] == 204
        else:
            assert "was deleted and can be restored" in refused["detail"]
    assert place.bob("POST", "/v1/uploads", json={"file_name": "m", "size": size + len(labels) + 1})[0] == 507, "before a byte has come"
    uploads = [place.bob("POST", "/v1/uploads", json={"file_name": "m", "size": size + len(labels)})[0] for _ in range(3)]
    assert uploads == [201, 201, 507], "what is announced takes room"


def test_names_that_are_the_hosts_own_do_no_harm(place: Place, triple: Path) -> None:
    assert {load_order.PIN_FILE, load_order.MARK_FILE, version_labels.LABELS_FILE, warmup_samples.FOLDER} == archives.HOSTS_OWN
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(triple, "model.onnx")
        for name in archives.HOSTS_OWN:
            archive.writestr(name, b"7\n")
    packed.seek(0)
    status, made = place.ann("POST", "/v1/models", data={"name": "m", "model": (packed, "m.zip")})
    assert status == 201, made
    assert place.ann("POST", "/v1/models/m/test", json={"inputs": {"x": [[1, 2]]}})[1]["outputs"] == {"y": [[3, 6]]}


def test_one_owners_slow_deployments_leave_room(deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = [user(deployed.storage, name) for name in ("ann", "bob")]
    slow, go, begun = [], threading.Event(), list[str]()
    for number, owner in enumerate(people):
        model_id, versions = model(deployed.storage, owner, "m", times(tmp_path / f"{number}.onnx", 2))
        slow += [deployment(deployed.storage, owner, f"d{each}", model_id, versions[0]) for each in range((20, 1)[number])]
    prepare = HostSide.prepare

    def waits(side: HostSide, plan: Any, before: int) -> None:
        begun.append(plan.name)
        if plan.name.startswith("ann."):
            assert go.wait(60)
        prepare(side, plan, before)

    monkeypatch.setattr(HostSide, "prepare", waits)
    try:
        for _ in range(3):
            deployed.reconciler.step()
        eventually(lambda: deployed.record(slow[-1].id).state == "running", "the other one's is started meanwhile", 30)
        assert len(begun) == 5 and begun.count("bob.d0") == 1
    finally:
        go.set()
    deployed.turn()
    for _ in range(20):
        deployed.turn()
    assert {deployed.record(each.id).state for each in slow} == {"running"}


@pytest.mark.parametrize(
    "body",
    [
        r'{"filetype": "none", "input": "\ud800"}',
        r'{"filetype": "csv", "input": "\ud800"}',
        r'{"filetype": "\ud800", "input": "1"}',
        r'{"filetype": "{\"x\": \"none\"}", "input": "\ud800"}',
        r'{"filetype": "{\"\ud800\": \"none\"}", "input": "{}"}',
        r'{"filetype": "{\"x\": \"csv\"}", "inputfile_x": "\ud800"}',
    ],
)
def test_half_a_letter_is_no_input_of_a_script(body: str) -> None:
    """JSON can spell it, nothing can send it."""
    with pytest.raises(ServingError) as caught:
        script_tensors.of_body(prediction_bodies.from_json(body.encode()))
    assert caught.value.code is Code.INVALID_INPUT


def test_an_upload_whose_file_is_a_models_already_is_gone(place: Place, triple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database gave up after the file had been taken: nobody is told to send bytes to where there is nothing."""
    content = triple.read_bytes()
    upload = place.ann("POST", "/v1/uploads", json={"file_name": "m.onnx", "size": len(content)})[1]["id"]
    sent = {"Content-Type": "application/octet-stream", "Upload-Offset": "0"}
    assert place.ann("PATCH", f"/v1/uploads/{upload}", data=content, headers=sent)[0] == 200

    def locked(*_: object) -> None:
        raise ServingError(Code.UNAVAILABLE, "the database is busy")

    with monkeypatch.context() as patch:
        patch.setattr(place.services.storage.models, "create", locked)
        assert place.ann("POST", "/v1/models", json={"name": "m", "upload": upload})[0] == 503
    assert place.ann("GET", f"/v1/uploads/{upload}")[0] == place.ann("POST", "/v1/models", json={"name": "m", "upload": upload})[0] == 404
    assert place.ann("PATCH", f"/v1/uploads/{upload}", data=content, headers=sent)[0] == 404
    assert place.ann.upload(triple, name="m")[0] == 201


def test_nobody_has_more_instances_than_his_quota(plain: Stage) -> None:
    """They are processes of the host, whatever they reserve, and also those that a range allows."""
    ann = plain.ann

    def asked(name: str, method: str = "POST", **more: Any) -> int:
        body = {"name": name, "model": "m", **more} if method == "POST" else more
        return ann(method, "/v1/deployments" + ("" if method == "POST" else f"/{name}"), body).status_code

    plain.over.storage.quotas.defaults = {"instances": 6}
    assert (
        asked("a", instances=1024) == asked("a", max_instances=7) == 507
        and "6 are allowed" in ann("POST", "/v1/deployments", {"name": "a", "model": "m", "instances": 7}).get_json()["detail"]
    )
    assert asked("a", instances=1, max_instances=4) == 201 and asked("b", instances=3) == 507 and asked("b", instances=2) == 201
    assert asked("a", "PATCH", max_instances=5) == 507 and asked("a", "PATCH", golden_tolerance=0.5) == 200
    assert asked("c", instances=6, desired_state="paused") == 201 and asked("c", "PATCH", desired_state="running") == 507
    plain.over.storage.quotas.defaults = {"instances": 3}
    assert asked("a", "PATCH", golden_tolerance=0.1) == asked("a", "PATCH", max_instances=3) == 200, "what is there may become less"
    assert asked("b", "PATCH", desired_state="paused") == 200 and asked("b", "PATCH", desired_state="running") == 507
    assert ann("GET", "/v1/me/quota").get_json()["instances"] == {"used": 3, "limit": 3}

    plain.over.storage.quotas.defaults = {"instances": 6}
    people = [Person(ann.http.application.test_client(), ann.headers, ann.principal) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(lambda each: each[1]("POST", "/v1/deployments", {"name": f"x{each[0]}", "model": "m"}).status_code, enumerate(people))
        )
    assert sorted(made) == [201] * 3 + [507] * 5, "also at once"
