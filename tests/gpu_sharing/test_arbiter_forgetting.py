"""A lane keeps nothing of replicas that are gone."""

from __future__ import annotations

from gpu_sharing.arbiter.events import Arrived, Complete, ReplicaAdded, ReplicaGone, ReplicaRemoved
from gpu_sharing.arbiter.policies import arbiter_of
from gpu_sharing.units import MS, SECOND
from gpu_sharing.worker.boundary import Ran, next_turn, tell
from gpu_sharing.worker.messages import Submit
from tests.reachable import grown, reachable


def test_the_arbiter_keeps_nothing_of_replicas_that_are_gone() -> None:
    arbiter = arbiter_of("reservations", lane=0, queue_limit=64, capacity=1000, quantum_ns=5 * MS)

    def lives(replica: int) -> None:
        now = replica * SECOND
        added = ReplicaAdded(replica, 8, 250, 1, (), "acme" if replica % 2 else "umbrella")
        arbiter.handle(added, now)
        request = Submit(replica, replica, 1, b"", (), (0,), now, now + SECOND, now + 100 * MS)
        arbiter.handle(Arrived(request, "1"), now)
        chosen = next_turn(arbiter, now).slice
        assert chosen is not None
        actions = tell(arbiter, Ran(chosen.batch, 3 * MS, finished=True), now + 3 * MS)
        assert any(isinstance(each, Complete) for each in actions)
        actions = arbiter.handle(ReplicaRemoved(replica, now + 4 * MS), now + 4 * MS)
        assert any(isinstance(each, ReplicaGone) for each in actions)

    for replica in range(1, 101):
        lives(replica)
    before = reachable(arbiter)
    for replica in range(101, 2001):
        lives(replica)
    after = reachable(arbiter)
    assert after.objects <= before.objects + 20, grown(before, after)
    assert after.size_bytes <= before.size_bytes + 4096, grown(before, after)
    assert sum(each.device_ns for each in arbiter.statistics().tenants) == 2000 * 3 * MS
