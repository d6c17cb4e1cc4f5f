"""An address of every page: the rules of the pages themselves, and what stands here for those with a value in them.

test_every_page.py looks at all of them, and refuses a rule that has no example.
"""

from gateway.application import create_app
from gateway.settings import Settings
from tests.e2e.pages.conftest import Site

ADMINISTRATORS = (
    "/ui/components",
    "/ui/admin",
    "/ui/admin/users",
    "/ui/admin/users/<name>",
    "/ui/admin/invitations",
    "/ui/admin/hosts",
    "/ui/admin/models",
    "/ui/admin/deployments",
    "/ui/admin/tasks",
    "/ui/admin/audit",
    "/ui/admin/outbox",
    "/ui/admin/storage",
)
"""Pages that only an administrator sees; the others are looked at as the owner of what `seed` made."""
ANYONES = ("/", "/ui/sign-in", "/ui/register", "/ui/verify", "/ui/reset", "/ui/offline", "/ui/<path:anything>")
"""Pages that need no sign-in."""
PIECES = (
    "/ui/home/now",
    "/ui/models/<owner>/<name>/result",
    "/ui/form-token",
    "/ui/service-worker.js",
    "/ui/sign-in/openid",
    "/ui/sign-in/openid/back",
    "/ui/tasks/now",
    "/ui/tasks/<task_id>/now",
    "/ui/tasks/<task_id>/notices",
    "/ui/batches/now",
    "/ui/batches/expected",
    "/ui/batches/<batch_id>/now",
    "/ui/static/<path:name>",
    "/ui/idl/<name>",
    "/ui/models/<owner>/<name>/graph",
    "/ui/deployments/<name>/now",
    "/ui/deployments/new/models",
    "/ui/deployments/new/versions",
    "/ui/deployments/fit",
    "/ui/deployments/<name>/settings/now",
    "/ui/deployments/<name>/settings/fit",
    "/ui/deployments/<name>/golden",
    "/ui/deployments/<name>/golden/<request_name>",
    "/ui/deployments/<name>/failed",
    "/ui/avatars/<name>",
    "/ui/admin/now",
    "/ui/admin/hosts/now",
    "/ui/account/webhooks/<webhook_id>/log",
)
"""What is no page of its own: fetched by pages, by their scripts, or a file."""


def examples(site: Site) -> dict[str, str]:
    """An address for every rule with a value in it, or that means more with a query."""
    model = f"/ui/models/{site.owner.name}/m"
    return {
        "/ui/deployments/<name>": f"/ui/deployments/{site.owner.name}.d?range=15m",
        "/ui/deployments/<name>/try": f"/ui/deployments/{site.owner.name}.d/try",
        "/ui/deployments/<name>/use": f"/ui/deployments/{site.owner.name}.d/use",
        "/ui/deployments/<name>/script": f"/ui/deployments/{site.owner.name}.d/script?before=1&after=2",
        "/ui/account/webhooks/<webhook_id>": f"/ui/account/webhooks/{site.webhook}",
        "/ui/admin/users/<name>": f"/ui/admin/users/{site.owner.name}",
        "/ui/teams/<team>": "/ui/teams/crew",
        "/ui/models/<owner>/<name>/versions": f"{model}/versions",
        "/ui/models/<owner>/<name>/versions/new": f"{model}/versions/new",
        "/ui/models/<owner>/<name>/about": f"{model}/about",
        "/ui/models/<owner>/<name>/edit": f"{model}/edit",
        "/ui/tasks": f"/ui/tasks?deployment={site.owner.name}.d",
        "/ui/tasks/<task_id>": f"/ui/tasks/{site.task}",
        "/ui/batches/new": f"/ui/batches/new?deployment={site.owner.name}.d",
        "/ui/batches/<batch_id>": f"/ui/batches/{site.batch}",
        "/ui/batches/<batch_id>/failures": f"/ui/batches/{site.batch}/failures",
        "/ui/batches/<batch_id>/summary": f"/ui/batches/{site.batch}/summary",
        "/ui/verify": "/ui/verify?email=a@example.org",
        "/ui/dialogue": "/ui/dialogue?with=dialogue",
        "/ui/<path:anything>": "/ui/nowhere",
        "/ui/deployments/new": "/ui/deployments/new?model=m",
        "/ui/deployments/<name>/settings": f"/ui/deployments/{site.owner.name}.d/settings",
        "/ui/models/<owner>/<name>": model,
        "/ui/models/<owner>/<name>/test": f"{model}/test",
        "/ui/models/<owner>/<name>/use": f"{model}/use",
    }


def rules(settings: Settings) -> list[str]:
    """Of every page."""
    app = create_app(settings)
    try:
        found = {rule.rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("pages_") and "GET" in (rule.methods or ())}
    finally:
        app.extensions["outboard"].close()
    return sorted(found - set(PIECES))


def addresses(site: Site, found: list[str]) -> dict[str, str]:
    """By rule. Fails for one without an example."""
    known = examples(site)
    missing = [rule for rule in found if "<" in rule and rule not in known]
    assert not missing, f"no example in tests/e2e/pages/examples.py for {missing}"
    return {rule: known.get(rule, rule) for rule in found}
