"""Arbiters that are wrong in one way each: the workloads that find nothing wrong with the real one catch every one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter.admission import BoundedQueue
from gpu_sharing.arbiter.batching import Largest
from gpu_sharing.arbiter.budget import Budget
from gpu_sharing.arbiter.grants import Grants
from gpu_sharing.arbiter.policies import arbiter_of
from gpu_sharing.arbiter.request import NEVER
from gpu_sharing.arbiter.servers import Server
from gpu_sharing.arbiter.switching import Choice, EarliestDeadline
from gpu_sharing.simulation.promise import kept
from gpu_sharing.simulation.run import simulate
from gpu_sharing.simulation.workloads import Chance, promise_workload

WORKLOADS = 1500
MakeArbiter = Callable[[int], Arbiter]
Patch = pytest.MonkeyPatch


def arrival_order(patch: Patch) -> MakeArbiter:
    """Whoever came first goes first, and nobody is promised anything."""
    return lambda lane: arbiter_of("arrival_order", lane=lane)


def nothing_is_guaranteed(patch: Patch) -> MakeArbiter:
    """All is surplus, divided by weights."""
    return lambda lane: Arbiter(lane=lane, admission=BoundedQueue())


def batches_run_to_their_end(patch: Patch) -> MakeArbiter:
    """A boundary changes nothing."""
    right = EarliestDeadline.choose

    def choose(self: EarliestDeadline, lane: Any, batching: Any, now: int) -> Choice | None:
        begun = [batch for batch in lane.batches.values() if batch.started is not None]
        return Choice(begun[0], begun[0].tier) if begun else right(self, lane, batching, now)

    patch.setattr(EarliestDeadline, "choose", choose)
    return lambda lane: Arbiter(lane=lane)


def latest_deadline_first(patch: Patch) -> MakeArbiter:
    """Of those that are promised something, whoever is due last goes first."""
    right = Server.claim

    def claim(self: Server) -> tuple[int, int] | None:
        found = right(self)
        return None if found is None else (found[0], NEVER - found[1])

    patch.setattr(Server, "claim", claim)
    return lambda lane: Arbiter(lane=lane)


def the_largest_batch_whenever_it_is_due(patch: Patch) -> MakeArbiter:
    """Batches are as large as they can be."""
    return lambda lane: Arbiter(lane=lane, batching=Largest())


def idle_time_is_saved_up(patch: Patch) -> MakeArbiter:
    """A reservation that was not used pays for as much later, all at once: the deadlines lie in the past."""
    right = Budget.finish_after
    patch.setattr(Budget, "finish_after", lambda self, cost, now: right(self, cost, min(now, self.finish)))
    patch.setattr(Budget, "buy", lambda self, cost, now: self._append(cost))
    return lambda lane: Arbiter(lane=lane)


def an_overrun_is_free(patch: Patch) -> MakeArbiter:
    """What takes longer than estimated is paid by nobody, so that all the others wait for it."""
    right = Budget.postpone

    def postpone(self: Budget, cost: int) -> bool:
        if not self._pieces or self.bandwidth <= 0:
            return right(self, cost)
        self._pieces[0].left += cost
        self.left += cost
        return True

    patch.setattr(Budget, "postpone", postpone)
    return lambda lane: Arbiter(lane=lane)


def reservations_count_twice(patch: Patch) -> MakeArbiter:
    """Each tenant has twice what it reserved: more than there is."""
    right = Budget.set_bandwidth
    patch.setattr(Budget, "set_bandwidth", lambda self, bandwidth, at, now: right(self, 2 * bandwidth, at, now))
    return lambda lane: Arbiter(lane=lane)


def reservations_count_half(patch: Patch) -> MakeArbiter:
    """Each tenant has half of what it reserved."""
    right = Budget.set_bandwidth
    patch.setattr(Budget, "set_bandwidth", lambda self, bandwidth, at, now: right(self, -(-bandwidth // 2), at, now))
    return lambda lane: Arbiter(lane=lane)


def what_several_pieces_pay_is_due_with_the_first(patch: Patch) -> MakeArbiter:
    """A batch takes time that was bought for later as if it had been bought for now."""

    def cover(self: Budget, cost: int) -> int:
        pieces = self._pieces
        while pieces[0].left < cost and len(pieces) > 1:
            first = pieces.popleft()
            pieces[0].left += first.left
            pieces[0].start, pieces[0].deadline = first.start, first.deadline
        return pieces[0].deadline

    patch.setattr(Budget, "cover", cover)
    return lambda lane: Arbiter(lane=lane)


def a_freed_reservation_is_handed_on_at_once(patch: Patch) -> MakeArbiter:
    """The heir has it while the one who left is still owed what it had bought."""
    right = Grants.grant
    patch.setattr(
        Grants, "grant", lambda self, holder, part, *, finish, now: right(self, holder, part, finish=now, now=now)
    )
    return lambda lane: Arbiter(lane=lane)


def the_newest_of_a_tenant_first(patch: Patch) -> MakeArbiter:
    """Among a tenant's own requests the last one to come goes first."""
    patch.setattr(EarliestDeadline, "place", lambda self, request: (-request.arrived, request.call))
    return lambda lane: Arbiter(lane=lane)


MUTANTS = [
    arrival_order,
    nothing_is_guaranteed,
    batches_run_to_their_end,
    latest_deadline_first,
    the_largest_batch_whenever_it_is_due,
    idle_time_is_saved_up,
    an_overrun_is_free,
    reservations_count_twice,
    reservations_count_half,
    what_several_pieces_pay_is_due_with_the_first,
    a_freed_reservation_is_handed_on_at_once,
    the_newest_of_a_tenant_first,
]


def breaks(seed: int, make: MakeArbiter) -> bool:
    """Whether the promise is broken. A mutant that trips over its own books, or over our audits, is caught too."""
    scenario = promise_workload(Chance(np.random.Generator(np.random.PCG64(seed))))
    try:
        return any(each.broken for each in kept(simulate(scenario, make)))
    except (AssertionError, ValueError):
        return True


@pytest.fixture
def patch() -> Iterator[Patch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_an_arbiter_that_is_wrong_in_one_way_is_caught(mutant: Callable[[Patch], MakeArbiter], patch: Patch) -> None:
    make = mutant(patch)
    caught = next((seed for seed in range(WORKLOADS) if breaks(seed, make)), None)
    assert caught is not None, f"{WORKLOADS} workloads find nothing wrong with: {mutant.__doc__}"
