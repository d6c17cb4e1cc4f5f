"""What a model is: its inputs and outputs in words, what trying it took, and its graph."""

from collections.abc import Mapping
from typing import Any

from flask import request
from flask_babel import gettext
from flask_babel import lazy_gettext as later
from werkzeug.wrappers import Response

from gateway.blueprints import model_bodies
from gateway.context import services
from gateway.operations.host_models import HostModel
from gateway.pages import signatures
from gateway.pages.frame import Pages, render
from gateway.pages.model_calls import of_host, wanted_version
from gateway.pages.model_places import model_at, model_head
from gateway.pages.sentences import said
from gateway.pages.signatures import Axis, Tensor

_pages = Pages("model_overview")
blueprint = _pages.blueprint
FORMATS: Mapping[str, str] = {
    "onnx": "ONNX",
    "pmml": "PMML",
    "python": "Python",
    "torchscript": "TorchScript",
    "torch_export": "torch.export",
}
ENGINES: Mapping[str, str] = {"onnxruntime": "ONNX Runtime", "pypmml": "PyPMML", "python": "Python", "pytorch": "PyTorch"}
_TYPES: Mapping[str, Any] = {
    "BOOL": later("yes or no"),
    "BYTES": later("text or bytes"),
    "FP16": later("number, 16 bits"),
    "BF16": later("number, 16 bits (bfloat16)"),
    "FP32": later("number, 32 bits"),
    "FP64": later("number, 64 bits"),
    "INT8": later("whole number, 8 bits"),
    "INT16": later("whole number, 16 bits"),
    "INT32": later("whole number, 32 bits"),
    "INT64": later("whole number, 64 bits"),
    "UINT8": later("whole number from 0, 8 bits"),
    "UINT16": later("whole number from 0, 16 bits"),
    "UINT32": later("whole number from 0, 32 bits"),
    "UINT64": later("whole number from 0, 64 bits"),
}
_OPTYPES: Mapping[str, Any] = {"continuous": later("continuous"), "categorical": later("categorical"), "ordinal": later("ordinal")}
_ALGORITHMS: Mapping[str, Any] = {
    "neural network": later("neural network"),
    "tree ensemble classifier": later("tree ensemble classifier"),
    "tree ensemble regressor": later("tree ensemble regressor"),
    "linear classifier": later("linear classifier"),
    "linear regressor": later("linear regressor"),
}
_MOST_VALUES = 12


def _(text: str, **values: object) -> str:
    return str(gettext(text, **values))


@_pages.page("/ui/models/<owner>/<name>")
def overview(owner: str, name: str) -> Response:
    """`?version=` of a user's model; the newest without it."""
    found = model_at(owner, name)
    head = model_head(found)
    if isinstance(found, HostModel):
        body, signature = model_bodies.host_model(found), of_host(found)
    elif found.version is None:
        return render("model/overview.html", head=head, body=None)
    else:
        version = wanted_version(found)
        body, signature = model_bodies.model_version(version), signatures.of_version(services().storage, version)
    description = said(found.description) if isinstance(found, HostModel) else found.model.description
    values: dict[str, Any] = {
        "describe": described,
        "algorithm": lambda name: _ALGORITHMS.get(name, name),
        "formats": FORMATS,
        "engines": ENGINES,
        "asked": request.args.get("version", ""),
    }
    return render("model/overview.html", head=head, body=body, signature=signature, description=description, **values)


def described(tensor: Tensor) -> Mapping[str, str]:
    """A tensor in words: what it holds, how many samples, and which values it takes."""
    what = str(_TYPES.get(tensor.datatype, tensor.datatype))
    if tensor.picture:
        what = _("picture")
    return {"what": what, "shape": shape_text(tensor.shape), "size": _size(tensor), "values": _values(tensor), "optype": _optype(tensor)}


def shape_text(shape: tuple[Axis, ...]) -> str:
    """[batch, 3, 224, 224]; ? for an open axis that has no name."""
    return "[" + ", ".join("?" if axis == -1 else str(axis) for axis in shape) + "]" if shape else ""


def _size(tensor: Tensor) -> str:
    """What one request holds of it."""
    rest = tensor.shape[1:] if tensor.takes_rows else tensor.shape
    if tensor.is_single:
        return _("one value for each sample") if tensor.takes_rows else _("one value")
    fixed = [axis for axis in rest if isinstance(axis, int) and axis >= 0]
    if len(fixed) == len(rest):
        text = " × ".join(str(axis) for axis in fixed)
        return _("%(size)s for each sample", size=text) if tensor.takes_rows else text
    return _("any size for each sample") if tensor.takes_rows else _("any size")


def _values(tensor: Tensor) -> str:
    if tensor.values:
        shown = ", ".join(tensor.values[:_MOST_VALUES])
        left = len(tensor.values) - _MOST_VALUES
        return shown if left <= 0 else _("%(values)s and %(count)s more", values=shown, count=left)
    low, high = (None if each is None else f"{each:g}" for each in (tensor.low, tensor.high))
    if low is not None and high is not None:
        return _("%(low)s to %(high)s", low=low, high=high)
    if low is not None:
        return _("%(low)s or more", low=low)
    return _("%(high)s or less", high=high) if high is not None else ""


def _optype(tensor: Tensor) -> str:
    return str(_OPTYPES.get(tensor.optype, tensor.optype))
