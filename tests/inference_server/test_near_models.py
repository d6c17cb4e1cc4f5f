"""Folders that are nearly models: what is said of each, and that it is said once."""

from pathlib import Path

import pytest

from inference_server.near_models import NearModels, near_models


def put(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def said(root: Path) -> dict[str, str]:
    return {near.where: near.why for near in near_models(root)}


@pytest.mark.parametrize(
    ("path", "where", "why"),
    [
        ("nover/model.onnx", "mis/nover", "model.onnx lies beside the version folders; mis/nover/1/model.onnx is wanted"),
        ("vee/v1/model.onnx", "mis/vee", "its folder 'v1' is no version"),
        ("zero/0/model.onnx", "mis/zero", "its folder '0' is no version, which is a whole number from 1"),
        ("lead/01/model.onnx", "mis/lead", "its folder '01' is no version, which is a whole number from 1, without zeros before it"),
        ("bad name/1/model.onnx", "mis/bad name", "a model's name has letters, digits"),
        ("bad name/model.onnx", "mis/bad name", "lies beside the version folders; mis/bad name/1/model.onnx is wanted; a model's name"),
        (
            "other/1/double.onnx",
            "mis/other",
            "mis/other/1 has double.onnx and no model.onnx: rename it, or say in model.toml: model_file = 'd",
        ),
        (
            "pb/1/model.pb",
            "mis/pb",
            "mis/pb/1 has model.pb, which is not served: model.onnx, model.py, model.pmml, model.pt2, model.pt or script.py is",
        ),
        ("sk/1/m.pkl", "mis/sk", "mis/sk/1 has m.pkl, which is not served; outboard models convert makes ONNX of it: model.onnx, "),
        ("net/1/net.pt", "mis/net", "mis/net/1 has net.pt and no model.pt: rename it, or say in model.toml: model_file = 'net.pt'"),
        ("code/1/infer.py", "mis/code", "mis/code/1 has infer.py and no model.py: rename it"),
        ("tree/model.pmml", "mis/tree", "model.pmml lies beside the version folders; mis/tree/1/model.pmml is wanted"),
        ("vee/v1/model.pt2", "mis/vee", "without zeros before it; mis/vee/1/model.pt2 is wanted"),
        ("tree.pmml", "mis", "tree.pmml lies in the repository itself; mis/tree/1/model.pmml is wanted"),
        ("1/model.py", "mis", "it is the folder of one model; the repository, the folder that this one lies in, is wanted"),
        ("empty/1/notes.txt", "mis/empty", "mis/empty/1 has none of model.onnx, model.py, model.pmml, model.pt2, model.pt or script.py"),
        ("group/double/1/model.onnx", "mis/group", "it holds models of its own, such as mis/group/double, and is a repository itself"),
        ("double.onnx", "mis", "double.onnx lies in the repository itself; mis/double/1/model.onnx is wanted"),
        ("model.onnx", "mis", "model.onnx lies in the repository itself; mis/NAME/1/model.onnx is wanted"),
        ("1/model.onnx", "mis", "it is the folder of one model; the repository, the folder that this one lies in, is wanted"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, path: str, where: str, why: str) -> None:
    found = said(put(tmp_path / "mis", path))
    assert list(found) == [where] and why in found[where], found
    assert str(tmp_path) not in found[where]


def test_models_and_what_is_something_else_are_passed_over(tmp_path: Path) -> None:
    root = put(
        tmp_path / "good",
        "double/1/model.onnx",
        "1/1/model.onnx",
        "tree/1/model.pmml",
        "torch/1/model.pt",
        "program/1/model.pt2",
        "code/1/model.py",
        "package/v1/setup.py",
        "named/1/net.onnx",
        "named/model.toml",
        "triton/config.pbtxt",
        "coming/1/.model.onnx.1-2.part",
        "also/1/weights.bin.part",
        ".git/1/double.onnx",
        "docs/page.md",
        "README.md",
    )
    (root / "lost+found").mkdir()
    assert said(root) == {}
    assert said(tmp_path / "absent") == {}


def test_each_is_told_once_and_while_polling_only_what_stays(tmp_path: Path) -> None:
    root = put(tmp_path / "mis", "nover/model.onnx")
    looks = NearModels([root])
    assert [near.where for near in looks.fresh(at_once=True)] == ["mis/nover"]
    assert looks.fresh(at_once=False) == looks.fresh(at_once=False) == []
    put(root, "other/1/double.onnx")
    assert looks.fresh(at_once=False) == [], "perhaps it is being copied"
    assert [near.where for near in looks.fresh(at_once=False)] == ["mis/other"]
    assert looks.fresh(at_once=False) == []
    (root / "other" / "1" / "double.onnx").rename(root / "other" / "1" / "model.onnx")
    assert looks.fresh(at_once=False) == []
    (root / "other" / "1" / "model.onnx").rename(root / "other" / "1" / "double.onnx")
    looks.fresh(at_once=False)
    assert [near.where for near in looks.fresh(at_once=False)] == ["mis/other"], "it had been a model"
