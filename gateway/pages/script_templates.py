"""Scripts to begin from, with the names that a model's inputs and outputs have."""

from dataclasses import dataclass
from typing import Any

from flask_babel import gettext as _

from gateway.pages.signatures import Signature, Tensor


@dataclass(frozen=True, slots=True)
class Template:
    """`source` is Python."""

    key: str
    name: str
    source: str


def templates(signature: Signature | None) -> list[Template]:
    """For a model; None: nothing is known of it."""
    taken, given = (signature.inputs, signature.outputs) if signature else ((), ())
    first, last = _name(taken, "x"), _name(given, "y")
    scores = signature.labelled if signature and signature.labelled else given[0].name if given else "y"
    return [
        Template("both", _("Before and after, unchanged"), _BOTH),
        Template("scale", _("Scale the input"), _SCALE.replace("INPUT", first)),
        Template("best", _("The best class with a name"), _BEST.replace("OUTPUT", repr(scores))),
        Template("picture", _("A picture from a file"), _PICTURE.replace("INPUT", first).replace("SIDE", _side(taken))),
        Template("refuse", _("Refuse what makes no sense"), _REFUSE.replace("INPUT", first)),
        Template("round", _("Round the answer"), _ROUND.replace("OUTPUT", last)),
    ]


def _name(tensors: tuple[Tensor, ...], otherwise: str) -> str:
    return repr(tensors[0].name if tensors else otherwise)


def _side(tensors: tuple[Tensor, ...]) -> str:
    """Pixels of a picture that the first input takes."""
    sizes: list[Any] = [axis for axis in (tensors[0].shape if tensors else ()) if isinstance(axis, int) and axis > 4]
    return str(sizes[-1] if sizes else 224)


_BOTH = '''def preprocess(inputs):
    """Before the model. `inputs`: name -> numpy array, as the caller sent them."""
    return inputs


def postprocess(outputs):
    """After the model. `outputs`: name -> numpy array; what is returned is the answer."""
    return outputs
'''
_SCALE = """import numpy as np

MEAN, SPREAD = 0.5, 0.25


def preprocess(inputs):
    values = np.asarray(inputs[INPUT], np.float32)
    return {**inputs, INPUT: (values - MEAN) / SPREAD}
"""
_BEST = """import numpy as np

NAMES = ["cat", "dog", "bird"]


def postprocess(outputs):
    scores = np.atleast_2d(outputs[OUTPUT])
    best = scores.argmax(axis=-1).ravel()
    names = [NAMES[place] if place < len(NAMES) else str(place) for place in best]
    return {"name": np.array(names, object), "score": scores.max(axis=-1).ravel()}
"""
_PICTURE = """import io

import numpy as np
from outboard_model import InvalidInput
from PIL import Image


def preprocess(inputs):
    try:
        picture = Image.open(io.BytesIO(inputs["file"].item())).convert("RGB").resize((SIDE, SIDE))
    except (KeyError, OSError) as error:
        raise InvalidInput("send a picture as the file `file`") from error
    return {INPUT: np.asarray(picture, np.float32)[None] / 255}
"""
_REFUSE = """import numpy as np
from outboard_model import InvalidInput


def preprocess(inputs):
    name = INPUT
    if name not in inputs:
        raise InvalidInput(f"there is no input {name!r}")
    values = np.asarray(inputs[name], float)
    if not np.isfinite(values).all():
        raise InvalidInput("every number must be finite")
    return inputs
"""
_ROUND = """def postprocess(outputs):
    return {**outputs, OUTPUT: outputs[OUTPUT].round(3)}
"""
