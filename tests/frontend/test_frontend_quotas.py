"""A tenant's gate at one frontend: the generic cell rate algorithm, slots, device time, and what holds without a lease."""

from __future__ import annotations

import grpc
import pytest
from frontend_fakes import FakeExecutor, infer_request
from frontend_world import Start
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from services._proto.apportion.v1 import registry_pb2, scheduler_pb2
from services.frontend import reporting
from services.frontend.core.gate import MICRO, NEVER_NS, SECOND_NS, Gate, Lease, Quota, Terms
from services.frontend.core.gates import PENDING_NS, Gates, Limits, details, part

MS = 1_000_000


def full(terms: Terms, now_ns: int = 0) -> Gate:
    """A gate that has everything saved up."""
    gate = Gate(Terms(), now_ns)
    gate.take(Lease(terms, terms, mint=terms.burst), NEVER_NS, now_ns)
    return gate


def most_beyond(admitted: list[int], per_s: float) -> float:
    """By how much the admissions within any window exceed what the rate brings in it."""
    best, beyond = 0.0, 0.0
    for count, at in enumerate(admitted, 1):
        # How many up to here, less what the rate has brought: the window that began at the least of it is the worst.
        brought = at * per_s / SECOND_NS
        best = max(best, brought - (count - 1))
        beyond = max(beyond, best + count - brought)
    return beyond


waits = st.lists(st.integers(0, 400 * MS), max_size=120)


@given(waits, st.integers(1, 500 * MICRO), st.integers(1, 20))
def test_no_window_admits_more_than_the_burst_and_what_the_rate_brings(steps, rate, burst):
    gate, now, admitted = full(Terms(rate, burst * MICRO)), 0, []
    for step in steps:
        now += step
        while gate.enter(now) is None:
            gate.leave()
            admitted.append(now)
    assert most_beyond(admitted, rate / MICRO) <= burst + 1e-6


@given(waits, st.integers(1, 500), st.integers(1, 20))
def test_it_admits_what_a_bucket_of_tokens_would(steps, per_s, burst):
    gate, now, tokens = full(Terms(per_s * MICRO, burst * MICRO)), 0, float(burst)
    for step in steps:
        now += step
        tokens = min(burst, tokens + step * per_s / SECOND_NS)
        if abs(tokens - round(tokens)) < 1e-3:
            # Rounding decides such a moment, in favour of the quota.
            return
        assert (gate.enter(now) is None) == (tokens >= 1)
        tokens -= tokens >= 1


@given(st.lists(st.tuples(st.integers(0, 300 * MS), st.integers(1, 50), st.integers(1, 10)), max_size=40))
def test_leases_that_change_make_no_requests(changes):
    gate, now, admitted = full(Terms(10 * MICRO, 3 * MICRO)), 0, []
    fastest, largest = 10, 3
    for step, per_s, burst in changes:
        now += step
        while gate.enter(now) is None:
            gate.leave()
            admitted.append(now)
        terms = Terms(per_s * MICRO, burst * MICRO)
        before = gate.tokens(now)
        gate.take(Lease(terms, terms), NEVER_NS, now)
        assert gate.tokens(now) <= before
        fastest, largest = max(fastest, per_s), max(largest, burst)
    assert most_beyond(admitted, fastest) <= largest + 1e-6


def test_a_caller_who_waits_as_long_as_he_is_told_is_admitted():
    gate = full(Terms(4 * MICRO, 2 * MICRO))
    assert [gate.enter(0) for _ in range(3)] == [None, None, Quota.RATE]
    wait_ns = gate.wait_ns(0)
    assert gate.enter(wait_ns - 1) is Quota.RATE
    assert gate.enter(wait_ns) is None


def test_as_many_requests_wait_for_their_answer_as_there_are_slots():
    gate = Gate(Terms(concurrent=2), 0)
    assert [gate.enter(0) for _ in range(3)] == [None, None, Quota.CONCURRENT]
    gate.leave()
    assert gate.enter(0) is None
    assert gate.demand(SECOND_NS).concurrent == 3, "two in flight, and one that was refused"


def test_device_time_is_over_after_as_many_requests_as_the_lease_says():
    gate = Gate(Terms(device_requests=2), 0)
    assert [gate.enter(0) for _ in range(3)] == [None, None, Quota.DEVICE]
    gate.take(Lease(Terms(device_requests=1), Terms()), NEVER_NS, 0)
    assert [gate.enter(0) for _ in range(2)] == [None, Quota.DEVICE]


def test_a_lease_that_has_run_out_leaves_an_even_part_until_it_is_renewed():
    gates = Gates(unleased=100_000)
    gates.replace({"t": Limits(rate=100 * MICRO, burst=10)}, 0)
    whole, even = Terms(100 * MICRO, 10 * MICRO), Terms(25 * MICRO, 2 * MICRO)
    gates.take({"t": Lease(whole, even)}, 3 * SECOND_NS, 0)
    gate = gates.get("t")
    assert gate is not None
    assert gate.terms == whole
    gate.enter(3 * SECOND_NS)
    assert gate.terms == even
    gates.take({}, 9 * SECOND_NS, 4 * SECOND_NS)
    gate.enter(5 * SECOND_NS)
    assert gate.terms == whole


@given(st.integers(1, 400), st.integers(1, 40))
def test_without_a_scheduler_a_frontend_admits_its_small_part(per_s, burst):
    gates = Gates(unleased=100_000)
    gates.replace({"t": Limits(rate=per_s * MICRO, burst=burst)}, 0)
    gate, admitted = gates.get("t"), []
    assert gate is not None
    for at in range(0, 5 * SECOND_NS, 20 * MS):
        while gate.enter(at) is None:
            gate.leave()
            admitted.append(at)
    assert len(admitted) <= per_s * 5 / 10 + max(1, burst / 10)


def test_a_quota_that_is_new_limits_nothing_until_its_lease_comes_or_is_late():
    gates = Gates(unleased=100_000)
    gates.take({}, 10 * SECOND_NS, 0)
    gates.change({"t": Limits(concurrent=10)}, (), SECOND_NS)
    gate = gates.get("t")
    assert gate is not None
    assert all(gate.enter(SECOND_NS) is None for _ in range(50))
    assert gate.enter(SECOND_NS + PENDING_NS) is Quota.CONCURRENT
    assert gates.hungry


def test_a_tenant_without_a_quota_has_no_gate_and_one_that_loses_it_has_none_any_more():
    gates = Gates(unleased=100_000)
    gates.change({"a": Limits(), "b": Limits(concurrent=1)}, (), 0)
    assert gates.get("a") is None
    assert gates.get("b") is not None
    gates.change({"b": Limits()}, (), 0)
    assert gates.get("b") is None


def test_what_one_has_asked_for_is_told_until_it_is_known_that_he_has_ended():
    gates = Gates(unleased=MICRO)
    gates.replace({"t": Limits(rate=100 * MICRO, burst=10), "quiet": Limits(concurrent=1)}, 0)
    lease = Lease(Terms(100 * MICRO, 10 * MICRO), Terms(100 * MICRO), mint=MICRO)
    gates.take({"t": lease, "quiet": Lease(Terms(concurrent=1), Terms(concurrent=1))}, NEVER_NS, 0)
    gate, now = gates.get("t"), 0
    assert gate is not None
    assert gate.enter(0) is None
    gate.leave()
    told = 0
    for _ in range(30):
        now += SECOND_NS
        demands = gates.demands(now, whole=False)
        assert "quiet" not in demands
        gates.told(demands)
        told += "t" in demands
    assert 2 <= told < 30
    assert gates.demands(now, whole=True).keys() == {"t", "quiet"}


def test_a_part_of_nothing_is_nothing():
    assert part(Limits(rate=MICRO, concurrent=4), 0) == Terms(0, MICRO, 0)
    gate = Gate(part(Limits(rate=MICRO, concurrent=4), 0), 0)
    assert gate.enter(10**15) is not None
    assert details(Quota.RATE, gate, Limits(rate=MICRO), 0)[2] == 1.0


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(reporting.RequestReports.__init__, "__kwdefaults__", {"every_s": 0.05})


@pytest.mark.usefixtures("often")
async def test_a_caller_beyond_its_quota_is_told_the_quota_its_limit_its_use_and_when_to_come_back(start: Start):
    world = await start(FakeExecutor())
    quota = registry_pb2.Quota(millirequests_per_s=2000, burst=2)
    world.frontend.quotas.change([registry_pb2.Tenant(name="default", quota=quota)], ())
    lease = Lease(Terms(2 * MICRO, 2 * MICRO), Terms(2 * MICRO, 2 * MICRO), mint=2 * MICRO)
    world.frontend.quotas.gates.take({"default": lease}, NEVER_NS, 0)
    refused = None
    for _ in range(4):
        try:
            await world.stub.ModelInfer(infer_request("m"))
        except grpc.RpcError as error:
            refused = error
    assert refused is not None
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = status_pb2.Status.FromString(dict(refused.trailing_metadata())["grpc-status-details-bin"])
    info, failure, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.QuotaFailure(),
        error_details_pb2.RetryInfo(),
    )
    unpacked = [any(detail.Unpack(kind) for detail in status.details) for kind in (info, failure, retry)]
    assert unpacked == [True, True, True]
    assert info.reason == "QUOTA_EXCEEDED"
    assert info.metadata["quota"] == "requests_per_s"
    assert info.metadata["limit"] == "2 requests/s (burst 2)"
    assert "requests/s at this frontend" in info.metadata["use"]
    (violation,) = failure.violations
    assert (violation.subject, violation.quota_metric) == ("tenant:default", "requests_per_s")
    assert 0 < retry.retry_delay.ToNanoseconds() <= 0.5e9
    gate = world.frontend.quotas.gates.get("default")
    assert gate is not None
    assert gate.in_flight == 0


@pytest.mark.usefixtures("often")
async def test_a_frontend_asks_for_leases_acts_by_them_and_gives_them_back_when_it_stops(start: Start):
    world = await start(FakeExecutor())
    reports = world.mesh.request_reports
    world.mesh.leases = [scheduler_pb2.QuotaLease(tenant="default", concurrent=3, static_concurrent=1)]
    quota = registry_pb2.Quota(concurrent_requests=3)
    world.frontend.quotas.change([registry_pb2.Tenant(name="default", quota=quota)], ())
    gate = world.frontend.quotas.gates.get("default")
    assert gate is not None
    await world.until(lambda: any(each.demands and each.demands[0].unleased for each in reports))
    await world.until(lambda: gate.lease is not None)
    assert gate.terms.concurrent == 3
    seen = len(reports)
    await world.until(lambda: len(reports) > seen + 1)
    assert not reports[-1].leases_whole
    assert reports[-1].leases_serial > 0
    await world.frontend._reports.leave()
    assert any(each.leaving for each in reports)
