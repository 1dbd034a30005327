"""May this request wait here, and on what terms? PURE."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from gpu_sharing.arbiter.calls import Call, State, Tier
from gpu_sharing.arbiter.request import NEVER, Request
from gpu_sharing.arbiter.state import LaneState
from gpu_sharing.units import Nanoseconds

DEFAULT_QUEUE_LIMIT = 4096
_SPARE = 256


class Refused(NamedTuple):
    """Why not: a reason of the contract, a sentence for people, and the numbers that led to it."""

    reason: str
    message: str
    facts: dict[str, str]


class Admission(Protocol):
    """Answers the question, and who has to go when something has been admitted that needs their time."""

    def judge(self, call: Call, lane: LaneState, now: Nanoseconds) -> Tier | Refused:
        """On what terms the call may wait, or why it may not. The call has been weighed."""
        ...

    def admitted(self, call: Call, lane: LaneState, now: Nanoseconds) -> Iterable[tuple[Call, Refused]]:
        """The call waits now. Those that wait and are to be revoked for it, and why."""
        ...


class BoundedQueue:
    """Admits what is not late yet, while the replica has fewer than `queue_limit` requests waiting, or fewer than its
    own limit. Promises nothing."""

    def __init__(self, queue_limit: int = DEFAULT_QUEUE_LIMIT) -> None:
        """Raises ValueError for a limit below 1."""
        if queue_limit < 1:
            raise ValueError(f"queue_limit: must be at least 1, is {queue_limit}")
        self.queue_limit = queue_limit

    def judge(self, call: Call, lane: LaneState, now: Nanoseconds) -> Tier | Refused:  # noqa: ARG002 - a policy may look
        """See `Admission`."""
        if is_late(call.request, now):
            return late(call.request, now)
        waiting, own = call.replica.waiting, call.replica.queue_limit
        if waiting >= self.queue_limit or waiting >= own > 0:
            most = min(self.queue_limit, own or self.queue_limit)
            message = f"{waiting} requests are waiting for this model; at most {most} may"
            return Refused("OVERLOADED", message, {"waiting": str(waiting), "queue_limit": str(most)})
        return Tier.GAP if call.is_fill else Tier.SURPLUS

    def admitted(self, call: Call, lane: LaneState, now: Nanoseconds) -> Iterable[tuple[Call, Refused]]:  # noqa: ARG002
        """See `Admission`: nobody."""
        return ()


class Reservations(BoundedQueue):
    """Guaranteed, what the tenant's reservation pays for in time; of the rest, what can be in time behind what is promised.

    The reservation is a bucket of device time, and the objective says how deep it may be: a request is guaranteed where the
    deadline that its tenant's budget gives it (`budget.py`) leaves one longest slice until its objective. What could not be in
    time on an idle lane either, and class `batch`, wait for gaps.
    """

    def __init__(self, queue_limit: int = DEFAULT_QUEUE_LIMIT) -> None:
        super().__init__(queue_limit)
        self._latest_starts: list[tuple[Nanoseconds, int]] = []

    def judge(self, call: Call, lane: LaneState, now: Nanoseconds) -> Tier | Refused:
        """See `Admission`."""
        verdict = super().judge(call, lane, now)
        if isinstance(verdict, Refused):
            return verdict
        if call.replica.ready_at is not None:
            return self._judge_cold(call, verdict, lane, now)
        if verdict is Tier.SURPLUS:
            finish = lane.server(call).budget.finish_after(call.cost, now)
            if finish is not None and finish + lane.ahead * lane.longest_slice <= call.due:
                return Tier.GUARANTEED
            if now + call.alone > call.due:
                verdict = Tier.GAP
        until = call.due if verdict is Tier.SURPLUS else call.request.deadline
        if until is not None and lane.calls:
            wait = expected_wait(lane, call, verdict, now)
            likely = _likely(lane, call, wait, now) if verdict is Tier.SURPLUS else wait
            if now + likely + call.alone > until:
                return _behind(call, likely, until, now)
            if verdict is Tier.SURPLUS:
                call.expected = now + wait + call.alone
        return verdict

    def _judge_cold(self, call: Call, verdict: Tier, lane: LaneState, now: Nanoseconds) -> Tier | Refused:
        """Of a call whose model has to come in first: that time is part of its wait, and nothing is promised it meanwhile.

        What cannot be in time for that alone still brings the model in, for those who come after it: it waits for a gap.
        """
        cold = max(0, (call.replica.ready_at or now) - now)
        if verdict is Tier.SURPLUS and now + cold + call.alone > call.due:
            verdict = Tier.GAP
        until = call.due if verdict is Tier.SURPLUS else call.request.deadline
        if until is not None:
            # What others do meanwhile goes on beside the copy.
            wait = max(cold, expected_wait(lane, call, verdict, now) if lane.calls else 0)
            if now + wait + call.alone > until:
                refused = _behind(call, wait, until, now)
                facts = {**refused.facts, "swap_in_us": str(cold // 1_000)}
                message = f"its model comes into device memory in {facts['swap_in_us']} us: {refused.message}"
                return Refused(refused.reason, message, facts)
        return verdict

    def admitted(self, call: Call, lane: LaneState, now: Nanoseconds) -> Iterable[tuple[Call, Refused]]:
        """See `Admission`: those of the surplus that what is promised leaves no time for any more."""
        starts = self._latest_starts
        if call.tier is Tier.SURPLUS and call.due < NEVER:
            heapq.heappush(starts, (call.due - call.alone, call.request.call))
            if len(starts) > 2 * len(lane.calls) + _SPARE:
                starts[:] = [entry for entry in starts if _in_surplus(lane, entry[1]) is not None]
                heapq.heapify(starts)
        if call.tier is not Tier.GUARANTEED:
            return
        while starts:
            latest_start, number = starts[0]
            other = _in_surplus(lane, number)
            if other is not None:
                wait = lane.promised_wait(other.alone, now)
                if now + wait <= latest_start:
                    return
                lane.see_end(other, now + wait + other.alone, now)
                yield other, _revoked(other, wait, now)
            heapq.heappop(starts)


def expected_wait(lane: LaneState, call: Call, tier: Tier, now: Nanoseconds) -> Nanoseconds:
    """How long the call would wait on these terms, behind what is there now."""
    server = lane.server(call)
    own, everybody = server.expected[Tier.SURPLUS], lane.expected[Tier.SURPLUS]
    weight = lane.busy_weight + server.weight - server.counted_weight
    behind = min(everybody, own * weight // server.weight)
    if tier is Tier.GAP:
        behind = everybody + lane.expected[Tier.GAP]
    return behind + lane.promised_wait(behind + call.alone, now)


def _likely(lane: LaneState, call: Call, wait: Nanoseconds, now: Nanoseconds) -> Nanoseconds:
    """How long it would wait, going by what came of such expectations. The surplus is never kept empty by doubts."""
    if not lane.expected[Tier.SURPLUS]:
        return wait
    return int((wait + call.alone) * lane.foresight.factor(now)) - call.alone


def is_late(request: Request, now: Nanoseconds) -> bool:
    """Whether the deadline is past."""
    return request.deadline is not None and request.deadline <= now


def late(request: Request, now: Nanoseconds) -> Refused:
    """The answer to a request that is past its deadline."""
    waited_us = (now - request.arrived) // 1_000
    over_us = (now - (request.deadline or now)) // 1_000
    message = f"the deadline passed {over_us} us ago, after {waited_us} us of waiting; it was not started"
    return Refused(
        "DEADLINE_EXCEEDED", message, {"stage": "queue", "waited_us": str(waited_us), "over_us": str(over_us)}
    )


def _behind(call: Call, wait: Nanoseconds, until: Nanoseconds, now: Nanoseconds) -> Refused:
    facts = _facts(call, wait, until, now)
    message = (
        f"it would start in {facts['estimated_start_us']} us and take {facts['estimated_us']} us, and has "
        f"{facts['left_us']} us"
    )
    return Refused("OVERLOADED", message, facts)


def _revoked(call: Call, wait: Nanoseconds, now: Nanoseconds) -> Refused:
    facts = {**_facts(call, wait, call.due, now), "revoked": "true"}
    message = (
        f"guaranteed requests need the lane for {facts['estimated_start_us']} us, and it has {facts['left_us']} us for "
        f"{facts['estimated_us']} us of work"
    )
    return Refused("OVERLOADED", message, facts)


def _facts(call: Call, wait: Nanoseconds, until: Nanoseconds, now: Nanoseconds) -> dict[str, str]:
    request = call.request
    due = {"deadline_us": request.deadline, "objective_us": request.objective}
    relative = {name: str((moment - request.arrived) // 1_000) for name, moment in due.items() if moment is not None}
    return {
        "stage": "admission",
        "estimated_start_us": str(wait // 1_000),
        "estimated_us": str(call.alone // 1_000),
        "left_us": str((until - now) // 1_000),
        **relative,
    }


def _in_surplus(lane: LaneState, number: int) -> Call | None:
    call = lane.calls.get(number)
    return call if call is not None and call.state is State.WAITING and call.tier is Tier.SURPLUS else None
