"""What the scheduler tells Prometheus."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, generate_latest

from services.scheduler.core.catalogue import Key
from services.scheduler.core.reports import Device, Hello, Lane, LaneReport, Ref, ReplicaReport, Report, Seen
from services.scheduler.core.scheduler import ExecutorView, FleetView, TenantView, UnplacedView
from services.scheduler.core.usage import Used
from services.scheduler.metrics import SchedulerCollector


def view() -> FleetView:
    key = Key("search", "embedder")
    device = Device("cpu", 2, 0, (Lane(0, 0, 2),))
    report = Report(
        (ReplicaReport(1, Ref(key, 1, "sha256:" + 64 * "0"), 0, Seen.READY),),
        (LaneReport(0, busy_ppm=250_000, waiting_requests=3),),
    )
    here = ExecutorView(Hello("one", "a", "127.0.0.1:1", device), report, attached=True)
    gone = ExecutorView(Hello("two", "b", "127.0.0.1:2", device), Report(), attached=False)
    return FleetView(
        (here, gone),
        (TenantView("search", 250, 1, Used(), used_ppm=100_000),),
        (UnplacedView(key, 2, "no room"),),
    )


async def test_a_scrape_tells_the_fleet_as_the_scheduler_knows_it() -> None:
    registry = CollectorRegistry()
    registry.register(SchedulerCollector(view, lambda: True))
    text = (await asyncio.to_thread(generate_latest, registry)).decode()
    lines = {line for line in text.splitlines() if not line.startswith("#")}
    assert lines >= {
        "apportion_scheduler_catalogue_known 1.0",
        'apportion_scheduler_executors{state="attached"} 1.0',
        'apportion_scheduler_executors{state="gone"} 1.0',
        'apportion_scheduler_replicas{state="ready"} 1.0',
        'apportion_scheduler_replicas{state="failed"} 0.0',
        'apportion_scheduler_unplaced_versions{model="embedder",tenant="search"} 1.0',
        'apportion_scheduler_lane_busy_ratio{executor="one",lane="0"} 0.25',
        'apportion_scheduler_lane_waiting_requests{executor="one",lane="0"} 3.0',
        'apportion_scheduler_reserved_devices{tenant="search"} 0.25',
        'apportion_scheduler_used_devices{tenant="search"} 0.1',
    }
