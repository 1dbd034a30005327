"""Whether a wish to load or to unload a model has come true, told from the routes."""

from __future__ import annotations

import math

import msgspec

from services.common.errors import Reason, Refusal
from services.frontend.core.routes import Route, State
from services.frontend.core.routing import RoutingTable, unserved

UNHEARD_S = 30.0
"""How long the scheduler may take to decide by a wish: one that has just been started waits for its executors."""
UNPLACED_S = 15.0
"""How long a model may be without a place before that is told: what was unloaded before it finishes what it has."""
FAILING_S = 30.0
"""How long a model that has failed to load is waited for: it is tried again elsewhere."""


class Pending(msgspec.Struct, frozen=True):
    """Not yet. refusal: what is lacking; patience_s: for how long in a row that may be so before it is the answer."""

    refusal: Refusal
    patience_s: float = math.inf


def loading(table: RoutingTable, tenant: str, model: str, revision: int) -> Pending | None:
    """What still keeps a model from serving with all its wanted versions; None once nothing does.

    revision: the catalogue's at which it was wished; 0: whatever the routes say now counts.
    """
    route = _route(table, tenant, model, revision)
    if isinstance(route, Pending):
        return route
    for version in route.versions.values():
        if version.state is State.LOADING:
            return Pending(unserved(route, version), FAILING_S if version.message else math.inf)
        if version.state is State.UNPLACED:
            return Pending(unserved(route, version), UNPLACED_S)
        if version.state is State.UNLOADED:
            # Decided by this wish or a later one: somebody has unloaded it since.
            return Pending(unserved(route, version), 0 if route.revision else UNHEARD_S)
    try:
        table.replica(route, table.version(route, ""))
    except Refusal as refusal:
        final = refusal.reason is Reason.MODEL_REFUSED or not route.versions
        return Pending(refusal, 0 if final else UNHEARD_S)
    return None


def unloading(table: RoutingTable, tenant: str, model: str, revision: int) -> Pending | None:
    """What still keeps a model from being unloaded, see `loading`; None once no request is sent to it any more."""
    route = _route(table, tenant, model, revision)
    if isinstance(route, Pending):
        return route
    for version in route.versions.values():
        if version.state not in (State.UNLOADED, State.REFUSED):
            facts = {"model": model, "state": version.state}
            problem = f'model "{model}" is noted as unloaded, and version {version.version} is {version.state}'
            refusal = Refusal(Reason.MODEL_NOT_READY, problem, facts=facts, retry_after_s=1)
            return Pending(refusal, 0 if route.revision else UNHEARD_S)
    return None


def _route(table: RoutingTable, tenant: str, model: str, revision: int) -> Route | Pending:
    """The route that was decided by the wish, or by a later one. A scheduler that tells no revision is taken at its word."""
    try:
        route = table.route(tenant, model)
    except Refusal as refusal:
        return Pending(refusal, UNHEARD_S)
    if not 0 < route.revision < revision:
        return route
    problem = f'model "{model}": the registry has noted it, and the scheduler has not acted on it'
    return Pending(Refusal(Reason.NOT_SERVING, problem, facts={"model": model}, retry_after_s=1), UNHEARD_S)
