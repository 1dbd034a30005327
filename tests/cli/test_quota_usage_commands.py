"""`apportion quota` and `apportion usage`: what is typed, and what is shown of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services._proto.apportion.v1 import common_pb2, registry_pb2, scheduler_pb2
from services.cli.commands import quota, usage
from services.cli.errors import CommandError


@pytest.mark.parametrize(
    ("text", "size"), [("500M", 500 << 20), ("2G", 2 << 30), ("1.5k", 1536), ("2GiB", 2 << 30), ("77", 77), ("9B", 9)]
)
def test_bytes_are_typed_with_a_unit_or_without(text: str, size: int) -> None:
    assert quota.size("memory_bytes", text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "2X", "nan", "inf"])
def test_what_is_no_number_above_nothing_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(CommandError, match="memory_bytes"):
        quota.size("memory_bytes", text)


def test_limits_are_shown_with_what_is_used_of_them() -> None:
    held = registry_pb2.Quota(
        millirequests_per_s=1500, burst=3, device_ms=60_000, device_interval_s=600, stored_bytes=2048
    )
    use = scheduler_pb2.QuotaUse(asked_millirequests_per_s=900, limit_device_ms=60_000, device_left_ms=59_000)
    lines = {each.quota: (each.limit, each.used) for each in quota.with_use(quota.limits_of(held), 1024, use)}
    assert lines == {
        "requests_per_s": ("1.5 (burst 3)", "0.9 asked for"),
        "device_time": ("60 s in 600 s", "1.000 s"),
        "stored_bytes": ("2.0 KiB", "1.0 KiB"),
    }
    assert [each.used for each in quota.with_use(quota.limits_of(held), 1024, None)] == ["", "", "1.0 KiB"]


def share(millidevices: int) -> common_pb2.Share:
    return common_pb2.Share(millidevices=millidevices)


def replica(tenant: str, lane: int, granted: int) -> scheduler_pb2.ReplicaReport:
    key = common_pb2.ModelKey(tenant=tenant, name="m")
    return scheduler_pb2.ReplicaReport(key=key, lane=lane, bandwidth=share(granted))


def test_an_operator_sees_who_is_oversold_idle_or_beyond_a_quota() -> None:
    report = scheduler_pb2.ExecutorReport(
        replicas=[replica("short", 0, 100), replica("short", 0, 100), replica("still", 0, 200), replica("loud", 0, 0)]
    )
    status = scheduler_pb2.TenantStatus
    fleet = scheduler_pb2.GetFleetResponse(
        executors=[scheduler_pb2.ExecutorStatus(executor_id="e", attached=True, report=report)],
        tenants=[
            status(tenant="short", reservation=share(300), used_ppm=5),
            status(tenant="still", reservation=share(200)),
            status(tenant="homeless", reservation=share(100)),
            status(tenant="loud", used_ppm=9),
        ],
    )
    loud = scheduler_pb2.QuotaUse(
        tenant="loud",
        limit_millirequests_per_s=1000,
        asked_millirequests_per_s=9000,
        limit_device_ms=5,
        device_left_ms=-1,
    )
    found = {each.tenant: each for each in quota.reviewed(fleet, [loud])}
    assert found["short"].why.startswith("oversold")
    assert found["short"].granted == 100, "replicas of one lane share a grant"
    assert found["still"].why.startswith("idle")
    assert found["homeless"].why.startswith("idle")
    assert "over its rate: 9 of 1 requests/s" in found["loud"].why
    assert "over its device time" in found["loud"].why
    assert quota.capacity(fleet) == 1000


def row(hour: int, tenant: str = "t", cost: int | None = 10**9, requests: int = 1) -> registry_pb2.UsageRow:
    made = registry_pb2.UsageRow(
        key=common_pb2.ModelKey(tenant=tenant, name="m"),
        device_kind="cpu",
        counts=registry_pb2.UsageCounts(device_ns=10**9, requests=requests),
        whole_device_ns=5 * 10**8,
        cost_nanos=cost,
    )
    made.hour.FromDatetime(datetime(2026, 11, 21, hour, tzinfo=UTC))
    return made


def test_hours_are_summed_by_day_or_in_all() -> None:
    rows = [row(3), row(4), row(4, "u")]
    (t, u) = usage.summed(rows, "day")
    assert (t.period, t.tenant, t.requests, t.device_seconds, t.lane_seconds, t.cost) == (
        "2026-11-21",
        "t",
        2,
        1.0,
        2.0,
        2.0,
    )
    assert (u.tenant, u.cost) == ("u", 1.0)
    assert [each.period for each in usage.summed(rows, "hour")] == [
        "2026-11-21T03:00Z",
        "2026-11-21T04:00Z",
        "2026-11-21T04:00Z",
    ]


def test_a_sum_of_which_a_part_had_no_price_has_none() -> None:
    (found,) = usage.summed([row(3), row(4, cost=None), row(5)], "total")
    assert found.cost is None


@pytest.mark.parametrize("text", ["2026-11-21", "2026-11-21T00", "2026-11-21T00:00Z"])
def test_moments_are_typed_as_days_or_hours(text: str) -> None:
    assert usage.moment("since", text) == datetime(2026, 11, 21, tzinfo=UTC)


def test_what_is_no_moment_is_refused_in_one_line() -> None:
    with pytest.raises(CommandError, match="--since"):
        usage.moment("since", "yesterday")
