from __future__ import annotations

from collections.abc import Iterator

import pytest
from arbiter_world import Request

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter.admission import BoundedQueue
from gpu_sharing.arbiter.events import (
    Abandon,
    Arrived,
    BatchFailed,
    Cancelled,
    Complete,
    Drop,
    ReplicaAdded,
    ReplicaGone,
    ReplicaRemoved,
    SliceDone,
    TimePassed,
)
from gpu_sharing.arbiter.replicas import MOST_RUNS_AGAIN
from gpu_sharing.measurements import ProfilePoint
from gpu_sharing.units import MS


def made() -> Arbiter:
    arbiter = Arbiter(lane=3, admission=BoundedQueue(8))
    arbiter.handle(ReplicaAdded(1, max_batch_size=4, tenant="a"), 0)
    arbiter.handle(ReplicaAdded(2, max_batch_size=0, tenant="a"), 0)
    return arbiter


@pytest.fixture
def arbiter() -> Iterator[Arbiter]:
    arbiter = made()
    yield arbiter
    arbiter.check_invariants()


def arrive(arbiter: Arbiter, *requests: Request, now: int = 0) -> list:
    return [action for request in requests for action in arbiter.handle(Arrived(request), now)]


def test_a_batch_is_the_longest_front_of_the_queue_that_fits(arbiter: Arbiter) -> None:
    arrive(arbiter, *(Request(call, rows=2, objective=call) for call in (1, 2, 3)))
    first = arbiter.next_slice(0)
    assert first.calls == (1, 2)
    assert first.first
    actions = arbiter.handle(SliceDone(first.batch, took=5, finished=True), 5)
    assert [(type(action), action.calls) for action in actions] == [(Complete, (1, 2))]
    assert (actions[0].batch.rows, actions[0].batch.lane, actions[0].batch.started, actions[0].batch.ended) == (
        4,
        3,
        0,
        5,
    )
    assert arbiter.next_slice(5).calls == (3,)


def test_different_shapes_never_share_a_batch(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1, shape_key=b"a"), Request(2, shape_key=b"b"), Request(3, shape_key=b"a"))
    assert arbiter.next_slice(0).calls == (1, 3)


def test_a_replica_without_batching_runs_one_request_at_a_time(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1, replica=2), Request(2, replica=2))
    assert arbiter.next_slice(0).calls == (1,)


def test_class_batch_does_not_ride_with_requests_that_have_an_objective(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1), Request(2, objective=9))
    assert arbiter.next_slice(0).calls == (2,)


def test_priority_orders_a_replicas_own_requests(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1, rows=4, objective=5), Request(2, rows=4, objective=9, priority=1))
    assert arbiter.next_slice(0).calls == (2,)


def test_an_earlier_objective_takes_the_lane_at_the_next_boundary_and_gives_it_back(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1, objective=100))
    long = arbiter.next_slice(0)
    arrive(arbiter, Request(2, replica=2, objective=50))
    assert arbiter.handle(SliceDone(long.batch, took=10, finished=False), 10) == []
    short = arbiter.next_slice(10)
    assert short.calls == (2,)
    arbiter.handle(SliceDone(short.batch, took=5, finished=True), 15)
    back = arbiter.next_slice(15)
    assert (back.batch, back.first) == (long.batch, False)
    (complete,) = arbiter.handle(SliceDone(back.batch, took=10, finished=True), 25)
    batch = complete.batch
    assert (batch.preemptions, batch.preempted, batch.segment_ends, batch.ended) == (1, 5, (10, 25), 25)
    assert {replica.replica: replica.device_ns for replica in arbiter.statistics().replicas} == {1: 20, 2: 5}


def test_a_later_objective_waits_for_the_batch_in_flight(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1, objective=50))
    running = arbiter.next_slice(0)
    arrive(arbiter, Request(2, replica=2, objective=60), Request(3, replica=2))
    arbiter.handle(SliceDone(running.batch, 1, finished=False), 1)
    assert arbiter.next_slice(1).batch == running.batch


def test_class_batch_yields_at_every_boundary_but_not_to_its_like(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1))
    running = arbiter.next_slice(0)
    arrive(arbiter, Request(2, replica=2))
    arbiter.handle(SliceDone(running.batch, 1, finished=False), 1)
    assert arbiter.next_slice(1).batch == running.batch
    arrive(arbiter, Request(3, replica=2, objective=1_000))
    arbiter.handle(SliceDone(running.batch, 1, finished=False), 2)
    assert arbiter.next_slice(2).calls == (3,)


def test_what_is_past_its_deadline_is_dropped_and_never_started(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1, arrived=1 * MS, deadline=5 * MS), now=1 * MS)
    assert arbiter.wake_at() == 5 * MS
    assert arbiter.next_slice(6 * MS) is None
    (drop,) = arbiter.handle(TimePassed(), 6 * MS)
    assert (drop.call, drop.reason, drop.facts["over_us"]) == (1, "DEADLINE_EXCEEDED", "1000")
    assert arbiter.wake_at() is None


def test_the_deadline_of_what_runs_wakes_nobody(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1, deadline=50))
    arbiter.next_slice(0)
    assert arbiter.wake_at() is None


def test_a_request_that_arrives_too_late_is_refused_at_once(arbiter: Arbiter) -> None:
    (drop,) = arrive(arbiter, Request(1, deadline=5), now=5)
    assert drop.reason == "DEADLINE_EXCEEDED"


def test_a_running_request_past_its_deadline_is_still_answered(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1, deadline=5))
    running = arbiter.next_slice(0)
    (complete,) = arbiter.handle(SliceDone(running.batch, 10, finished=True), 10)
    assert complete.calls == (1,)


def test_a_full_queue_refuses_with_its_numbers(arbiter: Arbiter) -> None:
    (drop,) = arrive(arbiter, *(Request(call) for call in range(9)))
    assert (drop.call, drop.reason, drop.facts) == (8, "OVERLOADED", {"waiting": "8", "queue_limit": "8"})


def test_a_cancelled_request_leaves_the_queue_at_once(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1), Request(2))
    (drop,) = arbiter.handle(Cancelled(1), 0)
    assert (drop.call, drop.reason, drop.batch) == (1, "CANCELLED", None)
    assert arbiter.next_slice(0).calls == (2,)
    assert arbiter.handle(Cancelled(1), 0) == []


def test_a_cancelled_running_request_is_answered_when_its_memory_is_free(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1), Request(2))
    running = arbiter.next_slice(0)
    assert arbiter.handle(Cancelled(1), 0) == []
    complete, drop = arbiter.handle(SliceDone(running.batch, 1, finished=True), 1)
    assert complete.calls == (2,)
    assert (drop.call, drop.reason) == (1, "CANCELLED")


def test_a_batch_that_nobody_waits_for_stops_at_its_next_boundary(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1))
    running = arbiter.next_slice(0)
    arbiter.handle(Cancelled(1), 0)
    actions = arbiter.handle(SliceDone(running.batch, 1, finished=False), 1)
    assert [type(action) for action in actions] == [Abandon, Drop]
    assert arbiter.next_slice(1) is None


def test_a_suspended_batch_that_nobody_waits_for_goes_at_once(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1))
    slow = arbiter.next_slice(0)
    arrive(arbiter, Request(2, replica=2, objective=1))
    arbiter.handle(SliceDone(slow.batch, 1, finished=False), 1)
    arbiter.next_slice(1)
    assert [type(action) for action in arbiter.handle(Cancelled(1), 1)] == [Abandon, Drop]


def test_a_broken_batch_fails_its_own_requests_only(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1, objective=1), Request(2, objective=2), Request(3, replica=2, objective=3))
    running = arbiter.next_slice(0)
    drops = arbiter.handle(BatchFailed(running.batch, 1, "boom", final=True), 1)
    assert [(drop.call, drop.reason) for drop in drops] == [(1, "MODEL_FAILED"), (2, "MODEL_FAILED")]
    assert all(drop.message == "boom" for drop in drops)
    assert arbiter.next_slice(1).calls == (3,)


def test_the_requests_of_a_broken_batch_run_again_alone_and_only_what_breaks_again_fails(arbiter: Arbiter) -> None:
    arrive(arbiter, *(Request(call, objective=1000 + call) for call in (1, 2, 3)))
    running = arbiter.next_slice(0)
    assert running.calls == (1, 2, 3)
    assert arbiter.handle(BatchFailed(running.batch, 1, "boom"), 1) == []
    # Those that come later ride together, and with none of these.
    arrive(arbiter, Request(4, objective=2000), Request(5, objective=2000))
    told: dict[int, str] = {}
    for now in range(1, 6):
        chosen = arbiter.next_slice(now)
        if chosen is None:
            break
        assert len(chosen.calls) == 1 or chosen.calls == (4, 5)
        broke = chosen.calls == (2,)
        ended = BatchFailed(chosen.batch, 1, "boom") if broke else SliceDone(chosen.batch, 1, finished=True)
        for action in arbiter.handle(ended, now + 1):
            calls = action.calls if isinstance(action, Complete) else (action.call,)
            told |= dict.fromkeys(calls, "OK" if isinstance(action, Complete) else action.message)
        arbiter.check_invariants()
    assert told == {1: "OK", 2: "boom", 3: "OK", 4: "OK", 5: "OK"}
    (statistics,) = (each for each in arbiter.statistics().replicas if each.replica == 1)
    assert (statistics.requests, statistics.batches) == (5, 5)
    (tenant,) = (each for each in arbiter.statistics().tenants if each.device_ns)
    assert tenant.guaranteed + tenant.surplus + tenant.gap == 5


def test_what_has_no_time_left_or_is_not_waited_for_any_more_does_not_run_again(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1, deadline=5), Request(2, deadline=500), Request(3, deadline=500))
    running = arbiter.next_slice(0)
    assert len(running.calls) == 3
    arbiter.handle(Cancelled(3), 1)
    dropped = {drop.call: drop.reason for drop in arbiter.handle(BatchFailed(running.batch, 5, "boom"), 5)}
    assert dropped == {1: "MODEL_FAILED", 3: "CANCELLED"}
    assert arbiter.next_slice(5).calls == (2,)


def test_what_waits_to_run_again_is_dropped_at_its_deadline_and_at_the_end_of_a_drain(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1, deadline=50), Request(2, deadline=500))
    running = arbiter.next_slice(0)
    arbiter.handle(ReplicaRemoved(1, drain_until=100), 0)
    assert arbiter.handle(BatchFailed(running.batch, 1, "boom"), 1) == []
    (late,) = arbiter.handle(TimePassed(), 50)
    assert (late.call, late.reason) == (1, "DEADLINE_EXCEEDED")
    assert arbiter.wake_at() == 100
    drop, gone = arbiter.handle(TimePassed(), 100)
    assert (drop.call, drop.reason) == (2, "MODEL_NOT_READY")
    assert isinstance(gone, ReplicaGone)


def test_a_model_may_have_fewer_waiting_than_the_lane_allows(arbiter: Arbiter) -> None:
    arbiter.handle(ReplicaAdded(3, 4, queue_limit=2), 0)
    refused = arrive(arbiter, *(Request(call, replica=3) for call in (1, 2, 3)))
    assert [(drop.call, drop.reason, drop.facts) for drop in refused] == [
        (3, "OVERLOADED", {"waiting": "2", "queue_limit": "2"})
    ]
    assert arrive(arbiter, *(Request(call) for call in range(4, 12))) == []
    (refused,) = arrive(arbiter, Request(12))
    assert refused.facts["queue_limit"] == "8"


def test_a_model_of_which_nothing_succeeds_is_not_run_again_for_ever() -> None:
    arbiter = Arbiter()
    arbiter.handle(ReplicaAdded(1, 64), 0)
    runs, call = 0, 0
    for now in range(3000):
        if not arbiter.statistics().waiting:
            arrive(arbiter, *(Request(call + more, arrived=now) for more in range(64)), now=now)
            call += 64
            if call > 64 * 20:
                break
        chosen = arbiter.next_slice(now)
        runs += 1
        arbiter.handle(BatchFailed(chosen.batch, 1, "boom"), now)
    assert MOST_RUNS_AGAIN < runs <= 21 + MOST_RUNS_AGAIN


def test_a_replica_drains_before_it_goes(arbiter: Arbiter) -> None:
    arrive(arbiter, Request(1))
    assert arbiter.handle(ReplicaRemoved(1, drain_until=100), 0) == []
    (refused,) = arrive(arbiter, Request(2))
    assert refused.reason == "MODEL_NOT_READY"
    running = arbiter.next_slice(0)
    complete, gone = arbiter.handle(SliceDone(running.batch, 1, finished=True), 1)
    assert (complete.calls, gone) == ((1,), ReplicaGone(1, device_ns=1))


def test_a_drain_ends_in_time_whatever_waits_or_runs(arbiter: Arbiter) -> None:
    arrive(arbiter, *(Request(call, rows=4) for call in (1, 2)))
    running = arbiter.next_slice(0)
    arbiter.handle(ReplicaRemoved(1, drain_until=100), 0)
    assert arbiter.wake_at() == 100
    (waited,) = arbiter.handle(TimePassed(), 100)
    assert (waited.call, waited.reason) == (2, "MODEL_NOT_READY")
    abandon, ran, gone = arbiter.handle(SliceDone(running.batch, 110, finished=False), 110)
    assert (abandon, ran.call, ran.reason, gone) == (Abandon(running.batch), 1, "MODEL_NOT_READY", ReplicaGone(1, 110))


def test_the_prediction_comes_from_the_profile_until_runs_are_seen() -> None:
    points = (ProfilePoint(1, "", 1, 10, 10, 5), ProfilePoint(4, "", 1, 40, 40, 5))
    arbiter = Arbiter()
    arbiter.handle(ReplicaAdded(1, max_batch_size=8, points=points), 0)
    arrive(arbiter, Request(1, rows=2))
    running = arbiter.next_slice(0)
    assert running.predicted == 20
    arbiter.handle(SliceDone(running.batch, took=70, finished=True), 70)
    arrive(arbiter, Request(2, rows=2))
    assert arbiter.next_slice(70).predicted == 70
    assert arbiter.statistics().busy_ns == 70


def test_an_impossible_step_tells_the_calls_story() -> None:
    from gpu_sharing.arbiter.calls import Call, Step
    from gpu_sharing.arbiter.replicas import Replica

    call = Call(Request(7), "", Replica(ReplicaAdded(1, 0)), ())
    call.take(Step.ADMIT)
    with pytest.raises(AssertionError, match="call 7 is waiting and cannot answer; so far: admit"):
        call.take(Step.ANSWER)
