"""A frontend's cores keep nothing of models that are gone."""

from __future__ import annotations

import asyncio

from services._proto.apportion.v1 import common_pb2, registry_pb2, scheduler_pb2
from services.common.access.keys import Keys
from services.common.channel import connect
from services.common.telemetry import Tracer
from services.frontend.accounting import Accounts
from services.frontend.core.routes import Link
from services.frontend.core.routing import RoutingTable
from services.frontend.core.verdict import OK
from services.frontend.reporting import RequestReports
from services.frontend.watches import CatalogueWatch, RoutesWatch
from tests.reachable import grown, reachable

TENANT = "search"


class Scheduler:
    """Answers reports."""

    async def ReportRequests(
        self, _request: scheduler_pb2.ReportRequestsRequest, **_: object
    ) -> scheduler_pb2.ReportRequestsResponse:
        return scheduler_pb2.ReportRequestsResponse(epoch=1)


def changes(
    number: int, *, gone: bool
) -> tuple[registry_pb2.WatchCatalogueResponse, scheduler_pb2.WatchRoutesResponse]:
    """What the registry and the scheduler tell of a model that has come, or gone."""
    key = common_pb2.ModelKey(tenant=TENANT, name=f"model-{number:05}")
    catalogue, routes = registry_pb2.CatalogueChanges(), scheduler_pb2.RouteChanges()
    if gone:
        catalogue.removed_models.append(key)
        routes.removed.append(key)
    else:
        versions = [registry_pb2.ModelVersion(version=1)]
        catalogue.models.append(registry_pb2.Model(key=key, versions=versions))
        replica = scheduler_pb2.ReplicaRoute(replica_id=number, executor_id="gpu-0", address="gpu-0:1")
        version = scheduler_pb2.VersionRoute(version=1, state=scheduler_pb2.VERSION_STATE_READY, replicas=[replica])
        splits = [scheduler_pb2.RouteSplit(version=1, ppm=1_000_000)]
        routes.routes.append(scheduler_pb2.ModelRoute(key=key, versions=[version], splits=splits))
    return (
        registry_pb2.WatchCatalogueResponse(revision=2 * number + gone, changes=catalogue),
        scheduler_pb2.WatchRoutesResponse(epoch=1, revision=2 * number + gone, changes=routes),
    )


async def test_a_frontend_keeps_nothing_of_models_that_are_gone() -> None:
    async with connect("127.0.0.1:1") as channel:
        table, keys = RoutingTable(lambda _: Link.UP), Keys()
        accounts = Accounts(Tracer("frontend", None), 0.0)
        reports = RequestReports("front", accounts, channel)
        reports._stub = Scheduler()  # type: ignore[assignment]
        catalogue = CatalogueWatch(keys, table, channel, lambda: None)
        routes = RoutesWatch(table, channel, lambda: accounts.keep(table.has))

        async def lives(number: int) -> None:
            come, told = changes(number, gone=False)
            catalogue.apply(come)
            routes.apply(told)
            name = f"model-{number:05}"
            route = table.route(TENANT, name)
            table.replica(route, table.version(route, ""))
            table.report(number, 1, 1)
            accounts.counts(TENANT, name).outcomes[OK] = 1
            accounts.triton.close((TENANT, name, 1), OK, 1_000_000, None)
            await reports.report()
            gone, told = changes(number, gone=True)
            catalogue.apply(gone)
            routes.apply(told)

        sizes = []
        for number in range(2000):
            await lives(number)
            if number in (500, 1000, 1500, 1999):
                # Counts of the gone are looked for each time that there are twice as many: so many are kept at the most.
                accounts._looked_at = 0
                accounts.keep(table.has)
                await reports.report()
                sizes.append(reachable(table, keys, accounts, reports._told, catalogue.platforms))
        assert max(each.objects for each in sizes) <= min(each.objects for each in sizes) + 20, grown(
            sizes[0], sizes[-1]
        )
        assert sizes[-1].size_bytes <= sizes[0].size_bytes + 8192, grown(sizes[0], sizes[-1])
        await asyncio.sleep(0)


def test_between_two_looks_a_frontend_keeps_few_counts_of_models_that_are_gone() -> None:
    accounts = Accounts(Tracer("frontend", None), 0.0)
    most = 0
    for number in range(2000):
        accounts.counts(TENANT, f"model-{number:05}")
        accounts.triton.close((TENANT, f"model-{number:05}", 1), OK, 1_000_000, None)
        accounts.keep(lambda *_: False)
        most = max(most, len(accounts.by_model()))
    assert most <= 65
