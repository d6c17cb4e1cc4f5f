"""Several answers to one request, over whichever protocol."""

from collections.abc import Iterator

from inference_client.channel import RawAnswers
from inference_client.result import InferResult, to_result


class Answers:
    """An iterator of results. Used as a context manager, or closed, it gives up what was not asked for; after its end that is done already."""

    def __init__(self, raw: RawAnswers) -> None:
        self._raw = raw

    def __iter__(self) -> Iterator[InferResult]:
        return self

    def __next__(self) -> InferResult:
        answer = self._raw.next()
        if answer is None:
            raise StopIteration
        return to_result(answer)

    def close(self) -> None:
        self._raw.close()

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
