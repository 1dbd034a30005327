"""Which version and which replica serves a request."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import msgspec

from services.common.errors import Reason, Refusal
from services.frontend.core.routes import Link, Replica, Route, State, Version

PARTS = 1_000_000
STRIDE = 618_033
"""About the golden ratio of PARTS, and prime to it: consecutive requests fall evenly over the splits, each part its due."""
MANY = 8
"""More replicas than these are not all looked at: two of them are."""


class Choice(msgspec.Struct, gc=False):
    """Where a request goes."""

    version: int
    replica: Replica


class RoutingTable:
    """Routes by (tenant, model), in the order of the scheduler's revisions.

    link: how an executor's address can be reached now.
    """

    def __init__(self, link: Callable[[str], Link]) -> None:
        self._link = link
        self._routes: dict[tuple[str, str], Route] = {}
        self._replicas: dict[int, Replica] = {}
        self._shared: dict[tuple[str, str], frozenset[str]] = {}
        self.known = False
        """Whether a whole snapshot has ever been seen."""

    def replace(self, routes: Iterable[Route]) -> None:
        """Takes a whole snapshot in place of what was known."""
        kept = {(route.tenant, route.model): self._adopted(route) for route in routes}
        self._routes, self.known = kept, True
        self._forget_replicas()

    def change(self, routes: Iterable[Route], removed: Iterable[tuple[str, str]]) -> None:
        """Takes one decision's changes: new states of routes, and tombstones."""
        for key in removed:
            self._routes.pop(key, None)
        for route in routes:
            self._routes[route.tenant, route.model] = self._adopted(route)
        self._forget_replicas()

    def share(self, owner: str, model: str, tenants: Iterable[str]) -> None:
        """Says which other tenants a model is shared with; none: with nobody."""
        found = frozenset(tenants)
        if found:
            self._shared[owner, model] = found
        else:
            self._shared.pop((owner, model), None)

    def share_anew(self) -> None:
        """Forgets what is shared: a whole snapshot follows."""
        self._shared.clear()

    def addresses(self) -> set[str]:
        """Executors that some route mentions."""
        return {replica.address for replica in self._replicas.values()}

    def report(self, replica_id: int, waiting_requests: int, expected_wait_us: int) -> None:
        """Takes an executor's word on how busy a replica is."""
        replica = self._replicas.get(replica_id)
        if replica is not None:
            replica.waiting_requests, replica.expected_wait_us = waiting_requests, expected_wait_us

    def models(self, tenant: str) -> list[Route]:
        """A tenant's routes, by name."""
        return sorted((r for r in self._routes.values() if r.tenant == tenant), key=lambda r: r.model)

    def shared(self, tenant: str) -> list[Route]:
        """The routes of others' models that are shared with a tenant, by owner and name."""
        keys = sorted(key for key, tenants in self._shared.items() if tenant in tenants)
        return [self._routes[key] for key in keys if key in self._routes]

    def has(self, tenant: str, model: str, version: int | None = None) -> bool:
        """Whether there is such a model, with this version where one is named."""
        route = self._find(tenant, model)
        return route is not None and (version is None or version in route.versions)

    def route(self, tenant: str, model: str) -> Route:
        """A model's route; `OWNER/MODEL` is another tenant's that is shared with this one.

        Raises Refusal: MODEL_NOT_FOUND, or NOT_SERVING before the first snapshot.
        """
        route = self._find(tenant, model)
        if route is not None:
            return route
        if not self.known:
            raise Refusal(
                Reason.NOT_SERVING, "routes are not known yet: the scheduler has not answered", retry_after_s=1
            )
        # Names of other tenants' models must not be told from names that nobody has.
        raise Refusal(
            Reason.MODEL_NOT_FOUND,
            f'model_name: tenant "{tenant}" has no model "{model}"',
            field="model_name",
            facts={"tenant": tenant, "model": model},
        )

    def _find(self, tenant: str, model: str) -> Route | None:
        route = self._routes.get((tenant, model))
        if route is not None or "/" not in model:
            return route
        owner, _, name = model.partition("/")
        # Asked of what is shared first: whether the owner has such a model makes no difference to anybody else.
        return self._routes.get((owner, name)) if tenant in self._shared.get((owner, name), ()) else None

    def version(self, route: Route, named: str) -> Version:
        """The version that a request gets. named: as the client wrote it; empty: by the splits.

        Raises Refusal: VERSION_NOT_FOUND; MODEL_NOT_READY, MODEL_REFUSED or MODEL_UNPLACED with the scheduler's message.
        """
        if named:
            version = find(route, named)
            if version.state is not State.READY:
                raise unserved(route, version)
            return version
        splits = [(number, part) for number, part in route.splits if _serves(route, number) and part > 0]
        if len(splits) == 1:
            return route.versions[splits[0][0]]
        if not splits:
            raise unserved(route, _speaker(route))
        route.picks += 1
        return route.versions[_by_share(splits, route.picks)]

    def replica(self, route: Route, version: Version, excluded: Collection[int] = ()) -> Replica:
        """The replica that should answer soonest: the least outstanding, ties by its own report, then by id.

        Those behind a broken link come last, for want of others only where the link is being made anew.
        excluded: replica ids that failed this request. Raises Refusal (EXECUTOR_LOST, MODEL_NOT_READY).
        """
        candidates = [r for r in version.replicas if r.replica_id not in excluded]
        if len(candidates) > MANY:
            candidates = _two(candidates, route)
        up = [r for r in candidates if self._link(r.address) is Link.UP]
        usable = up or [r for r in candidates if self._link(r.address) is Link.CONNECTING]
        if usable:
            return min(usable, key=_rank)
        if not candidates:
            raise unserved(route, version)
        raise Refusal(
            Reason.EXECUTOR_LOST,
            f'model "{route.model}": no executor of its {len(version.replicas)} replicas can be reached',
            facts={"model": route.model, "executor": candidates[0].executor_id},
            retry_after_s=1,
        )

    def _adopted(self, route: Route) -> Route:
        """The route with the replicas that are known already, so that their counts live on."""
        versions = {}
        for number, version in route.versions.items():
            replicas = tuple(self._replica(replica) for replica in version.replicas)
            versions[number] = msgspec.structs.replace(version, replicas=replicas)
        route.versions = versions
        before = self._routes.get((route.tenant, route.model))
        if before is not None:
            route.picks = before.picks
        return route

    def _replica(self, told: Replica) -> Replica:
        known = self._replicas.get(told.replica_id)
        if known is None or known.address != told.address:
            self._replicas[told.replica_id] = known = told
        return known

    def _forget_replicas(self) -> None:
        versions = (version for route in self._routes.values() for version in route.versions.values())
        self._replicas = {r.replica_id: r for version in versions for r in version.replicas}


def find(route: Route, named: str) -> Version:
    """The version of that number, written as clients do: "1", "2". Raises Refusal (VERSION_NOT_FOUND)."""
    version = route.versions.get(int(named)) if named.isascii() and named.isdigit() and len(named) < 20 else None
    if version is None or str(version.version) != named:
        held = ", ".join(map(str, route.versions)) or "none"
        raise Refusal(
            Reason.VERSION_NOT_FOUND,
            f'model_version: model "{route.model}" has no version "{named}"; it has {held}',
            field="model_version",
            facts={"model": route.model, "version": named},
        )
    return version


def _serves(route: Route, number: int) -> bool:
    version = route.versions.get(number)
    return version is not None and version.state is State.READY


def _by_share(splits: list[tuple[int, int]], count: int) -> int:
    """The version at the count's place among the splits, which may add up to less than PARTS where some do not serve."""
    place = count * STRIDE % PARTS * sum(part for _, part in splits) // PARTS
    for number, part in splits:
        if place < part:
            return number
        place -= part
    return splits[-1][0]


def _rank(replica: Replica) -> tuple[int, int, int, int]:
    return replica.outstanding, replica.expected_wait_us, replica.waiting_requests, replica.replica_id


def _two(replicas: list[Replica], route: Route) -> list[Replica]:
    """Two different replicas, other ones each time. Source: M. Mitzenmacher, "The Power of Two Choices" (2001)."""
    route.picks += 1
    first = route.picks * STRIDE % len(replicas)
    # The second is a varying, never zero, distance from the first.
    distance = 1 + (route.picks * STRIDE // len(replicas)) % (len(replicas) - 1)
    return [replicas[first], replicas[(first + distance) % len(replicas)]]


def _speaker(route: Route) -> Version:
    """The version whose state tells best why a model does not serve: the one with the largest split, else the highest."""
    for number, _ in sorted(route.splits, key=lambda split: (-split[1], -split[0])):
        if number in route.versions:
            return route.versions[number]
    return route.versions[max(route.versions)] if route.versions else Version(0, State.LOADING, "it has no version yet")


_REASONS = {
    State.LOADING: Reason.MODEL_NOT_READY,
    State.READY: Reason.MODEL_NOT_READY,
    State.REFUSED: Reason.MODEL_REFUSED,
    State.UNPLACED: Reason.MODEL_UNPLACED,
    State.UNLOADED: Reason.MODEL_NOT_READY,
}


def unserved(route: Route, version: Version) -> Refusal:
    """The refusal that says why a version does not serve."""
    facts = {"tenant": route.tenant, "model": route.model, "version": version.version, "state": version.state}
    state = "has no replica to turn to" if version.state is State.READY else f"is {version.state}"
    message = f'model "{route.model}" version {version.version} {state}'
    return Refusal(
        _REASONS[version.state],
        f"{message}: {version.message}" if version.message else message,
        facts=facts,
        retry_after_s=None if version.state in (State.REFUSED, State.UNLOADED) else 1,
    )
