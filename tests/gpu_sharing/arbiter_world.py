"""The smallest lane there is: models that cost what they are told to, and a clock that jumps from one event to the next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter.events import (
    Abandon,
    Arrived,
    BatchFailed,
    Cancelled,
    Complete,
    Drop,
    ReplicaAdded,
    ReplicaGone,
    Slice,
    SliceDone,
    TimePassed,
)
from gpu_sharing.measurements import ProfilePoint


class Request(msgspec.Struct, frozen=True):
    """A request, as short as tests like it."""

    call: int
    replica: int = 1
    rows: int = 1
    shape_key: bytes = b""
    arrived: int = 0
    deadline: int | None = None
    objective: int | None = None
    priority: int = 0


@dataclass(frozen=True)
class Model:
    """Takes `fixed + rows * each` in every one of its segments. truth: what it really takes over that, by batch number."""

    segments: int = 1
    fixed: int = 0
    each: int = 1
    max_batch_size: int = 0
    truth: Callable[[int], float] = lambda batch: 1.0

    def segment(self, rows: int) -> int:
        return self.fixed + rows * self.each

    def cost(self, rows: int) -> int:
        return self.segments * self.segment(rows)

    def points(self) -> tuple[ProfilePoint, ...]:
        most = max(1, self.max_batch_size)
        rows = sorted({min(1 << power, most) for power in range(most.bit_length() + 1)})
        return tuple(
            ProfilePoint(n, "", 1, self.cost(n), self.cost(n), 100, segments_ns=(self.segment(n),) * self.segments)
            for n in rows
        )


@dataclass
class Ending:
    """How a call ended. reason: "OK", or why not."""

    request: Request
    at: int
    reason: str
    facts: dict[str, str]

    @property
    def is_good(self) -> bool:
        due = self.request.objective
        return self.reason == "OK" and (due is None or self.at <= due)


@dataclass
class World:
    """One lane. schedule(): what happens when; run(): until nothing does any more."""

    arbiter: Arbiter
    audit_every: int = 7
    now: int = 0
    models: dict[int, Model] = field(default_factory=dict)
    endings: dict[int, Ending] = field(default_factory=dict)
    slices: list[tuple[int, int, int]] = field(default_factory=list)
    requests: dict[int, Request] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._done: dict[int, tuple[int, int]] = {}
        self._running: Slice | None = None
        self._calls = itertools.count()
        self._turns = 0

    def host(self, replica: int, model: Model, **fields: object) -> None:
        """The model serves from now on."""
        self.models[replica] = model
        points = fields.pop("points", model.points())
        self.take(ReplicaAdded(replica, model.max_batch_size, points=points, **fields))

    def schedule(self, at: int, what: Callable[[], None]) -> None:
        """Something happens then."""
        heapq.heappush(self._agenda, (at, next(self._order), what))

    def arrive(
        self, replica: int, *, at: int | None = None, within: int | None = None, patience: int | None = None, rows: int = 1,
        priority: int = 0, key: bytes = b"",
    ) -> int:  # fmt: skip
        """A request comes at that moment. within: its objective; patience: its deadline; both from then on."""
        call, at = next(self._calls), self.now if at is None else at
        deadline, objective = (None if more is None else at + more for more in (patience, within))
        request = Request(call, replica, rows, key, at, deadline, objective, priority)
        self.requests[call] = request
        self.schedule(at, lambda: self.take(Arrived(request)))
        return call

    def cancel(self, call: int, at: int) -> None:
        """Nobody waits for it from then on."""
        self.schedule(at, lambda: self.take(Cancelled(call)))

    def take(self, event: object) -> list:
        """Tells the arbiter, and does what it says."""
        actions = self.arbiter.handle(event, self.now)
        for action in actions:
            if isinstance(action, Drop):
                self._end(action.call, action.reason, action.facts)
            elif isinstance(action, Complete):
                for call in action.calls:
                    self._end(call, "OK", {})
            elif isinstance(action, Abandon):
                self._done.pop(action.batch, None)
            elif isinstance(action, ReplicaGone):
                self.models.pop(action.replica, None)
        return actions

    def _end(self, call: int, reason: str, facts: dict[str, str]) -> None:
        assert call not in self.endings, f"call {call} was answered twice"
        self.endings[call] = Ending(self.requests[call], self.now, reason, facts)

    def run(self, until: int | None = None) -> None:
        """Lets time pass."""
        while True:
            while self._agenda and self._agenda[0][0] <= self.now:
                heapq.heappop(self._agenda)[2]()
            if self._running is None:
                self._begin()
            wake = self.arbiter.wake_at()
            moments = [self._agenda[0][0]] if self._agenda else []
            moments += [] if wake is None else [max(wake, self.now)]
            if not moments or (until is not None and min(moments) > until):
                return
            self.now = max(self.now, min(moments))
            if wake is not None and wake <= self.now:
                self.take(TimePassed())

    def _begin(self) -> None:
        self._running = chosen = self.arbiter.next_slice(self.now)
        self._turns += 1
        if self._turns % self.audit_every == 0:
            self.arbiter.check_invariants()
        if chosen is None:
            return
        model = self.models[chosen.replica]
        rows = sum(self.requests[call].rows for call in chosen.calls)
        ran, _ = self._done.get(chosen.batch, (0, 0))
        self._done[chosen.batch] = (ran + 1, rows)
        took = round(model.segment(rows) * model.truth(chosen.batch))
        self.slices.append((self.now, chosen.replica, took))
        finished = ran + 1 == model.segments
        self.schedule(self.now + took, lambda: self._finish(chosen, took, finished))

    def _finish(self, ran: Slice, took: int, finished: bool) -> None:
        if self._running is not ran:
            return
        self._running = None
        if finished:
            del self._done[ran.batch]
        self.take(SliceDone(ran.batch, took, finished))

    def break_running(self, took: int = 0) -> None:
        """The slice that runs breaks its batch."""
        assert self._running is not None
        batch, self._running = self._running.batch, None
        del self._done[batch]
        self.take(BatchFailed(batch, took, "boom"))

    def used(self, since: int = 0, until: int | None = None) -> dict[int, int]:
        """Device time by replica of the slices that began in between."""
        used = dict.fromkeys(self.models, 0)
        for start, replica, took in self.slices:
            if start >= since and (until is None or start < until):
                used[replica] = used.get(replica, 0) + took
        return used
