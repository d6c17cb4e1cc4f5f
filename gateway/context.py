"""All ambient state of a request, in one typed file: the process's services, the request's id, and who asks."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import cast

from flask import current_app, g, request

from gateway import clock, wsgi_request
from gateway.bells import Bell
from gateway.metrics import Metrics
from gateway.models_rpc import Models
from gateway.operations.access import Access
from gateway.operations.browsers import SESSION, Browsers
from gateway.operations.credentials import Credentials
from gateway.operations.deployed import Deployed
from gateway.operations.deployment_changes import Deployments
from gateway.operations.deployment_statistics import Collector
from gateway.operations.dialogues import Dialogues
from gateway.operations.host_models import HostModels
from gateway.operations.mail import Mail
from gateway.operations.model_tests import ModelTests
from gateway.operations.models import Library
from gateway.operations.script_trials import ScriptTrials
from gateway.operations.scripts import Scripts
from gateway.operations.tasks import Tasks
from gateway.operations.tokens import Tokens
from gateway.operations.users import Users
from gateway.operations.webhooks import Webhooks
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.types import Principal, Role
from gateway.waiters import Waiters
from idl.codes import Code, ServingError
from idl.traces import Tracer

__all__ = [
    "Models",
    "Principal",
    "Role",
    "Services",
    "client_address",
    "principal",
    "request_id",
    "required_principal",
    "services",
]

EXTENSION = "outboard"
RECONCILER = "deployments"
"""What the task worker calls the part that makes model hosts agree with what is wanted."""
REQUEST_ID_HEADER = "X-Request-Id"
FORM_TOKEN = "X-Form-Token"


def _no_connection() -> int:
    return -1


@dataclass(frozen=True, slots=True)
class Services:
    """What one gateway process owns. `streams`: of its threads those that may be in a stream of answers. `bell` wakes the jobs of the task worker; `waiters` holds connections that wait for tasks, and `detach` gives it a copy of the descriptor of this thread's. `deployed` remembers who may call which deployment, `collector` looks at what they did. `connection`: the descriptor of the connection that this thread's request came on, -1: not known."""

    settings: Settings
    storage: Storage
    models: Models
    users: Users
    credentials: Credentials
    tokens: Tokens
    metrics: Metrics
    streams: BoundedSemaphore
    bell: Bell
    waiters: Waiters
    deployed: Deployed
    collector: Collector
    connection: Callable[[], int] = _no_connection
    detach: Callable[[], int] | None = None
    tracer: Tracer | None = None
    now: clock.Clock = clock.now

    @property
    def access(self) -> Access:
        """The rule of who may do what."""
        return Access(self.storage)

    @property
    def browsers(self) -> Browsers:
        """Sessions of browsers."""
        return Browsers(self.storage, self.users, self.settings, self.now)

    @property
    def mail(self) -> Mail:
        """The way out of the outbox."""
        return Mail(self.storage, self.settings, self.now)

    @property
    def library(self) -> Library:
        """The verbs on models of users."""
        return Library(self.storage, self.models, self.access, self.settings, self.now)

    @property
    def model_tests(self) -> ModelTests:
        """Models that are tried before they are deployed."""
        return ModelTests(self.storage, self.models, self.library, self.settings, self.now)

    @property
    def host_models(self) -> HostModels:
        """The operators' models."""
        return HostModels(self.models, self.storage)

    @property
    def dialogues(self) -> Dialogues:
        """Whom one can talk to."""
        return Dialogues(self.storage, self.deployments, self.deployed, self.host_models)

    @property
    def deployments(self) -> Deployments:
        """The verbs on deployments."""
        return Deployments(self.storage, self.models, self.access, self.nudge, self.now)

    @property
    def scripts(self) -> Scripts:
        """The verbs on scripts."""
        return Scripts(self.storage, self.models, self.now)

    @property
    def script_trials(self) -> ScriptTrials:
        """Scripts that are tried before they are kept."""
        return ScriptTrials(self.models, self.settings, self.deployments, self.scripts, self.model_tests)

    def nudge(self) -> None:
        """Something is wanted of a deployment: the reconciler looks at once."""
        self.bell.ring(RECONCILER)

    @property
    def tasks(self) -> Tasks:
        """The verbs on tasks."""
        return Tasks(self.storage, self.settings, self.bell, self.now)

    @property
    def webhooks(self) -> Webhooks:
        """The verbs on webhooks."""
        return Webhooks(self.storage, self.settings, self.bell, self.now)

    def close(self) -> None:
        self.waiters.close()
        self.deployed.errors.close()
        self.models.close()
        self.bell.close()
        if self.tracer is not None:
            self.tracer.close()
        self.storage.close()


def services() -> Services:
    return cast(Services, current_app.extensions[EXTENSION])


def request_id() -> str:
    """This request's id: in the answer, in the log, and in the call to the model host."""
    if "request_id" not in g:
        g.request_id = wsgi_request.request_id(request.environ)
    return cast(str, g.request_id)


def client_address() -> str:
    """The address that the request came from, "" where there is none. nginx puts it where a direct connection has it."""
    return request.remote_addr or ""


def principal() -> Principal | None:
    """Who asks, None for a request without a token. Raises unauthenticated for a token that is not valid (any more).

    A page's script asks with the cookie of its browser; for what changes something it shows its form token as well, or it is forbidden.
    """
    if "principal" not in g:
        owned = services()
        found = wsgi_request.principal(request.environ, owned.tokens)
        if found is None and (cookie := request.cookies.get(SESSION)):
            found = owned.browsers.principal(cookie)
            if found is not None and request.method not in ("GET", "HEAD"):
                owned.browsers.check_form(found.session, request.headers.get(FORM_TOKEN, ""))
        g.principal = found
    return cast("Principal | None", g.principal)


def required_principal() -> Principal:
    """Who asks. Raises unauthenticated where nobody is signed in."""
    caller = principal()
    if caller is None:
        raise ServingError(Code.UNAUTHENTICATED, "this needs a token: Authorization: Bearer <access token>")
    return caller
