"""Of a batch that broke: who is run again, alone? PURE.

One request may break the batch that it rides in with others of its tenant. These are run again one by one, each once, so that
only what is broken fails. What that takes, their own tenant pays for as if they had just come: within its reservation where
that still pays for them in time, else from the surplus, else in gaps. A model of which nothing succeeds is not worth it: every
request that it answers earns it one further run, up to a bound, with which it begins.
"""

from __future__ import annotations

from gpu_sharing.arbiter.admission import Admission, Refused
from gpu_sharing.arbiter.batches import BatchInFlight
from gpu_sharing.arbiter.calls import Call, Tier
from gpu_sharing.arbiter.replicas import MOST_RUNS_AGAIN, Replica
from gpu_sharing.arbiter.state import LaneState
from gpu_sharing.units import Nanoseconds


def earn(replica: Replica, answered: int) -> None:
    """So many of its requests have succeeded."""
    replica.runs_again = min(MOST_RUNS_AGAIN, replica.runs_again + answered)


def survivors(batch: BatchInFlight, now: Nanoseconds) -> list[Call]:
    """Calls of a batch that broke to be run again, the earliest due first; what their runs cost is taken from the replica."""
    if len(batch.calls) == 1:
        return []
    worth = [call for call in batch.calls if not call.is_doomed and _has_time(call, now)]
    worth.sort(key=lambda call: (call.due, call.request.call))
    worth = worth[: batch.home.runs_again]
    batch.home.runs_again -= len(worth)
    return worth


def terms(call: Call, admission: Admission, lane: LaneState, now: Nanoseconds) -> Tier:
    """On what terms it waits: as if it came now; where that would be refused, in a gap."""
    lane.weigh(call)
    verdict = admission.judge(call, lane, now)
    return Tier.GAP if isinstance(verdict, Refused) else verdict


def left_out(message: str, batch: BatchInFlight) -> str:
    """What the callers are told that were not run again. The model's own words may be about another one's tensors: only whoever
    was alone in the batch gets to read them."""
    requests = len(batch.calls)
    if requests == 1:
        return message
    return f"the model raised an error in a batch of {requests} requests, and there was no time to run this one alone"


def _has_time(call: Call, now: Nanoseconds) -> bool:
    deadline = call.request.deadline
    return deadline is None or now + call.alone < deadline
