"""Arbiters that are wrong in one way each, by the name of what is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest

from gpu_sharing.arbiter.admission import Reservations, is_late
from gpu_sharing.arbiter.batching import LargestInTime, Together
from gpu_sharing.arbiter.budget import Budget, Piece
from gpu_sharing.arbiter.calls import Call, Tier
from gpu_sharing.arbiter.foresight import Foresight
from gpu_sharing.arbiter.grants import Grants
from gpu_sharing.arbiter.servers import Server
from gpu_sharing.arbiter.state import LaneState
from gpu_sharing.arbiter.switching import Choice, EarliestDeadline
from gpu_sharing.arbiter.tenancy import Tenancy

Patch = pytest.MonkeyPatch
MUTANTS: dict[str, Callable[[Patch], None]] = {}


def mutant(install: Callable[[Patch], None]) -> Callable[[Patch], None]:
    MUTANTS[install.__name__] = install
    return install


@mutant
def deadline_not_postponed_on_overrun(patch: Patch) -> None:
    """An overrun is paid with time that was never bought."""

    def postpone(self: Budget, cost: int) -> bool:
        start = self.next_use[0] if self.next_use is not None else self.finish
        self._pieces.appendleft(Piece(start, cost, start, self._rate, 0))
        self.left += cost
        return True

    patch.setattr(Budget, "postpone", postpone)
    patch.setattr(Budget, "beyond", lambda self, cost: (0, self.next_use[0] if self.next_use else self.finish))


@mutant
def surplus_counted_as_guaranteed(patch: Patch) -> None:
    """Whoever has a reservation is guaranteed everything."""
    right = Reservations.judge

    def judge(self: Reservations, call: Call, lane: LaneState, now: int) -> Any:
        verdict = right(self, call, lane, now)
        return Tier.GUARANTEED if verdict is Tier.SURPLUS and lane.server(call).granted else verdict

    patch.setattr(Reservations, "judge", judge)


@mutant
def earliest_deadline_replaced_by_order_of_arrival(patch: Patch) -> None:
    """Servers with guaranteed work take turns as they come."""
    stamps = itertools.count()

    def file(self: EarliestDeadline, server: Server, now: int) -> None:
        if server.claim() is None:
            self._guaranteed.discard(server)
            first_come.pop(server.number, None)
        else:
            self._guaranteed.put(0, first_come.setdefault(server.number, next(stamps)), server, now)

    first_come: dict[int, int] = {}
    patch.setattr(EarliestDeadline, "_file", file)
    patch.setattr(Server, "cover", lambda self, work: 0)


@mutant
def no_preemption_at_boundaries(patch: Patch) -> None:
    """A batch that has begun runs to its end."""
    right = EarliestDeadline.choose

    def choose(self: EarliestDeadline, lane: LaneState, batching: Any, now: int) -> Choice | None:
        for batch in lane.batches.values():
            return Choice(batch, batch.tier)
        return right(self, lane, batching, now)

    patch.setattr(EarliestDeadline, "choose", choose)


@mutant
def budget_never_replenished(patch: Patch) -> None:
    """What a reservation has been used for counts against it for ever."""
    patch.setattr(Budget, "buy", lambda self, cost, now: self._append(cost))

    def finish_after(self: Budget, cost: int, now: int) -> int | None:
        self._keep_time(now)
        return None if self.bandwidth <= 0 else self.finish + self.capacity * 20 * cost // self.bandwidth

    patch.setattr(Budget, "finish_after", finish_after)


@mutant
def unused_time_is_saved_up(patch: Patch) -> None:
    """A reservation that was not used is owed later, all at once."""
    patch.setattr(Budget, "buy", lambda self, cost, now: self._append(cost))

    def finish_after(self: Budget, cost: int, now: int) -> int | None:
        self._keep_time(now)
        return None if self.bandwidth <= 0 else self.finish + self.capacity * cost // self.bandwidth

    patch.setattr(Budget, "finish_after", finish_after)


@mutant
def bandwidth_per_replica_rather_than_tenant(patch: Patch) -> None:
    """Each replica brings a reservation of its own."""
    right = Tenancy.revise

    def revise(self: Tenancy, server: Server, now: int) -> list[Server]:
        serving = server.serving
        whole = min(self.capacity, sum(replica.bandwidth for replica in serving))
        kept = [(replica, replica.bandwidth) for replica in serving]
        for replica in serving:
            replica.bandwidth = whole
        try:
            return right(self, server, now)
        finally:
            for replica, bandwidth in kept:
                replica.bandwidth = bandwidth

    patch.setattr(Tenancy, "revise", revise)


@mutant
def revocation_missing(patch: Patch) -> None:
    """Surplus that has no time left is left to wait."""

    def admitted(self: Reservations, call: Call, lane: LaneState, now: int) -> Iterable[Any]:
        return ()

    patch.setattr(Reservations, "admitted", admitted)


@mutant
def late_work_is_started(patch: Patch) -> None:
    """Deadlines are looked at when requests come, and never again."""
    from gpu_sharing.arbiter import core

    patch.setattr(core, "is_late", lambda request, now: is_late(request, now) and now == request.arrived)


@mutant
def batches_whatever_is_due(patch: Patch) -> None:
    """As many as fit, whoever becomes late."""

    def fits(self: LargestInTime, together: Together, predicted: int | None, lane: LaneState, now: int) -> bool:
        return True

    patch.setattr(LargestInTime, "fits", fits)


@mutant
def weights_ignored(patch: Patch) -> None:
    """What is left over is divided by heads."""
    right = Tenancy.add

    def add(self: Tenancy, added: Any, now: int) -> Server:
        return right(self, msgspec.structs.replace(added, weight=1), now)

    patch.setattr(Tenancy, "add", add)


@mutant
def more_is_granted_than_there_is(patch: Patch) -> None:
    """Reservations are promised to everyone who asks."""
    patch.setattr(Grants, "free_for", lambda self, holder: 10 * self.capacity)


@mutant
def idle_tenants_collect_a_claim_on_the_surplus(patch: Patch) -> None:
    """Who was away has all that it missed before anyone else has more."""
    patch.setattr(Server, "wants_more", property(lambda self: True))


@mutant
def a_cancelled_request_keeps_its_budget(patch: Patch) -> None:
    """What was bought for it is lost."""
    patch.setattr(Server, "give_back", lambda self, cost: self.budget.use(cost))


@mutant
def riders_are_paid_by_the_reservation(patch: Patch) -> None:
    """Surplus rides with guaranteed requests at the reservation's expense."""
    right = LargestInTime.fits

    def fits(self: LargestInTime, together: Together, predicted: int | None, lane: LaneState, now: int) -> bool:
        whole = sum(call.cost for call in together.calls)
        return right(self, together._replace(alone=whole), predicted, lane, now)

    patch.setattr(LargestInTime, "fits", fits)


@mutant
def a_broken_batch_takes_all_its_requests_along(patch: Patch) -> None:
    """One request fails everybody who rode with it."""
    from gpu_sharing.arbiter import core

    patch.setattr(core, "survivors", lambda batch, now: [])


@mutant
def a_broken_batch_runs_again_together(patch: Patch) -> None:
    """What broke it breaks it again."""
    right = Call.run_again

    def run_again(self: Call) -> None:
        kind = self.kind
        right(self)
        self.kind = kind

    patch.setattr(Call, "run_again", run_again)


@mutant
def what_runs_again_is_paid_by_nobody(patch: Patch) -> None:
    """It waits within the reservation, whether that pays for it or not."""
    from gpu_sharing.arbiter import core

    patch.setattr(core, "terms", lambda call, admission, lane, now: Tier.GUARANTEED)


@mutant
def nothing_is_learnt_from_surplus_that_was_late(patch: Patch) -> None:
    """Waits are expected to be as they were always expected to be."""
    patch.setattr(Foresight, "factor", lambda self, now: 1.0)
