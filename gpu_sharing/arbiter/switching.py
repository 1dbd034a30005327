"""Who gets the next slice? PURE."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from gpu_sharing.arbiter.batches import BatchInFlight, Plan
from gpu_sharing.arbiter.batching import Batching
from gpu_sharing.arbiter.calls import Call, Tier
from gpu_sharing.arbiter.lines import Line, Paced
from gpu_sharing.arbiter.order import rank, turn
from gpu_sharing.arbiter.replicas import IN_FLIGHT_PER_REPLICA
from gpu_sharing.arbiter.request import Request
from gpu_sharing.arbiter.servers import AHEAD, SCALE, Server
from gpu_sharing.arbiter.state import LaneState
from gpu_sharing.units import Nanoseconds

__all__ = ["IN_FLIGHT_PER_REPLICA", "ArrivalOrder", "Choice", "EarliestDeadline", "Switching"]


class Choice(NamedTuple):
    """work: a batch to go on with, or one to form. tier: on whose account its next slice goes."""

    work: BatchInFlight | Plan
    tier: Tier


class Switching(Protocol):
    """Answers the question, at every boundary."""

    def place(self, request: Request) -> Any:
        """The request's place among its tenant's on the same terms, least first: a total order."""
        ...

    def touch(self, server: Server, lane: LaneState, now: Nanoseconds) -> None:
        """The server's situation has changed."""
        ...

    def forget(self, server: Server) -> None:
        """The server is gone."""
        ...

    def choose(self, lane: LaneState, batching: Batching, now: Nanoseconds) -> Choice | None:
        """Whose slice runs now; None where there is nothing to do."""
        ...


class EarliestDeadline:
    """Servers with guaranteed work by the deadlines of their budgets; then surplus by weights; then gaps, by weights too.

    The surplus goes to the server whose next batch would end first in virtual time, which is device time beyond the
    reservation over the weight (start-time fair queueing, Goyal, Vin and Cheng, SIGCOMM 1996, here by finish tags, so that
    batches are not cut up among equals): whoever was idle starts at the virtual time of what runs. What is guaranteed takes
    part in it while its reservation's pace does not allow it yet.
    max_in_flight bounds the lane's batches that are in flight from surplus and gaps.
    """

    def __init__(self, max_in_flight: int = 8) -> None:
        """Raises ValueError for a bound below 1."""
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight: must be at least 1, is {max_in_flight}")
        self.max_in_flight = max_in_flight
        self._guaranteed = Paced()
        self._surplus = Line()
        self._gaps = Line()
        # What servers were about to do within their reservations, until something about them changes.
        self._postponed: dict[int, BatchInFlight | Plan] = {}

    def place(self, request: Request) -> Any:
        """See `Switching`."""
        return rank(request)

    def touch(self, server: Server, lane: LaneState, now: Nanoseconds) -> None:
        """See `Switching`."""
        self._postponed.pop(server.number, None)
        self._file(server, now)
        if not server.wants_more:
            # Who did not want the surplus has no claim on what the others had of it meanwhile.
            server.virtual = max(server.virtual, lane.virtual)
        _tag(self._surplus, server, server.next_beyond)
        _tag(self._gaps, server, server.next_gap)

    def forget(self, server: Server) -> None:
        """See `Switching`."""
        self._postponed.pop(server.number, None)
        for line in (self._guaranteed, self._surplus, self._gaps):
            line.discard(server)

    def choose(self, lane: LaneState, batching: Batching, now: Nanoseconds) -> Choice | None:
        """See `Switching`."""
        return (
            self._of_guaranteed(lane, batching, now)
            or self._of_surplus(lane, batching, now)
            or self._of_gaps(lane, batching, now)
        )

    def _file(self, server: Server, now: Nanoseconds) -> None:
        claim = server.claim()
        if claim is None:
            self._guaranteed.discard(server)
        else:
            start, deadline = claim
            self._guaranteed.put(start - AHEAD, deadline, server, now)

    def _of_guaranteed(self, lane: LaneState, batching: Batching, now: Nanoseconds) -> Choice | None:
        first = self._guaranteed.first(now)
        while first is not None:
            deadline, server = first
            work = self._postponed.pop(server.number, None) or _planned(server.next_guaranteed, lane, batching, now)
            covered = server.cover(work)
            # All that it is going to do now has to be paid for: others may be due before that.
            if covered is not None and (covered <= deadline or self._stays_first(server, now)):
                return Choice(work, Tier.GUARANTEED)
            self._file(server, now)
            self._postponed[server.number] = work
            first = self._guaranteed.first(now)
        return None

    def _stays_first(self, server: Server, now: Nanoseconds) -> bool:
        """Whether it would be first by what it claims now. Its place is left as it is: after its slice it gets another."""
        claim = server.claim()
        return claim is not None and claim[0] - AHEAD <= now and self._guaranteed.is_before_others(claim[1])

    def _of_surplus(self, lane: LaneState, batching: Batching, now: Nanoseconds) -> Choice | None:
        while (first := self._surplus.first()) is not None:
            server = first[1]
            work = server.next_beyond
            if isinstance(work, Call) and work.tier is Tier.SURPLUS:
                if now + work.alone + lane.promised_wait(work.alone, now) > work.due:
                    lane.demote(work, now)
                    continue
                if lane.unguaranteed >= self.max_in_flight:
                    return _finish_one(lane)
            lane.virtual = max(lane.virtual, server.virtual)
            return Choice(_planned(work, lane, batching, now), Tier.SURPLUS)
        return None

    def _of_gaps(self, lane: LaneState, batching: Batching, now: Nanoseconds) -> Choice | None:
        first = self._gaps.first()
        if first is None:
            return None
        server = first[1]
        if isinstance(server.next_gap, Call) and lane.unguaranteed >= self.max_in_flight:
            return _finish_one(lane)
        lane.virtual = max(lane.virtual, server.virtual)
        return Choice(_planned(server.next_gap, lane, batching, now), Tier.GAP)


class ArrivalOrder:
    """Whoever came first, and each batch to its end: no tenant is anything special. The baseline of benchmarks."""

    def __init__(self) -> None:
        self._line = Line()

    def place(self, request: Request) -> Any:
        """See `Switching`."""
        return turn(request)

    def touch(self, server: Server, lane: LaneState, now: Nanoseconds) -> None:  # noqa: ARG002 - time matters to others
        """See `Switching`."""
        heads = [waiting.head for waiting in server.waiting]
        place = min((head.place for head in heads if head is not None), default=None)
        if place is None:
            self._line.discard(server)
        else:
            self._line.put(place, server)

    def forget(self, server: Server) -> None:
        """See `Switching`."""
        self._line.discard(server)

    def choose(self, lane: LaneState, batching: Batching, now: Nanoseconds) -> Choice | None:
        """See `Switching`."""
        for batch in lane.batches.values():
            if not batch.sealed:
                return Choice(batch, batch.tier)
        first = self._line.first()
        if first is None:
            return None
        heads = [waiting.head for waiting in first[1].waiting]
        head = min((head for head in heads if head is not None), key=lambda call: call.place)
        return Choice(batching.plan(head, lane, now), head.tier)


def _planned(
    work: BatchInFlight | Call | None, lane: LaneState, batching: Batching, now: Nanoseconds
) -> BatchInFlight | Plan:
    """What is done next: a batch that goes on, or one to form around a call. AssertionError where that is nothing."""
    if work is None:
        raise AssertionError("a server is in line for nothing")
    return batching.plan(work, lane, now) if isinstance(work, Call) else work


def _finish_one(lane: LaneState) -> Choice | None:
    """Too many are in flight: the most urgent of them goes on; None where all have been launched to their ends."""
    batch = min(
        (each for each in lane.batches.values() if each.tier is not Tier.GUARANTEED and not each.sealed),
        key=lambda each: (each.tier, each.urgency, each.number),
        default=None,
    )
    return None if batch is None else Choice(batch, batch.tier)


def _tag(line: Line, server: Server, work: BatchInFlight | Call | None) -> None:
    """Puts it in line by the virtual time at which it would have done this."""
    if work is None:
        line.discard(server)
    else:
        line.put(server.virtual + _needs(work) * SCALE // server.weight, server)


def _needs(work: BatchInFlight | Call) -> Nanoseconds:
    return work.left if isinstance(work, BatchInFlight) else work.cost
