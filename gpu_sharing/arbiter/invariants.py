"""What must hold of an arbiter's state after every event. PURE."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_sharing.arbiter.batches import BatchInFlight
from gpu_sharing.arbiter.calls import Call, State, Tier
from gpu_sharing.arbiter.replicas import IN_FLIGHT_PER_REPLICA, Replica
from gpu_sharing.arbiter.state import LaneState


def check(lane: LaneState, out: Sequence[BatchInFlight]) -> None:
    """Raises AssertionError unless every call is in exactly one place and all books add up. out: of each slice that is."""
    places = [call for server in lane.tenancy.servers.values() for waiting in server.waiting for call in waiting]
    if any(call.state is not State.WAITING for call in places):
        raise AssertionError("a call in a queue does not wait")
    _check_replicas(lane, places)
    places += [call for batch in lane.batches.values() for call in batch.calls]
    numbers = [call.request.call for call in places]
    if sorted(numbers) != sorted(lane.calls) or any(lane.calls[call.request.call] is not call for call in places):
        raise AssertionError(f"calls {sorted(lane.calls)} are known, {sorted(numbers)} have a place")
    for batch in out:
        if lane.batches.get(batch.number) is not batch:
            raise AssertionError(f"batch {batch.number} runs and is not in flight")
    for batch in lane.batches.values():
        slices = sum(each is batch for each in out)
        if batch.out != slices:
            raise AssertionError(f"batch {batch.number}: {batch.out} slices out counted, {slices} are")
        if batch.sealed and not batch.out:
            raise AssertionError(f"batch {batch.number} takes no more slices, and has none out")
        _check_batch(batch, is_running=slices > 0)
    lane.tenancy.check_invariants()
    for server in lane.tenancy.servers.values():
        server.check_invariants()
    _check_sums(lane)


def _check_replicas(lane: LaneState, waiting: list[Call]) -> None:
    for replica in lane.tenancy.replicas.values():
        mine = [batch for batch in lane.batches.values() if batch.home is replica]
        counts = (
            sum(call.replica is replica for call in waiting),
            sum(batch.tier is Tier.GUARANTEED for batch in mine),
            sum(batch.tier is not Tier.GUARANTEED for batch in mine),
        )
        if counts != (replica.waiting, replica.guaranteed, replica.unguaranteed):
            counted = (replica.waiting, replica.guaranteed, replica.unguaranteed)
            raise AssertionError(f"replica {replica.replica}: {counted} counted, {counts} there")
        sealed = [batch for batch in mine if batch.sealed]
        if sum(replica.sealed) != len(sealed):
            raise AssertionError(f"replica {replica.replica}: {replica.sealed} sealed counted, {len(sealed)} are")
        if replica.in_flight - len(sealed) > IN_FLIGHT_PER_REPLICA:
            raise AssertionError(f"replica {replica.replica}: {replica.in_flight} batches in flight")


def _check_sums(lane: LaneState) -> None:
    servers = lane.tenancy.servers.values()
    for tier in Tier:
        expected = [batch.expected for batch in lane.batches.values() if batch.tier is tier]
        expected += [call.packed for server in servers for call in server.waiting[tier]]
        by_server = sum(server.expected[tier] for server in servers)
        if not lane.expected[tier] == by_server == sum(expected):
            raise AssertionError(
                f"{tier.name}: {lane.expected[tier]} ns expected, {sum(expected)} ns there, {by_server} ns"
            )
    bandwidth = sum(server.granted for server in servers if server.has(Tier.GUARANTEED))
    weight = sum(server.weight for server in servers if server.has(Tier.SURPLUS))
    if (bandwidth, weight) != (lane.busy_bandwidth, lane.busy_weight):
        raise AssertionError(
            f"busy: {lane.busy_bandwidth} and {lane.busy_weight} counted, {bandwidth} and {weight} there"
        )
    if lane.unguaranteed != sum(batch.tier is not Tier.GUARANTEED for batch in lane.batches.values()):
        raise AssertionError(f"{lane.unguaranteed} batches in flight beyond reservations counted")
    used = sum(tenant.device_ns for tenant in lane.tenancy.statistics())
    if used != lane.busy_ns:
        raise AssertionError(f"the lane was busy for {lane.busy_ns} ns, tenants used {used} ns")


def _check_batch(batch: BatchInFlight, *, is_running: bool) -> None:
    requests = [call.request for call in batch.calls]
    if not requests or {request.replica for request in requests} != {batch.replica}:
        raise AssertionError(f"batch {batch.number} holds calls of other replicas: {requests}")
    if len({request.shape_key for request in requests}) != 1:
        raise AssertionError(f"batch {batch.number} joins different shapes: {requests}")
    rows = sum(request.rows for request in requests)
    most: Replica = batch.home
    if rows != batch.rows or (len(requests) > 1 and rows > most.max_batch_size):
        raise AssertionError(
            f"batch {batch.number} of {batch.rows} rows holds {rows}, of {most.max_batch_size} at most"
        )
    if any(call.state not in (State.RUNNING, State.DOOMED) or call.batch != batch.number for call in batch.calls):
        raise AssertionError(f"batch {batch.number} holds a call that does not ride in it")
    if batch.is_abandoned and not is_running:
        raise AssertionError(f"batch {batch.number} goes on for nobody")
