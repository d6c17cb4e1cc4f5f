"""Where the pages of a model are, and what stands above each of them.

A user's model is at /ui/models/OWNER/NAME, one of the operators at /ui/models/-/NAME: no user is called so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import quote

from flask_babel import gettext as _

from gateway import clock
from gateway.context import services
from gateway.operations.access import Can
from gateway.operations.host_models import HostModel
from gateway.operations.models import Found
from gateway.pages.frame import me

HOST = "-"
LIST = "/ui/models"
FORMATS: Mapping[str, str] = {
    "onnx": "ONNX",
    "pmml": "PMML",
    "python": "Python",
    "torchscript": "TorchScript",
    "torch_export": "torch.export",
}
"""What formats are called."""


@dataclass(frozen=True, slots=True)
class Tab:
    """`here`: it is looked at."""

    key: str
    name: str
    where: str
    picture: str
    here: bool


@dataclass(frozen=True, slots=True)
class Head:
    """What stands above a page of a model. `called`: its name in a path of `/v1`. `found`: a user's model, or `host`: the operators'."""

    owner: str | None
    name: str
    where: str
    called: str
    tabs: tuple[Tab, ...]
    can: Can
    found: Found | None = None
    host: HostModel | None = None

    @property
    def may_change(self) -> bool:
        return Can.CHANGE in self.can

    @property
    def may_own(self) -> bool:
        """Delete it, and say who sees it."""
        return Can.OWN in self.can


def place(owner: str | None, name: str, tab: str = "") -> str:
    """The address of a model's page. `owner` None: of the operators'. `tab`: "" (the overview), versions, about, test or use."""
    where = f"{LIST}/{quote(owner or HOST, safe='')}/{quote(name, safe='')}"
    return f"{where}/{tab}" if tab else where


def called(owner: str | None, name: str) -> str:
    """What `/v1` calls it, for anybody who may see it."""
    return f"{owner}.{name}" if owner else name


def purged(deleted_at: str) -> str:
    """When what was deleted then is gone for good."""
    return clock.to_text(clock.from_text(deleted_at) + timedelta(days=services().settings.purge_after_days))


def model_at(owner: str, name: str, wanted: Can = Can.READ) -> Found | HostModel:
    """The model of an address. Raises model_not_found, also for what may not be seen, forbidden, and what the host says of one of its
    own that does not serve."""
    if owner == HOST:
        return services().host_models.find(me(), name)
    return services().library.find(me(), called(owner, name), wanted)


def model_head(found: Found | HostModel, tab: str = "") -> Head:
    """For models/tabs.html. `tab` as in `place`."""
    if isinstance(found, HostModel):
        owner, name, can = None, found.name, Can.READ | Can.CALL
    else:
        owner, name, can = found.model.owner, found.model.name, found.can
    known = (
        ("", _("Overview"), "schema"),
        ("versions", _("Versions"), "versions"),
        ("about", _("About"), "file-text"),
        ("test", _("Test"), "flask"),
        ("use", _("Use"), "code"),
    )
    # an operators' model has neither history nor card; trying a user's is for those who may change it
    hidden = ("versions", "about") if owner is None else () if Can.CHANGE in can else ("test",)
    tabs = tuple(Tab(key, text, place(owner, name, key), picture, key == tab) for key, text, picture in known if key not in hidden)
    of_user, of_host = (None, found) if isinstance(found, HostModel) else (found, None)
    return Head(owner, name, place(owner, name), called(owner, name), tabs, can, of_user, of_host)
