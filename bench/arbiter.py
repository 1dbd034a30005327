"""What a decision of the arbiter costs: `python -m bench.arbiter`.

100 tenants with 1,000 requests waiting, on one lane in virtual time: arrivals, slices and their ends as they come, so that what
is timed is what a lane waits for at a boundary. The same workload runs several times, and of each operation the shortest time
counts: what is told is what the arbiter costs, not what else the machine does. A decision is `next_slice`; a boundary is the
end of a slice, the time that has passed, and the decision. Time that passes is told by how many requests had become late: one
event answers all of them. The mixes differ in what waits; the last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import msgspec

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter.events import (
    Abandon,
    Arrived,
    Cancelled,
    Complete,
    Drop,
    ReplicaAdded,
    Slice,
    SliceDone,
    TimePassed,
)
from gpu_sharing.arbiter.policies import POLICIES, PolicyName, arbiter_of
from gpu_sharing.measurements import ProfilePoint
from gpu_sharing.units import MS, SECOND, US, Nanoseconds

SEGMENT: Nanoseconds = 1 * MS
ROWS = (1, 2, 4, 8, 16)


class Mix(NamedTuple):
    """What waits. Parts are of all requests.

    reserved: thousandths of the lane that tenants hold together. fill: class `batch`. dated: with a deadline, `dated_s` seconds
    away at least and at most. objective_s: how far away objectives are. rows: of a request, each as likely. cancelled: how
    many are cancelled at each boundary, on average.
    """

    reserved: int = 1000
    fill: float = 0.2
    dated: float = 0.5
    dated_s: tuple[float, float] = (10.0, 40.0)
    objective_s: tuple[float, float] = (5.0, 20.0)
    rows: tuple[int, ...] = (1, 1, 1, 2, 4)
    cancelled: float = 0.0


MIXES: dict[str, Mix] = {
    "mixed": Mix(),
    "guaranteed": Mix(fill=0.0, objective_s=(20.0, 60.0), dated=0.0),
    "surplus": Mix(reserved=0, fill=0.0),
    "gaps": Mix(reserved=0, fill=1.0),
    "batches": Mix(fill=0.0, rows=(1,), objective_s=(10.0, 30.0)),
    "cancelled": Mix(cancelled=1.0),
    "late": Mix(dated=0.9, dated_s=(0.4, 4.0)),
}


class Request(msgspec.Struct, frozen=True):
    """As the arbiter wants it."""

    call: int
    replica: int
    rows: int
    shape_key: bytes
    arrived: Nanoseconds
    deadline: Nanoseconds | None
    objective: Nanoseconds | None
    priority: int = 0


class Timings:
    """Nanoseconds by operation."""

    def __init__(self) -> None:
        self.taken: dict[str, list[int]] = {}

    def of(self, name: str, work: Callable[[], Any]) -> Any:
        """Does the work, and keeps how long it took."""
        started = time.perf_counter_ns()
        result = work()
        self.taken.setdefault(name, []).append(time.perf_counter_ns() - started)
        return result

    def quantile_us(self, name: str, share: float) -> float:
        """By nearest rank."""
        ordered = sorted(self.taken[name])
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] / US


class Load:
    """Keeps about so many requests waiting, of so many tenants, half of them within their reservations."""

    def __init__(self, policy: PolicyName, mix: Mix, tenants: int, waiting: int, seed: int) -> None:
        self.arbiter: Arbiter = arbiter_of(policy)
        self.timings = Timings()
        self._random = Random(seed)
        self._mix, self._tenants, self._most = mix, tenants, waiting
        self._now: Nanoseconds = 0
        self._calls = 0
        # In the order in which they came, so that a run is the same every time.
        self._open: dict[int, None] = {}
        self._left: dict[int, int] = {}
        for replica in range(tenants):
            costs = {rows: (3 + rows) * SEGMENT // 4 for rows in ROWS}
            points = tuple(
                ProfilePoint(rows, "16", 1, 3 * cost, 3 * cost, 100, segments_ns=(cost,) * 3)
                for rows, cost in costs.items()
            )
            added = ReplicaAdded(
                replica, ROWS[-1], mix.reserved // tenants, 1 + replica % 4, points, f"tenant {replica}"
            )
            self.arbiter.handle(added, 0)

    def fill(self) -> None:
        """Requests come until enough wait. What is refused has been decided, too, but does not wait."""
        for _ in range(2 * self._most):
            if len(self._open) >= self._most:
                return
            self._arrive("arrival" if self._left else "arrival, lane empty")

    def _arrive(self, name: str) -> None:
        random, mix = self._random, self._mix
        is_fill, is_dated = random.random() < mix.fill, random.random() < mix.dated
        objective = None if is_fill else self._now + int(random.uniform(*mix.objective_s) * SECOND)
        deadline = self._now + int(random.uniform(*mix.dated_s) * SECOND) if is_dated else None
        replica, rows = random.randrange(self._tenants), random.choice(mix.rows)
        request = Request(self._calls, replica, rows, b"", self._now, deadline, objective)
        self._calls += 1
        self._open[request.call] = None
        self._take(self.timings.of(name, lambda: self.arbiter.handle(Arrived(request, "16"), self._now)))

    def cancel(self) -> None:
        """Some callers go away."""
        if self._random.random() < self._mix.cancelled:
            call = self._random.choice(list(self._open))
            self._take(self.timings.of("cancellation", lambda: self.arbiter.handle(Cancelled(call), self._now)))

    def boundary(self) -> None:
        """A slice begins and ends."""
        chosen, decided = self._decide()
        took = int(SEGMENT * self._random.uniform(0.8, 1.05))
        self._pass_time(took // 2)
        self._now += took - took // 2
        self._left[chosen.batch] -= 1
        finished = not self._left[chosen.batch]
        if finished:
            del self._left[chosen.batch]
        done = SliceDone(chosen.batch, took, finished)
        name = "end of a batch" if finished else "end of a slice"
        began = time.perf_counter_ns()
        actions = self.timings.of(name, lambda: self.arbiter.handle(done, self._now))
        actions += self.arbiter.handle(TimePassed(), self._now)
        self.timings.taken.setdefault("boundary", []).append(time.perf_counter_ns() - began + decided)
        self._take(actions)

    def _pass_time(self, elapsed: Nanoseconds) -> None:
        """While the slice runs: requests become late."""
        self._now += elapsed
        began = time.perf_counter_ns()
        actions = self.arbiter.handle(TimePassed(), self._now)
        took = time.perf_counter_ns() - began
        late = sum(isinstance(action, Drop) for action in actions)
        self.timings.taken.setdefault(f"time passes, {min(late, 2)}{'+' * (late > 1)} late", []).append(took)
        self._take(actions)

    def _decide(self) -> tuple[Slice, Nanoseconds]:
        started = time.perf_counter_ns()
        chosen: Slice | None = self.timings.of("decision", lambda: self.arbiter.next_slice(self._now))
        decided = time.perf_counter_ns() - started
        if chosen is None:
            raise AssertionError("the lane is idle")
        if chosen.first:
            self._left[chosen.batch] = 3
        self.timings.taken.setdefault("  a batch begins" if chosen.first else "  a batch goes on", []).append(decided)
        return chosen, decided

    def _take(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, Drop):
                self._open.pop(action.call, None)
            elif isinstance(action, Complete):
                for call in action.calls:
                    self._open.pop(call, None)
            elif isinstance(action, Abandon):
                self._left.pop(action.batch, None)


def once(policy: PolicyName, mix: Mix, tenants: int, waiting: int, boundaries: int, seed: int) -> Timings:
    """One workload from its beginning."""
    load = Load(policy, mix, tenants, waiting, seed)
    gc.collect()
    gc.disable()
    load.fill()
    for _ in range(boundaries):
        load.boundary()
        load.cancel()
        load.fill()
    gc.enable()
    load.arbiter.check_invariants()
    return load.timings


def measure(policy: PolicyName, mix: Mix, arguments: argparse.Namespace) -> Timings:
    """The same workload several times: the shortest time of each operation."""
    sizes = (arguments.tenants, arguments.waiting, arguments.boundaries)
    runs = [once(policy, mix, *sizes, seed=1) for _ in range(arguments.repeats)]
    shortest = Timings()
    for name in runs[0].taken:
        shortest.taken[name] = [min(times) for times in zip(*(run.taken[name] for run in runs), strict=True)]
    return shortest


def tell(policy: PolicyName, name: str, timings: Timings, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Prints what each operation took: by name p50 and p99, in microseconds."""
    print(f"{policy}, {name}: {arguments.tenants} tenants, {arguments.waiting} requests waiting; microseconds")
    print(f"{'':26} {'count':>7} {'p50':>8} {'p90':>8} {'p99':>8} {'p99.9':>8}")
    told: dict[str, dict[str, float]] = {}
    for operation in sorted(timings.taken, key=lambda each: each.strip()):
        row = [timings.quantile_us(operation, share) for share in (0.5, 0.9, 0.99, 0.999)]
        count = len(timings.taken[operation])
        print(f"{operation:26} {count:7} " + " ".join(f"{value:8.1f}" for value in row))
        told[operation.strip()] = {"count": count, "p50_us": round(row[0], 1), "p99_us": round(row[2], 1)}
    return told


def main() -> None:
    """Prints what each operation took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--boundaries", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--mix", choices=tuple(MIXES), action="append", help="only these; several may be named")
    arguments = parser.parse_args()
    told: dict[str, Any] = {"benchmark": "arbiter", "tenants": arguments.tenants, "waiting": arguments.waiting}
    for policy in POLICIES:
        for name in arguments.mix or MIXES:
            if policy == "reservations" or name == "mixed":
                timings = measure(policy, MIXES[name], arguments)
                told.setdefault(policy, {})[name] = tell(policy, name, timings, arguments)
    ours = told["reservations"]
    told["decision_p99_us"] = {name: each["decision"]["p99_us"] for name, each in ours.items()}
    print(f"a decision, p99 by mix: {told['decision_p99_us']}")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
