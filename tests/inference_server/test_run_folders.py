"""Run folders: what killed servers left is removed, what is in use or not ours stays."""

import os
import tempfile
from pathlib import Path

import pytest

from inference_server import run_folders


@pytest.fixture
def among(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left_over(among: Path, name: str, age_s: float) -> Path:
    """As a server leaves it that is killed."""
    folder = among / name
    (folder / "routes").mkdir(parents=True)
    (folder / "x1.lane").touch()
    os.close(run_folders.lock(folder))
    then = (folder / run_folders.LOCK).stat().st_mtime - age_s
    os.utime(folder / run_folders.LOCK, (then, then))
    return folder


def test_what_a_killed_server_left_is_removed(among: Path) -> None:
    old = left_over(among, "outboard-old", 3600)
    young = left_over(among, "outboard-young", 1)
    used = left_over(among, "outboard-used", 3600)
    foreign = left_over(among, "other-old", 3600)
    (among / "outboard-nothing").mkdir()
    (among / "outboard-link").symlink_to(foreign)
    (among / "outboard-file").touch()
    holding = run_folders.lock(used)
    made = run_folders.temporary()
    assert not old.exists()
    kept = {young, used, foreign, made, *(among / f"outboard-{name}" for name in ("nothing", "link", "file"))}
    assert set(among.iterdir()) == kept and (foreign / "x1.lane").exists()
    os.close(holding)
    assert run_folders.temporary() != made
    assert not used.exists()


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    holding = run_folders.lock(tmp_path)
    with pytest.raises(OSError, match="another server uses the run folder"):
        run_folders.lock(tmp_path)
    os.close(holding)
    os.close(run_folders.lock(tmp_path))
