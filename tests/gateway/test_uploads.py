"""Uploads in pieces: broken off, gone on with, refused, forgotten."""

# ruff: noqa: F811 - fixtures are arguments
import hashlib
import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.operations.uploads import Uploads
from gateway.storage import Storage
from idl.codes import ServingError
from tests.gateway.deployed_host import deployed, users_host  # noqa: F401
from tests.gateway.owners import Person, Place, place, principal, triple  # noqa: F401


def begin(person: Person, size: int, **more: Any) -> str:
    status, made = person("POST", "/v1/uploads", json={"file_name": "m.onnx", "size": size, **more})
    assert status == 201 and made["offset"] == 0, made
    return str(made["id"])


def send(person: Person, upload: str, offset: int, data: bytes, **headers: str) -> tuple[int, Any]:
    given = {"Content-Type": "application/octet-stream", **(headers or {"Upload-Offset": str(offset)})}
    return person("PATCH", f"/v1/uploads/{upload}", data=data, headers=given)


def test_a_model_that_comes_in_pieces(place: Place, triple: Path) -> None:
    data = triple.read_bytes()
    upload = begin(place.ann, len(data), sha256=hashlib.sha256(data).hexdigest())
    assert send(place.ann, upload, 0, data[:100])[1]["offset"] == 100
    answer = place.ann.client.head(f"/v1/uploads/{upload}", headers=place.ann.headers)
    assert answer.headers["Upload-Offset"] == "100" and answer.headers["Upload-Length"] == str(len(data))
    assert place.ann("POST", "/v1/models", json={"name": "m", "upload": upload})[1]["code"] == "conflict", "it is not whole"
    for offset in (0, 99, 101, len(data)):
        status, refused = send(place.ann, upload, offset, data[offset:])
        assert status == 409 and "has 100 bytes" in refused["detail"]
    rest = f"bytes 100-{len(data) - 1}/{len(data)}"
    assert send(place.ann, upload, 0, data[100:], **{"Content-Range": rest})[1]["offset"] == len(data)
    assert place.bob("GET", f"/v1/uploads/{upload}")[0] == 404 and send(place.bob, upload, 0, b"")[0] == 404
    assert place.bob("POST", "/v1/models", json={"name": "m", "upload": upload})[0] == 404
    status, made = place.ann("POST", "/v1/models", json={"name": "m", "upload": upload, "tags": ["a"], "type": "t"})
    assert status == 201 and made["file_name"] == "m.onnx" and made["tags"] == ["a"] and made["sha256"] == hashlib.sha256(data).hexdigest()
    assert place.ann("GET", f"/v1/uploads/{upload}")[0] == 404 and place.kept() == [made["sha256"]]
    upload = begin(place.ann, len(data))
    send(place.ann, upload, 0, data)
    assert place.ann("POST", "/v1/models/m/versions", json={"upload": upload})[1]["version"] == 2


def test_uploads_that_end_badly(place: Place) -> None:
    upload = begin(place.ann, 10)
    assert send(place.ann, upload, 0, b"12345678901")[0] == 413
    assert place.ann("GET", f"/v1/uploads/{upload}")[1]["offset"] == 0, "what is too much is not kept"
    for headers in (
        {"Upload-Offset": "-1"},
        {"Upload-Offset": "x"},
        {"Content-Range": "bytes 0-1"},
        {"Content-Range": "bytes 0-8/10"},
        {"X": "no offset"},
        {"Content-Range": "bytes 0-9/10", "Upload-Offset": "3"},
    ):
        assert send(place.ann, upload, 0, b"1234567890", **headers)[0] == 400, headers
    assert place.ann("PATCH", f"/v1/uploads/{upload}", data=b"x", headers={"Upload-Offset": "0"})[0] == 415
    assert send(place.ann, upload, 0, b"no model!!")[0] == 200
    assert place.ann("POST", "/v1/models", json={"name": "a b", "upload": upload})[0] == 400
    assert place.ann("GET", f"/v1/uploads/{upload}")[0] == 200, "another name will do"
    assert place.ann("POST", "/v1/models", json={"name": "m", "upload": upload})[0] == 422
    assert place.ann("GET", f"/v1/uploads/{upload}")[0] == 404 and place.kept() == []
    upload = begin(place.ann, 3, sha256="0" * 64)
    send(place.ann, upload, 0, b"abc")
    status, refused = place.ann("POST", "/v1/models", json={"name": "m", "upload": upload})
    assert status == 400 and "SHA-256" in refused["detail"] and place.kept() == []
    upload = begin(place.ann, 3)
    assert place.ann("DELETE", f"/v1/uploads/{upload}")[0] == 204 and place.ann("DELETE", f"/v1/uploads/{upload}")[0] == 404
    for wrong in ({"file_name": "m", "size": 0}, {"file_name": "", "size": 1}, {"size": 1}, {"file_name": "m", "size": 1, "sha256": "x"}):
        assert place.ann("POST", "/v1/uploads", json=wrong)[0] == 400
    assert place.ann("POST", "/v1/uploads", json={"file_name": "m", "size": 1 << 44})[0] == 413
    assert place.nobody("POST", "/v1/uploads", json={"file_name": "m", "size": 1})[0] == 401
    for name in ("x", "../../secret", "0" * 32):
        assert place.ann("GET", f"/v1/uploads/{name}")[0] == 404


def test_a_host_that_is_away_costs_no_upload(place: Place, triple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = triple.read_bytes()
    upload = begin(place.ann, len(data))
    send(place.ann, upload, 0, data)

    def away(*_: object) -> None:
        raise ServingError(place_code, "the model host cannot be reached", retry_after_ms=1000)

    from idl.codes import Code

    place_code = Code.UNAVAILABLE
    with monkeypatch.context() as patched:
        patched.setattr(type(place.services.models), "validate", away)
        assert place.ann("POST", "/v1/models", json={"name": "m", "upload": upload})[0] == 503
    assert place.ann("POST", "/v1/models", json={"name": "m", "upload": upload})[0] == 201


def test_too_many_uploads_and_old_ones(place: Place) -> None:
    object.__setattr__(place.services.settings, "max_uploads", 2)
    uploads = [begin(place.ann, 10) for _ in range(2)]
    assert place.ann("POST", "/v1/uploads", json={"file_name": "m", "size": 1})[0] == 507
    begin(place.bob, 10)
    send(place.ann, uploads[0], 0, b"12345")
    storage = place.services.storage
    assert storage.uploads.sweep(place.services.now()) == 0
    (storage.uploads.path("f" * 32)).write_bytes(b"without a row")
    assert storage.uploads.sweep(place.services.now()) == 1
    assert storage.uploads.sweep(place.services.now() + timedelta(days=2)) == 3 and place.kept() == []
    begin(place.ann, 10)


def test_one_at_a_time_writes(place: Place) -> None:
    """A second writer is told to wait, and a reader that breaks off keeps what came."""
    uploads, caller = Uploads(place.services.storage, place.services.settings), principal(place.services, "ann")
    upload = uploads.begin(caller, "m", 100, None).record.id
    inside, go = threading.Event(), threading.Event()

    def pieces() -> Any:
        yield b"12345"
        inside.set()
        go.wait(10)
        raise ConnectionError

    def write() -> None:
        with pytest.raises((ServingError, ConnectionError)):
            uploads.append(caller, upload, 0, pieces())

    thread = threading.Thread(target=write)
    thread.start()
    assert inside.wait(10)
    with pytest.raises(ServingError, match="another request"):
        uploads.append(caller, upload, 0, [b"x"])
    go.set()
    thread.join()
    assert uploads.read(caller, upload).offset == 5
    assert uploads.append(caller, upload, 5, [b"6789", b""]).offset == 9


def test_a_full_disk_is_said_and_what_came_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path)

    class Full:
        def write(self, piece: bytes) -> int:
            raise OSError(28, os.strerror(28))

        def seek(self, *_: int) -> int:
            return 3

        def flush(self) -> None:
            raise OSError(28, os.strerror(28))

    with pytest.raises(ServingError, match="No space left"):
        storage.uploads.append(Full(), [b"x"], 100)  # type: ignore[arg-type]
    storage.close()
