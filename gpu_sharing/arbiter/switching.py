"""Which batch gets the next slice: one in flight, or one still to be formed? PURE."""

from __future__ import annotations

from collections.abc import Collection

from gpu_sharing.arbiter.batches import BatchInFlight
from gpu_sharing.arbiter.replicas import ReplicaQueue

IN_FLIGHT_PER_REPLICA = 2
"""So that a replica's urgent request need not wait behind its own large batch. Activations are reserved for this many."""


class EarliestObjective:
    """The most urgent, at every boundary; what is in flight wins ties, since its activations take memory.

    max_in_flight bounds the batches of the lane that are suspended or running.
    """

    def __init__(self, max_in_flight: int = 8, per_replica: int = IN_FLIGHT_PER_REPLICA) -> None:
        self.max_in_flight = max_in_flight
        self.per_replica = per_replica

    def choose(
        self, in_flight: Collection[BatchInFlight], queues: Collection[ReplicaQueue]
    ) -> BatchInFlight | ReplicaQueue | None:
        """A batch to go on with, or a queue to form one from; None where there is nothing to do."""
        running = min(in_flight, key=_age, default=None)
        if len(in_flight) >= self.max_in_flight:
            return running
        open_queues = (queue for queue in queues if queue.waiting and queue.in_flight < self.per_replica)
        waiting = min(open_queues, key=_first, default=None)
        if running is None or (waiting is not None and waiting.urgency < running.urgency):
            return waiting
        return running


def _age(batch: BatchInFlight) -> tuple[object, int]:
    return (batch.urgency, batch.number)


def _first(queue: ReplicaQueue) -> tuple[object, ...]:
    head = queue.head
    return (queue.urgency, head.arrived, head.call)
