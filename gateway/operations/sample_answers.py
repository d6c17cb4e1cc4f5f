"""One answer from the answers to many samples."""

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from gateway.operations.form_inputs import Samples
from gateway.operations.prediction_bodies import PredictionBody
from idl.codes import ServingError

Run = Callable[[PredictionBody], Mapping[str, Any]]
"""A prediction's answer, as `predictions.predict` gives it."""


def answered(samples: Samples, run: Run) -> dict[str, Any]:
    """The answer of the only call; or, with a list instead of each output that has one entry for each sample, of all of them.

    Raises what `run` and the samples raise, with the sample's number: then none is answered.
    """
    with closing(samples):
        if samples.single:
            return dict(run(next(samples.bodies)))
        made: dict[str, Any] = {}
        outputs: dict[str, list[Any]] = {}
        labels: list[Any] = []
        number = 0
        for number, body in enumerate(samples.bodies, 1):
            try:
                answer = run(body)
            except ServingError as error:
                raise ServingError(error.code, f"sample {number}: {error.message}", retry_after_ms=error.retry_after_ms) from error
            made = made or dict(answer)
            for name, value in answer["outputs"].items():
                outputs.setdefault(name, []).append(_of_one(value))
            labels += answer.get("labels", [])
    assumed = {**made.get("assumed", {}), **samples.assumed}
    made.pop("timing_ms", None)
    return (
        made | {"outputs": outputs, "samples": number} | ({"labels": labels} if labels else {}) | ({"assumed": assumed} if assumed else {})
    )


def _of_one(value: Any) -> Any:
    """Without the batch axis of one sample."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value
