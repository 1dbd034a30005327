"""The figures that a fleet comes to, as plain values: what `--json` prints, and what a frame is drawn from."""

from __future__ import annotations

from typing import Any

_PPM = 1_000_000
_PPM_PER_MILLIDEVICE = 1_000

Figures = dict[str, Any]


def figures(fleet: Any, tenant: str | None = None) -> Figures:
    """Executors with their lanes, and tenants with their models. tenant: only this one.

    Devices are fractions of one whole device, `busy` of a lane, `of_reservation` and `attainment` ratios; None: nothing to
    tell, since there is no reservation, or no request with an objective.
    """
    return {
        "epoch": fleet.epoch,
        "executors": [_executor(each) for each in fleet.executors],
        "tenants": [_tenant(each, fleet) for each in fleet.tenants if tenant is None or each.tenant == tenant],
    }


def _executor(executor: Any) -> Figures:
    reports = {lane.lane: lane for lane in executor.report.lanes}
    replicas = [replica.lane for replica in executor.report.replicas]
    return {
        "executor": executor.executor_id,
        "attached": executor.attached,
        "device": executor.device.device_kind,
        "compute_units": executor.device.compute_units,
        "memory_bytes": executor.device.memory_bytes,
        "memory_used_bytes": executor.report.memory_used_bytes,
        "lanes": [
            {
                "lane": lane.lane,
                "compute_units": lane.compute_units,
                "busy": reports[lane.lane].busy_ppm / _PPM if lane.lane in reports and executor.attached else 0.0,
                "waiting": reports[lane.lane].waiting_requests if lane.lane in reports and executor.attached else 0,
                "replicas": replicas.count(lane.lane),
            }
            for lane in executor.device.lanes
        ],
    }


def _tenant(tenant: Any, fleet: Any) -> Figures:
    reserved = tenant.reservation.millidevices
    waiting: dict[str, int] = {}
    for executor in fleet.executors:
        for replica in executor.report.replicas if executor.attached else ():
            if replica.key.tenant == tenant.tenant:
                waiting[replica.key.name] = waiting.get(replica.key.name, 0) + replica.waiting_requests
    return {
        "tenant": tenant.tenant,
        "reserved_devices": reserved / 1000,
        "weight": tenant.weight,
        "of_reservation": tenant.used_ppm / (reserved * _PPM_PER_MILLIDEVICE) if reserved else None,
        **_use(tenant, sum(waiting.values())),
        "models": [{"model": each.key.name, **_use(each, waiting.get(each.key.name, 0))} for each in tenant.models],
    }


def _use(status: Any, waiting: int) -> Figures:
    recent = status.recent
    judged = recent.within + recent.missed
    return {
        "used_devices": status.used_ppm / _PPM,
        "device_s": status.device_ns / 1e9,
        "compute_unit_s": status.compute_unit_ns / 1e9,
        "requests_per_s": recent.requests_per_s,
        "waiting": waiting,
        "in_flight": recent.in_flight,
        "attainment": recent.within / judged if judged else None,
        "p99_ms": recent.p99_us / 1000 if recent.p99_us else None,
        "window_s": recent.window_ms / 1000,
    }
