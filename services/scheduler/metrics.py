"""What the scheduler knows of the fleet as Prometheus metrics: one frozen view, taken on the loop that owns the state."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.scheduler.core.reports import Seen
from services.scheduler.core.scheduler import FleetView

PATIENCE_S = 5.0
"""How long a scrape waits for the loop."""
_LANE = ("executor", "lane")


class SchedulerCollector(Collector):
    """fleet: takes the view, on the loop. known: whether the catalogue has been heard of. Built where the loop runs."""

    def __init__(self, fleet: Callable[[], FleetView], known: Callable[[], bool]) -> None:
        self._fleet, self._known = fleet, known
        self._loop = asyncio.get_running_loop()

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering it would otherwise ask the loop that registers it."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The fleet at this moment. Called by the metrics thread, never on the loop."""
        view, known = asyncio.run_coroutine_threadsafe(self._view(), self._loop).result(PATIENCE_S)
        yield GaugeMetricFamily("apportion_scheduler_catalogue_known", "Whether the catalogue is known.", float(known))
        yield from _executors(view)
        yield from _lanes(view)
        yield from _tenants(view)

    async def _view(self) -> tuple[FleetView, bool]:
        return self._fleet(), self._known()


def _executors(view: FleetView) -> Iterator[Metric]:
    executors = GaugeMetricFamily("apportion_scheduler_executors", "Executors by whether they are attached.", labels=("state",))  # fmt: skip
    attached = sum(each.attached for each in view.executors)
    executors.add_metric(("attached",), attached)
    executors.add_metric(("gone",), len(view.executors) - attached)
    replicas = GaugeMetricFamily("apportion_scheduler_replicas", "Replicas as their executors report them.", labels=("state",))  # fmt: skip
    states = Counter(replica.state for each in view.executors for replica in each.report.replicas)
    for state in Seen:
        if state is not Seen.ABSENT:
            replicas.add_metric((state.value,), states[state])
    unplaced = GaugeMetricFamily(
        "apportion_scheduler_unplaced_versions", "Wanted versions that lack a replica.", labels=("tenant", "model")
    )
    for key, count in Counter(each.key for each in view.unplaced).items():
        unplaced.add_metric((key.tenant, key.name), count)
    yield from (executors, replicas, unplaced)


def _lanes(view: FleetView) -> Iterator[Metric]:
    busy = GaugeMetricFamily("apportion_scheduler_lane_busy_ratio", "Device time in use at the last report.", labels=_LANE)  # fmt: skip
    waiting = GaugeMetricFamily("apportion_scheduler_lane_waiting_requests", "Requests that wait on a lane.", labels=_LANE)  # fmt: skip
    for each in view.executors:
        for lane in each.report.lanes if each.attached else ():
            key = (each.hello.executor_id, str(lane.lane))
            busy.add_metric(key, lane.busy_ppm / 1e6)
            waiting.add_metric(key, lane.waiting_requests)
    yield from (busy, waiting)


def _tenants(view: FleetView) -> Iterator[Metric]:
    reserved = GaugeMetricFamily("apportion_scheduler_reserved_devices", "What each tenant is promised.", labels=("tenant",))  # fmt: skip
    used = GaugeMetricFamily("apportion_scheduler_used_devices", "What each tenant uses now.", labels=("tenant",))
    for tenant in view.tenants:
        reserved.add_metric((tenant.name,), tenant.reservation / 1000)
        used.add_metric((tenant.name,), tenant.used_ppm / 1e6)
    yield from (reserved, used)
