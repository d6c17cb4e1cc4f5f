"""Looking through deployments: those that somebody may see, a page at a time, with what each of them did lately."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gateway.operations import deployment_statistics
from gateway.operations.access import Access, Can, Shared
from gateway.storage import Storage
from gateway.storage.deployment_lists import ORDERS, Browsed, Key
from gateway.storage.deployment_statistics import HOUR, MINUTE
from gateway.storage.deployments import DeploymentRecord
from gateway.types import Principal


@dataclass(frozen=True, slots=True)
class Listed:
    """A deployment, what the caller can do with it, and what it did in the last hour: see `deployment_statistics.told`."""

    record: DeploymentRecord
    can: Can
    did: Mapping[str, Any]

    def may(self, verb: str) -> bool:
        """For templates: read, call, change, own or operate."""
        return Can[verb.upper()] in self.can


def browse(
    storage: Storage,
    access: Access,
    principal: Principal,
    wanted: Browsed,
    key: Key | None,
    limit: int,
    now_s: float,
    *,
    backwards: bool = False,
) -> list[Listed]:
    """Of `wanted` only the filters and the order count. `now_s`: seconds since the epoch."""
    teams = storage.teams.roles_of(principal.user_id)
    wanted = replace(wanted, user_id=principal.user_id, teams=teams.keys(), everything=principal.may_operate)
    records = storage.deployments.page(wanted, key, limit, backwards=backwards)
    did = storage.deployment_statistics.since([record.id for record in records], int(now_s) // MINUTE * MINUTE - HOUR)
    return [
        Listed(
            record,
            access.of(principal, Shared(record.owner_id, record.visibility, record.team_id)),
            deployment_statistics.told(did[record.id]) if record.id in did else {},
        )
        for record in records
    ]


def key_of(order: str, record: DeploymentRecord) -> Key:
    """Where a page in this order ends that ends with `record`."""
    first = {"name": record.name.lower(), "called": record.last_call_at or ""}.get(order, "") if ORDERS[order][0] else ""
    return first, record.id
