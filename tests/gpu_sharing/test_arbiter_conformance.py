"""Whatever the policy: every call is answered once, nothing late is started, the lane never idles, and the books add up."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from arbiter_world import Request
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter.admission import BoundedQueue, Reservations
from gpu_sharing.arbiter.batching import Largest, LargestInTime
from gpu_sharing.arbiter.events import (
    Abandon,
    AllLaunched,
    Arrived,
    BatchFailed,
    Cancelled,
    Complete,
    Drop,
    ReplicaAdded,
    ReplicaGone,
    ReplicaRemoved,
    ReplicaUpdated,
    Slice,
    SliceDone,
    TimePassed,
)
from gpu_sharing.arbiter.grants import Oversold
from gpu_sharing.arbiter.switching import IN_FLIGHT_PER_REPLICA, ArrivalOrder, EarliestDeadline
from gpu_sharing.measurements import ProfilePoint

POLICIES: dict[str, Callable[[], Arbiter]] = {
    "reservations": lambda: Arbiter(admission=Reservations(6)),
    "reservations with a quantum": lambda: Arbiter(admission=Reservations(6), batching=LargestInTime(6)),
    "reservations, one unpromised batch at a time": lambda: Arbiter(switching=EarliestDeadline(1)),
    "reservations, large batches": lambda: Arbiter(batching=Largest()),
    "weights only": lambda: Arbiter(admission=BoundedQueue(6)),
    "arrival order": lambda: Arbiter(admission=BoundedQueue(6), switching=ArrivalOrder(), batching=Largest()),
    "arrival order, reservations admitted": lambda: Arbiter(admission=Reservations(6), switching=ArrivalOrder()),
    "reservations, two slices ahead": lambda: Arbiter(admission=Reservations(6), ahead=2),
    "reservations with a quantum, two ahead": lambda: Arbiter(batching=LargestInTime(6), ahead=2),
    "one unpromised batch at a time, three ahead": lambda: Arbiter(switching=EarliestDeadline(1), ahead=3),
    "arrival order, two slices ahead": lambda: Arbiter(switching=ArrivalOrder(), batching=Largest(), ahead=2),
}
AHEAD = re.compile(r"(?<=\b)(?:two|three)(?= slices ahead| ahead)")
MOMENT = st.none() | st.integers(0, 60) | st.integers(100, 400)
POINTS = (
    ProfilePoint(1, "", 1, 8, 10, 10, segments_ns=(5, 5)),
    ProfilePoint(4, "", 1, 16, 20, 10, segments_ns=(10, 10)),
)


class Lane(RuleBasedStateMachine):
    """A lane that does what the arbiter says, in a world where anything happens at any time."""

    make: Callable[[], Arbiter]
    policy: str

    def __init__(self) -> None:
        super().__init__()
        self.arbiter = self.make()
        self.now = 0
        self.calls: dict[int, Request] = {}
        self.answered: dict[int, str] = {}
        self.loaded: dict[int, str | None] = {}
        self.leaving: dict[int, int] = {}
        self.started: dict[int, int] = {}
        self.broken: set[int] = set()
        self.again: set[int] = set()
        self.alive: dict[int, int] = {}
        self.ahead = {"two": 2, "three": 3}.get(next(iter(AHEAD.findall(self.policy)), ""), 1)
        self.out: list[Slice] = []
        self.sealed: set[int] = set()
        self.busy = 0
        self.used: dict[int, int] = {}

    def perform(self, actions: list) -> None:
        for action in actions:
            if isinstance(action, Drop):
                self.answer(action.call, action.reason, action.facts)
            elif isinstance(action, Complete):
                for call in action.calls:
                    self.answer(call, "OK", {})
                del self.alive[action.batch.number]
                batch = action.batch
                assert batch.started <= batch.ended
                assert batch.preempted <= batch.ended - batch.started
            elif isinstance(action, Abandon):
                del self.alive[action.batch]
            elif isinstance(action, ReplicaGone):
                assert action.device_ns == self.used.pop(action.replica, 0)
                self.loaded.pop(action.replica, None)
                self.leaving.pop(action.replica, None)

    def answer(self, call: int, reason: str, facts: dict[str, str]) -> None:
        assert call not in self.answered, f"call {call} was answered twice"
        if reason == "DEADLINE_EXCEEDED":
            assert self.calls[call].deadline <= self.now
        if reason in ("DEADLINE_EXCEEDED", "OVERLOADED"):
            assert call not in self.started or call in self.broken
            assert facts
        self.answered[call] = reason

    @rule(
        replica=st.integers(0, 3),
        most=st.integers(0, 5),
        tenant=st.sampled_from([None, "a", "b"]),
        bandwidth=st.sampled_from([0, 100, 300, 500, 900]),
        weight=st.integers(1, 4),
        points=st.sampled_from([(), POINTS]),
    )
    def load(self, replica: int, most: int, tenant: str | None, bandwidth: int, weight: int, points: tuple) -> None:
        if replica in self.loaded:
            return
        added = ReplicaAdded(replica, most, bandwidth, weight, points, tenant)
        try:
            self.perform(self.arbiter.handle(added, self.now))
        except Oversold:
            assert bandwidth
        else:
            self.loaded[replica] = tenant

    @rule(replica=st.integers(0, 3), bandwidth=st.sampled_from([0, 200, 1000]), weight=st.integers(1, 4))
    def update(self, replica: int, bandwidth: int, weight: int) -> None:
        self.perform(self.arbiter.handle(ReplicaUpdated(replica, bandwidth, weight), self.now))

    @rule(replica=st.integers(0, 3), drain=st.integers(0, 30))
    def unload(self, replica: int, drain: int) -> None:
        if replica in self.loaded and replica not in self.leaving:
            self.leaving[replica] = self.now + drain
            self.perform(self.arbiter.handle(ReplicaRemoved(replica, self.now + drain), self.now))

    @rule(
        replica=st.integers(0, 3),
        rows=st.integers(1, 3),
        key=st.sampled_from([b"a", b"b"]),
        deadline=MOMENT,
        objective=MOMENT,
        priority=st.integers(0, 2),
        repeat=st.integers(1, 4),
        bucket=st.sampled_from(["", "new"]),
    )
    def arrive(
        self, replica: int, rows: int, key: bytes, deadline: int | None, objective: int | None, priority: int, repeat: int,
        bucket: str,
    ) -> None:  # fmt: skip
        for _ in range(repeat):
            due, target = (None if moment is None else self.now + moment for moment in (deadline, objective))
            request = Request(len(self.calls), replica, rows, key, self.now, due, target, priority)
            self.calls[request.call] = request
            self.perform(self.arbiter.handle(Arrived(request, bucket), self.now))

    @rule(which=st.integers(0, 200))
    def cancel(self, which: int) -> None:
        if self.calls:
            self.perform(self.arbiter.handle(Cancelled(which % len(self.calls)), self.now))

    @rule(by=st.integers(0, 20))
    def wait(self, by: int) -> None:
        self.now += by
        self.perform(self.arbiter.handle(TimePassed(), self.now))

    @precondition(lambda self: len(self.out) < self.ahead)
    @rule(last=st.booleans())
    def start_slice(self, last: bool) -> None:
        self.perform(self.arbiter.handle(TimePassed(), self.now))
        running = self.arbiter.next_slice(self.now)
        if running is None:
            assert self.out or set(self.calls) == set(self.answered), "the lane idles while somebody waits"
            return
        assert running.batch not in self.sealed, "a batch that takes no more slices got one"
        self.out.append(running)
        assert running.first is (running.batch not in self.alive)
        self.alive[running.batch] = running.replica
        open_ = [
            batch for batch, replica in self.alive.items() if replica == running.replica and batch not in self.sealed
        ]
        # Those that are launched to their ends keep nobody from starting; one at most may have been abandoned meanwhile.
        assert len(open_) <= IN_FLIGHT_PER_REPLICA + (self.ahead > 1)
        for call in running.calls:
            request = self.calls[call]
            assert request.replica == running.replica
            late = request.deadline is not None and request.deadline <= self.now
            if call in self.broken and running.first:
                assert running.calls == (call,), "what runs again runs alone"
                assert call not in self.again, "nothing runs a third time"
                self.again.add(call)
                assert not late, "late work was run again"
                self.started[call] = running.batch
            assert call in self.started or not late, "late work was started"
            assert self.started.setdefault(call, running.batch) == running.batch
        if self.ahead > 1 and last:
            self.sealed.add(running.batch)
            self.perform(self.arbiter.handle(AllLaunched(running.batch), self.now))

    @precondition(lambda self: self.out)
    @rule(
        took=st.integers(0, 20),
        outcome=st.sampled_from(["boundary", "boundary", "finished", "failed"]),
        final=st.sampled_from([False, False, True]),
    )
    def end_slice(self, took: int, outcome: str, final: bool = False) -> None:
        self.now += took
        self.busy += took
        running = self.out.pop(0)
        more = any(each.batch == running.batch for each in self.out)
        self.used[running.replica] = self.used.get(running.replica, 0) + took
        if outcome == "failed":
            del self.alive[running.batch]
            self.out = [each for each in self.out if each.batch != running.batch]
            known, self.broken = set(self.answered), self.broken | set(running.calls)
            self.perform(self.arbiter.handle(BatchFailed(running.batch, took, "broke", final), self.now))
            if final or len(running.calls) == 1:
                assert set(running.calls) <= set(self.answered)
            failed = {call for call in set(self.answered) - known if self.answered[call] == "MODEL_FAILED"}
            assert failed <= set(running.calls), "what broke was no batch of theirs"
            return
        finished = not more and (outcome == "finished" or running.batch in self.sealed)
        actions = self.arbiter.handle(SliceDone(running.batch, took, finished), self.now)
        if finished and not any(isinstance(action, Complete) for action in actions):
            del self.alive[running.batch]
        self.perform(actions)

    @invariant()
    def books_add_up(self) -> None:
        self.arbiter.check_invariants()
        statistics = self.arbiter.statistics()
        assert statistics.in_flight == len(self.alive)
        assert statistics.busy_ns == self.busy == sum(tenant.device_ns for tenant in statistics.tenants)
        assert {each.replica: each.device_ns for each in statistics.replicas if each.device_ns} == {
            replica: used for replica, used in self.used.items() if used
        }
        assert sum(tenant.bandwidth for tenant in statistics.tenants) <= 1000
        wake_at = self.arbiter.wake_at()
        for until in self.leaving.values():
            assert until <= self.now or (wake_at is not None and wake_at <= until)

    def teardown(self) -> None:
        while self.out:
            self.end_slice(0, "finished")
        for _ in range(10_000):
            self.start_slice(False)
            if not self.out:
                break
            self.end_slice(1, "finished")
        assert set(self.answered) == set(self.calls), "a call was never answered"
        assert not self.alive
        self.now = max([self.now, *self.leaving.values()])
        self.perform(self.arbiter.handle(TimePassed(), self.now))
        assert not self.leaving
        self.arbiter.check_invariants()


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_the_books_and_answers_everybody_once(policy: str) -> None:
    machine = type("Lane", (Lane,), {"make": staticmethod(POLICIES[policy]), "policy": policy})
    case = machine.TestCase
    case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
    case("runTest").runTest()
