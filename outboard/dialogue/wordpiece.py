"""Text to the token ids of an uncased BERT vocabulary: cleaned, lower case, without accents, split at white space, punctuation and Chinese characters,
and each word into the longest pieces that the vocabulary has. Source: the paper "Google's Neural Machine Translation System" (WordPiece), and
the `normalizer` and `pre_tokenizer` of the model's `tokenizer.json`.
"""

import unicodedata
from collections.abc import Iterator, Sequence

UNKNOWN, BEGIN, END = "[UNK]", "[CLS]", "[SEP]"
_LONGEST_WORD = 100
_CHINESE = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))


def is_chinese(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _CHINESE)


class WordPiece:
    """`vocabulary`: pieces in the order of their ids; one that begins with ## continues a word."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self._ids = {piece: number for number, piece in enumerate(vocabulary)}
        self._unknown = self._ids[UNKNOWN]

    def __call__(self, text: str, longest: int = 128) -> list[int]:
        """At most `longest` ids, those of the marks at both ends included."""
        pieces = [piece for word in _words(text[: 20 * longest]) for piece in self._pieces(word)]
        return [self._ids[BEGIN], *pieces[: longest - 2], self._ids[END]]

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _LONGEST_WORD:
            return [self._unknown]
        found, begin = [], 0
        while begin < len(word):
            for end in range(len(word), begin, -1):
                piece = self._ids.get(("##" if begin else "") + word[begin:end])
                if piece is not None:
                    found.append(piece)
                    begin = end
                    break
            else:
                return [self._unknown]
        return found


def _words(text: str) -> Iterator[str]:
    word = ""
    for character in _normal(text):
        if character.isspace() or is_chinese(character) or _is_punctuation(character):
            if word:
                yield word
            word = ""
            if not character.isspace():
                yield character
        else:
            word += character
    if word:
        yield word


def _normal(text: str) -> Iterator[str]:
    for character in unicodedata.normalize("NFD", text):
        kind = unicodedata.category(character)
        if character in "\t\n\r":
            yield " "
        elif kind != "Mn" and not kind.startswith("C") and character != "\ufffd":
            yield from character.lower()


def _is_punctuation(character: str) -> bool:
    code = ord(character)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_mark or unicodedata.category(character).startswith("P")
