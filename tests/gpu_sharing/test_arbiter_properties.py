from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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


class Request(msgspec.Struct, frozen=True):
    call: int
    replica: int
    rows: int
    shape_key: bytes
    arrived: int
    deadline: int | None
    objective: int | None
    priority: int


MOMENT = st.none() | st.integers(0, 60)


class Lane(RuleBasedStateMachine):
    """A lane that does what the arbiter says, in a world where anything arrives at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.arbiter = Arbiter(admission=BoundedQueue(6))
        self.now = 0
        self.calls: dict[int, Request] = {}
        self.answered: dict[int, str] = {}
        self.loaded: set[int] = set()
        self.leaving: dict[int, int] = {}
        self.started: dict[int, int] = {}
        self.alive: dict[int, int] = {}
        self.running: object | None = None

    def perform(self, actions: list) -> None:
        for action in actions:
            if isinstance(action, Drop):
                self.answer(action.call, action.reason)
            elif isinstance(action, Complete):
                for call in action.calls:
                    self.answer(call, "OK")
                del self.alive[action.batch.number]
                batch = action.batch
                assert batch.started <= batch.ended
                assert batch.preempted <= batch.ended - batch.started
            elif isinstance(action, Abandon):
                del self.alive[action.batch]
            elif isinstance(action, ReplicaGone):
                self.loaded.discard(action.replica)
                self.leaving.pop(action.replica, None)

    def answer(self, call: int, reason: str) -> None:
        assert call not in self.answered, f"call {call} was answered twice"
        request = self.calls[call]
        if reason == "DEADLINE_EXCEEDED":
            assert request.deadline <= self.now
            assert call not in self.started
        self.answered[call] = reason

    @rule(replica=st.integers(0, 2), most=st.integers(0, 5))
    def load(self, replica: int, most: int) -> None:
        if replica not in self.loaded:
            self.loaded.add(replica)
            self.perform(self.arbiter.handle(ReplicaAdded(replica, most), self.now))

    @rule(replica=st.integers(0, 2), drain=st.integers(0, 30))
    def unload(self, replica: int, drain: int) -> None:
        if replica in self.loaded and replica not in self.leaving:
            self.leaving[replica] = self.now + drain
            self.perform(self.arbiter.handle(ReplicaRemoved(replica, self.now + drain), self.now))

    @rule(
        replica=st.integers(0, 2),
        rows=st.integers(1, 3),
        key=st.sampled_from([b"a", b"b"]),
        deadline=MOMENT,
        objective=MOMENT,
        priority=st.integers(0, 2),
        repeat=st.integers(1, 4),
    )
    def arrive(
        self,
        replica: int,
        rows: int,
        key: bytes,
        deadline: int | None,
        objective: int | None,
        priority: int,
        repeat: int,
    ) -> None:
        for _ in range(repeat):
            due, target = (None if moment is None else self.now + moment for moment in (deadline, objective))
            request = Request(len(self.calls), replica, rows, key, self.now, due, target, priority)
            self.calls[request.call] = request
            self.perform(self.arbiter.handle(Arrived(request), self.now))

    @rule(which=st.integers(0, 200))
    def cancel(self, which: int) -> None:
        if self.calls:
            self.perform(self.arbiter.handle(Cancelled(which % len(self.calls)), self.now))

    @rule(by=st.integers(0, 20))
    def wait(self, by: int) -> None:
        self.now += by
        self.perform(self.arbiter.handle(TimePassed(), self.now))

    @precondition(lambda self: self.running is None)
    @rule()
    def start_slice(self) -> None:
        self.running = running = self.arbiter.next_slice(self.now)
        if running is None:
            return
        assert running.first is (running.batch not in self.alive)
        self.alive[running.batch] = running.replica
        for call in running.calls:
            deadline = self.calls[call].deadline
            assert call in self.started or deadline is None or deadline > self.now, "late work was started"
            self.started[call] = running.batch
        self.assert_most_urgent(running)

    def assert_most_urgent(self, running) -> None:
        """Within one replica, nothing that waits with the same shape goes before what was started."""
        if running.first:
            head = self.calls[running.calls[0]]
            waiting = [r for r in self.calls.values() if r.call not in self.answered and r.call not in self.started]
            for other in waiting:
                if other.replica == head.replica and other.objective is not None:
                    assert head.objective is not None
                    assert (-head.priority, head.objective) <= (-other.priority, other.objective)

    @precondition(lambda self: self.running is not None)
    @rule(took=st.integers(0, 20), outcome=st.sampled_from(["boundary", "finished", "failed"]))
    def end_slice(self, took: int, outcome: str) -> None:
        self.now += took
        running, self.running = self.running, None
        if outcome == "failed":
            del self.alive[running.batch]
            self.perform(self.arbiter.handle(BatchFailed(running.batch, took, "broke"), self.now))
            return
        finished = outcome == "finished"
        actions = self.arbiter.handle(SliceDone(running.batch, took, finished), self.now)
        if finished and not any(isinstance(action, Complete) for action in actions):
            del self.alive[running.batch]
        self.perform(actions)

    @invariant()
    def books_add_up(self) -> None:
        self.arbiter.check_invariants()
        statistics = self.arbiter.statistics()
        assert statistics.in_flight == len(self.alive)
        wake_at = self.arbiter.wake_at()
        for replica, until in self.leaving.items():
            assert replica in self.loaded
            assert wake_at is not None
            assert wake_at <= until or until <= self.now

    def teardown(self) -> None:
        if self.running is not None:
            self.end_slice(0, "finished")
        for _ in range(10_000):
            self.start_slice()
            if self.running is None:
                break
            self.end_slice(1, "finished")
        self.perform(self.arbiter.handle(TimePassed(), self.now))
        assert set(self.answered) == set(self.calls), "a call was never answered"
        assert not self.alive
        assert not self.leaving
        self.arbiter.check_invariants()


TestLane = Lane.TestCase
TestLane.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
