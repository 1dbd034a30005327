"""What a frontend tells the scheduler of its requests."""

from __future__ import annotations

import grpc
import pytest
from frontend_fakes import FakeExecutor, infer_request
from frontend_world import Start
from hypothesis import given
from hypothesis import strategies as st

from services.frontend import reporting
from services.frontend.accounting import bucket_of
from services.scheduler.core.requests import upper_us


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(reporting.RequestReports.__init__, "__kwdefaults__", {"every_s": 0.05})


async def test_requests_are_reported_once_they_are_over_by_model(start: Start):
    world = await start(FakeExecutor())
    reports = world.mesh.request_reports
    await world.until(lambda: reports)
    assert reports[0].whole
    assert not reports[0].counts
    for _ in range(3):
        await world.stub.ModelInfer(infer_request("m"))
    with pytest.raises(grpc.RpcError):
        await world.stub.ModelInfer(infer_request("nobody has this"))
    await world.until(lambda: any(each.counts and each.counts[0].requests == 3 for each in reports))
    (told,) = next(each for each in reports if each.counts and each.counts[0].requests == 3).counts
    assert (told.key.tenant, told.key.name, told.in_flight) == ("default", "m", 0)
    assert sum(each.count for each in told.latencies) == 3
    assert all(len(each.counts) <= 1 for each in reports), "a model that does not exist has no counts"
    seen = len(reports)
    await world.until(lambda: len(reports) > seen + 2)
    assert not reports[-1].counts, "what has not changed is not told again"


async def test_another_scheduler_is_told_everything_again(start: Start):
    world = await start(FakeExecutor())
    reports = world.mesh.request_reports
    await world.stub.ModelInfer(infer_request("m"))
    await world.until(lambda: len(reports) > 3 and not reports[-1].counts)
    world.mesh.epoch, seen = 2, len(reports)
    await world.until(lambda: any(each.whole and each.counts for each in reports[seen:]))
    seen = len(reports)
    await world.until(lambda: len(reports) > seen + 2)
    assert not reports[-1].whole


async def test_a_scheduler_that_is_down_keeps_no_request_waiting(start: Start):
    world = await start(FakeExecutor())
    await world.mesh.server.stop(0)
    for _ in range(3):
        await world.stub.ModelInfer(infer_request("m"), timeout=5)


@given(st.integers(0, 10**13))
def test_a_time_lies_in_its_bucket(elapsed_ns):
    bucket = bucket_of(elapsed_ns)
    assert elapsed_ns / 1000 <= upper_us(bucket) + 1
    assert bucket == 0 or upper_us(bucket - 1) * 1000 <= elapsed_ns + 1000
