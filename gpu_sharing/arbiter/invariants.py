"""What must hold of an arbiter's state after every event. PURE."""

from __future__ import annotations

from collections.abc import Mapping

from gpu_sharing.arbiter.batches import BatchInFlight
from gpu_sharing.arbiter.calls import Call, State
from gpu_sharing.arbiter.replicas import ReplicaQueue


def check(
    replicas: Mapping[int, ReplicaQueue],
    calls: Mapping[int, Call],
    batches: Mapping[int, BatchInFlight],
    running: int | None,
) -> None:
    """Raises AssertionError unless every call is in exactly one place and the counts add up."""
    places = [call for queue in replicas.values() for call in queue.everything()]
    places += [call for batch in batches.values() for call in batch.calls]
    numbers = [call.request.call for call in places]
    if sorted(numbers) != sorted(calls) or any(calls[call.request.call] is not call for call in places):
        raise AssertionError(f"calls {sorted(calls)} are known, {sorted(numbers)} have a place")
    if running is not None and running not in batches:
        raise AssertionError(f"batch {running} runs and is not in flight")
    for queue in replicas.values():
        queue.check_invariants()
        in_flight = sum(batch.replica == queue.replica for batch in batches.values())
        if in_flight != queue.in_flight:
            raise AssertionError(f"replica {queue.replica}: {queue.in_flight} batches counted, {in_flight} in flight")
    for batch in batches.values():
        _check_batch(batch, replicas[batch.replica], is_running=batch.number == running)


def _check_batch(batch: BatchInFlight, queue: ReplicaQueue, *, is_running: bool) -> None:
    requests = [call.request for call in batch.calls]
    if not requests or {request.replica for request in requests} != {batch.replica}:
        raise AssertionError(f"batch {batch.number} holds calls of other replicas: {requests}")
    if len({request.shape_key for request in requests}) != 1:
        raise AssertionError(f"batch {batch.number} joins different shapes: {requests}")
    rows = sum(request.rows for request in requests)
    if rows != batch.rows or (len(requests) > 1 and rows > queue.max_batch_size):
        raise AssertionError(
            f"batch {batch.number} of {batch.rows} rows holds {rows}, of {queue.max_batch_size} at most"
        )
    if any(call.state not in (State.RUNNING, State.DOOMED) or call.batch != batch.number for call in batch.calls):
        raise AssertionError(f"batch {batch.number} holds a call that does not ride in it")
    if batch.is_abandoned and not is_running:
        raise AssertionError(f"batch {batch.number} goes on for nobody")
