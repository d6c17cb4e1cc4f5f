"""A small dialogue: finds the question that is nearest to what was asked, and says its answer word by word.

English is compared by what it means (the sentence encoder `encoder.onnx`, all-MiniLM-L6-v2), Chinese, which that encoder has not learnt, by the
characters that two questions share, rare ones more than frequent ones. The parameter `topic`, which every answer carries, may be sent
with the next question: among questions that are about as near it prefers those of that topic.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from outboard_model import InvalidInput
from wordpiece import WordPiece, is_chinese

from inference_server.backends.runtime import onnxruntime  # as the server has it: without telemetry

LONGEST = 2000
"""Characters of a question."""
LEAST_ENGLISH, LEAST_CHINESE = 0.42, 0.25
"""What is no nearer than this is not answered."""
SAME_TOPIC = 0.15
_AT_ONCE = 32
UNKNOWN_ENGLISH = "I do not know that one. Ask me what Outboard is, how to start it, how to add a model, or just say hello."
UNKNOWN_CHINESE = "这个我还不会。可以问我 Outboard 是什么、怎么启动、怎么添加模型，或者跟我打个招呼。"


class Dialogue:
    """`folder`: where its files lie."""

    def __init__(self, folder: Any) -> None:
        self._pieces = WordPiece((folder / "vocabulary.txt").read_text().splitlines())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._encoder = onnxruntime.InferenceSession(str(folder / "encoder.onnx"), options, providers=["CPUExecutionProvider"])
        self._entries: list[dict[str, Any]] = json.loads((folder / "answers.json").read_text())
        asked = [(text, number) for number, entry in enumerate(self._entries) for text in entry["questions"]]
        english = [(text, number) for text, number in asked if not in_chinese(text)]
        self._english = [number for _, number in english]
        self._vectors = np.load(folder / "vectors.npy", allow_pickle=False).astype(np.float32)  # what `embedded` gives, computed before
        assert len(self._vectors) == len(english)
        grams = [(_grams(text), number) for text, number in asked if in_chinese(text)]
        seen = Counter(gram for found, _ in grams for gram in set(found))
        self._weights = {gram: math.log(1 + len(grams) / count) for gram, count in seen.items()}
        self._chinese = [(self._weighed(found), number) for found, number in grams]

    def answer(self, question: str, topic: str) -> tuple[str, str, float]:
        """(answer, its topic, how near the question is that it belongs to, 1 for the same one, more where the topic fits); topic "" where nothing is near."""
        if in_chinese(question):
            asked, least, unknown = self._weighed(_grams(question)), LEAST_CHINESE, UNKNOWN_CHINESE
            scores = [(sum(asked.get(gram, 0.0) * weight for gram, weight in known.items()), number) for known, number in self._chinese]
        else:
            least, unknown = LEAST_ENGLISH, UNKNOWN_ENGLISH
            (vector,) = self.embedded([question])
            scores = list(zip((self._vectors @ vector).tolist(), self._english, strict=True))
        score, number = max((score + SAME_TOPIC * (self._entries[number]["topic"] == topic), number) for score, number in scores)
        if score < least:
            return unknown, "", score
        return self._entries[number]["answer"], self._entries[number]["topic"], score

    def embedded(self, texts: Sequence[str]) -> Any:
        """float32 [texts, 384], each of length 1: the mean of its tokens."""
        found = []
        for begin in range(0, len(texts), _AT_ONCE):
            ids = [self._pieces(text) for text in texts[begin : begin + _AT_ONCE]]
            longest = max(map(len, ids))
            padded = np.array([each + [0] * (longest - len(each)) for each in ids], np.int64)
            mask = np.array([[1] * len(each) + [0] * (longest - len(each)) for each in ids], np.int64)
            feed = {"input_ids": padded, "attention_mask": mask, "token_type_ids": np.zeros_like(padded)}
            (states,) = self._encoder.run(None, feed)
            mean = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1)[:, None]
            found.append(mean / np.linalg.norm(mean, axis=1)[:, None])
        return np.concatenate(found)

    def _weighed(self, grams: Sequence[str]) -> dict[str, float]:
        """Gram -> weight, of length 1 all together; {} where there is none."""
        found = {gram: count * self._weights.get(gram, 1.0) for gram, count in Counter(grams).items()}
        length = math.sqrt(sum(weight * weight for weight in found.values()))
        return {gram: weight / length for gram, weight in found.items()} if length else {}


def questions(folder: Any) -> list[str]:
    """All that `answers.json` has, in order; `vectors.npy` has the vectors of those that are not Chinese."""
    return [text for entry in json.loads((folder / "answers.json").read_text()) for text in entry["questions"]]


def load(context: Any) -> None:
    loaded.append(Dialogue(context.folder))


loaded: list[Dialogue] = []


def infer(inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    answer, topic, score = loaded[0].answer(_text(inputs["text_input"][0]), str(parameters.get("topic", "")))
    for word in words(answer):
        yield {"text_output": [word]}, {"topic": topic, "score": round(score, 3)}


def _text(given: bytes) -> str:
    try:
        question = given.decode().strip()
    except UnicodeDecodeError:
        raise InvalidInput("text_input is not UTF-8") from None
    if not question:
        raise InvalidInput("text_input is empty")
    if len(question) > LONGEST:
        raise InvalidInput(f"text_input has {len(question)} characters, at most {LONGEST} are read")
    return question


def in_chinese(text: str) -> bool:
    return any(map(is_chinese, text))


def _grams(text: str) -> list[str]:
    """Its characters and pairs of them, without the signs between."""
    kept = "".join(character for character in text.lower() if character.isalnum())
    return [*kept, *(kept[at : at + 2] for at in range(len(kept) - 1))]


def words(answer: str) -> Iterator[str]:
    """Pieces that make the answer when they are put together: a word with the space after it, or a Chinese character."""
    word = ""
    for character in answer:
        word += character
        if character == " " or is_chinese(character):
            yield word
            word = ""
    if word:
        yield word
