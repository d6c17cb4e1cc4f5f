"""The composition of the gateway: what a process owns, and the application over it."""

from collections.abc import Sequence
from functools import partial
from threading import BoundedSemaphore

from flask import Flask

from gateway import clock
from gateway.bells import Bell
from gateway.blueprints import (
    admin_platform,
    admin_users,
    api_keys,
    batches,
    deployment_predictions,
    deployments,
    errors,
    form_accounts,
    form_api,
    form_deployments,
    form_models,
    form_tasks,
    golden,
    health,
    metrics,
    model_tests,
    models,
    openapi,
    openid,
    predictions,
    requests,
    scripts,
    tasks,
    teams,
    tokens,
    uploads,
    users,
    v2,
    v2_run_time,
    webhooks,
)
from gateway.context import EXTENSION, RECONCILER, Services
from gateway.hot_routes import HotRoutes
from gateway.metrics import Metrics
from gateway.models_rpc import Models
from gateway.operations import quotas
from gateway.operations.access import Access
from gateway.operations.credentials import Credentials
from gateway.operations.deployed import Deployed
from gateway.operations.deployment_statistics import Collector
from gateway.operations.tokens import Tokens
from gateway.operations.users import Users
from gateway.pages import (
    account,
    account_access,
    account_webhooks,
    admin,
    admin_people,
    admin_records,
    assets,
    choices,
    components,
    deployment_making,
    deployment_script,
    deployment_settings,
    deployment_use,
    frame,
    home,
    languages,
    model_about,
    model_calls,
    model_graph,
    model_overview,
    model_versions,
    templating,
    welcome,
)
from gateway.pages import accounts as account_pages
from gateway.pages import batches as batch_pages
from gateway.pages import deployment as deployment_page
from gateway.pages import deployments as deployment_pages
from gateway.pages import models as model_pages
from gateway.pages import openid as openid_pages
from gateway.pages import talk as talk_pages
from gateway.pages import tasks as task_pages
from gateway.pages import teams as team_pages
from gateway.query_strings import AsciiRequest
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.url_rules import QuickRule
from gateway.waiters import Waiters
from idl.trace_control import Followed
from idl.trace_export import make_tracer, version
from idl.traces import Tracer
from inference_client import Client, Tls

_BLUEPRINTS = (
    admin_platform,
    admin_users,
    api_keys,
    batches,
    deployment_predictions,
    deployments,
    errors,
    form_accounts,
    form_api,
    form_deployments,
    form_models,
    form_tasks,
    golden,
    health,
    metrics,
    model_tests,
    models,
    openapi,
    openid,
    predictions,
    scripts,
    tasks,
    teams,
    tokens,
    uploads,
    users,
    v2,
    v2_run_time,
    webhooks,
)
_PAGES = (
    account,
    account_access,
    account_pages,
    account_webhooks,
    admin,
    admin_people,
    admin_records,
    assets,
    batch_pages,
    choices,
    components,
    deployment_making,
    deployment_page,
    deployment_pages,
    deployment_script,
    deployment_settings,
    deployment_use,
    home,
    model_about,
    model_calls,
    model_graph,
    model_overview,
    model_pages,
    model_versions,
    openid_pages,
    talk_pages,
    task_pages,
    team_pages,
    welcome,
)
_LEAST_MESSAGE_BYTES = 64 << 20
"""What a picture becomes, and what a model answers, may be larger than the body that it came in."""


def build_services(
    settings: Settings, models: Models, metrics: Metrics | None = None, now: clock.Clock = clock.now, tracer: Tracer | None = None
) -> Services:
    """What one process owns; whoever builds it closes it."""
    storage = Storage(settings.state_dir)
    bell = Bell(settings.run_dir)
    storage.quotas.defaults = quotas.defaults(settings)
    users = Users(storage, settings, now, bell.ring)
    return Services(
        settings,
        storage,
        models,
        users,
        Credentials(storage, users, now),
        Tokens(storage, users, settings, now),
        metrics or Metrics(),
        BoundedSemaphore(max(1, settings.threads // 2)),
        bell,
        Waiters(storage.task_marks, settings.max_streams),
        Deployed(storage, models, Access(storage), partial(bell.ring, RECONCILER), settings.threads // 2, now),
        Collector(storage, models, settings, now),
        tracer=tracer,
        now=now,
    )


def default_services(settings: Settings, metrics: Metrics | None = None) -> Services:
    """The same with a way to the model hosts that the settings name."""
    control = Followed(settings.lanes) if settings.lanes else None  # of the model host here, where it says which requests are traced
    tracer = make_tracer(
        settings.trace_endpoint, settings.trace_rate, "outboard-gateway", version(), metrics.spans_path if metrics else None, control
    )
    return build_services(settings, Models(settings.model_hosts, partial(_connect, settings, tracer)), metrics, tracer=tracer)


def message_limit(settings: Settings) -> int:
    """Most bytes of a request to a model host, and of its answer."""
    return max(settings.max_body_bytes, _LEAST_MESSAGE_BYTES)


def _connect(settings: Settings, tracer: Tracer | None, addresses: Sequence[str]) -> Client:
    limit = message_limit(settings)
    files = (settings.model_host_ca, settings.model_host_certificate, settings.model_host_key)
    tls = Tls(*(file or None for file in files)) if any(files) else None
    return Client(
        addresses, token=settings.model_host_token, timeout_s=settings.request_timeout_s, max_message_bytes=limit, tls=tls, tracer=tracer
    )


def create_app(settings: Settings, *, services: Services | None = None, hot: bool = True) -> Flask:
    """The application over `services`, or over its own. `hot` False: Flask answers inference as well."""
    app = Flask("gateway", static_folder=None)
    app.request_class = AsciiRequest
    app.url_rule_class = QuickRule
    app.config.update(
        MAX_CONTENT_LENGTH=settings.max_body_bytes,
        MAX_FORM_MEMORY_SIZE=settings.max_body_bytes,
        # An exception must never become a traceback in the answer, whatever FLASK_DEBUG says.
        DEBUG=False,
        TESTING=False,
        PROPAGATE_EXCEPTIONS=False,
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions[EXTENSION] = services = services or default_services(settings)
    requests.watch(app)
    errors.handle(app, frame.missing_page)
    languages.prepare(app)
    templating.prepare(app)
    for module in (*_BLUEPRINTS, *_PAGES):
        app.register_blueprint(module.blueprint)
    if hot:
        app.wsgi_app = HotRoutes(app.wsgi_app, services)  # type: ignore[method-assign]
    return app
