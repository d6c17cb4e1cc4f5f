"""A site with something on every page, as somebody has it who has used it for a while: for screenshots."""

import time
from pathlib import Path
from threading import Thread
from zipfile import ZipFile

from outboard import demo
from tests.e2e.pages.conftest import Site, seed
from tests.e2e.test_deployments import Caller, upload_content, upload_rows
from tests.gateway.deployed_host import within

BUSY = "recommendations"
CARD = """# EfficientNet-Lite0

Says what is in a picture, out of **1,000 classes** of ImageNet.

| input | output |
|---|---|
| a picture | five most likely classes |

- good for: everyday things, animals, food
- not for: medical pictures, faces
"""


def a_classifier(folder: Path) -> Path:
    """EfficientNet with its settings and labels, as a zip that is uploaded."""
    found = demo.prepare(folder / "demo")
    path = folder / "efficientnet.zip"
    with ZipFile(path, "w") as archive:
        for file in found.iterdir():
            if file.suffix in (".toml", ".json"):
                archive.write(file, f"efficientnet/{file.name}")
        archive.write(found / "1" / "model.onnx", "efficientnet/lite0.onnx")
    return path


def furnish(site: Site, folder: Path) -> None:
    """What `seed` makes, and a classifier of pictures that is called while the pictures are taken."""
    seed(site, folder)
    owner = site.owner
    content = a_classifier(folder).read_bytes()
    fields = {"name": "photos", "description": "Says what is in a picture.", "type": "classifier", "card": CARD}
    owner("POST", "/v1/models", upload_content(content, "model", "efficientnet.zip", fields), 201)
    owner("PATCH", "/v1/models/photos", {"visibility": "public", "tags": ["vision", "imagenet"]})
    owner("POST", "/v1/deployments", {"name": "photos", "model": "photos", "version": 1, "instances": 1}, 201)
    for name, version in ((BUSY, 1), ("candidates", 2)):
        owner("POST", "/v1/deployments", {"name": name, "model": "m", "version": version}, 201)
    owner("PATCH", "/v1/deployments/candidates", {"desired_state": "paused"})
    within(60, lambda: owner("GET", "/v1/deployments/photos")["state"] == "running")
    rows = "a,b\n" + "".join(f"{number % 7},{number % 3}\n" for number in range(400))
    owner("POST", "/v1/batches", upload_rows(rows, deployment="d"), 202)


class Traffic:
    """Calls of the owner's deployment BUSY, some of them wrong, while the block lasts."""

    def __init__(self, owner: Caller) -> None:
        self._owner, self._over = owner, False
        self._thread = Thread(target=self._run)

    def _run(self) -> None:
        number = 0
        while not self._over:
            number += 1
            value = "x" if number % 40 == 0 else number % 10
            self._owner.asked("POST", f"/v1/deployments/{BUSY}/predictions", {"inputs": {"x": [[value, 0]]}})
            time.sleep(0.02 + 0.02 * (number // 50 % 3))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()
