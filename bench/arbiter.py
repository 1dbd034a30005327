"""What a decision of the arbiter costs: `python -m bench.arbiter`.

100 tenants with 1,000 requests waiting, on one lane in virtual time: arrivals, slices and their ends as they come, so that what
is timed is what a lane waits for at a boundary. The same workload runs several times, and of each operation the shortest time
counts: what is told is what the arbiter costs, not what else the machine does. A decision is `next_slice`; a boundary is the
end of a slice, the time that has passed, and the decision. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter.events import Arrived, Complete, Drop, ReplicaAdded, SliceDone, TimePassed
from gpu_sharing.arbiter.policies import POLICIES, PolicyName, arbiter_of
from gpu_sharing.measurements import ProfilePoint
from gpu_sharing.units import MS, SECOND, US, Nanoseconds

SEGMENT: Nanoseconds = 1 * MS
ROWS = (1, 2, 4, 8, 16)


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

    def __init__(self, policy: PolicyName, tenants: int, waiting: int, seed: int) -> None:
        self.arbiter: Arbiter = arbiter_of(policy)
        self.timings = Timings()
        self._random = Random(seed)
        self._tenants, self._most = tenants, waiting
        self._now: Nanoseconds = 0
        self._calls = 0
        self._open: set[int] = set()
        self._left: dict[int, int] = {}
        for replica in range(tenants):
            costs = {rows: (3 + rows) * SEGMENT // 4 for rows in ROWS}
            points = tuple(
                ProfilePoint(rows, "16", 1, 3 * cost, 3 * cost, 100, segments_ns=(cost,) * 3)
                for rows, cost in costs.items()
            )
            share = 1000 // tenants
            added = ReplicaAdded(replica, ROWS[-1], share, 1 + replica % 4, points, f"tenant {replica}")
            self.arbiter.handle(added, 0)

    def fill(self) -> None:
        """Requests come until enough wait."""
        while len(self._open) < self._most:
            self._arrive("arrival, lane full" if self._left else "arrival, at the start")

    def _arrive(self, name: str) -> None:
        random = self._random
        kind = random.random()
        # Enough time for all that waits, or class batch.
        within = None if kind < 0.2 else int((2 + 18 * kind) * SECOND)
        deadline = None if kind < 0.5 or within is None else self._now + 2 * within
        objective = None if within is None else self._now + within
        replica, rows = random.randrange(self._tenants), random.choice((1, 1, 1, 2, 4))
        request = Request(self._calls, replica, rows, b"", self._now, deadline, objective)
        self._calls += 1
        self._open.add(request.call)
        self._take(self.timings.of(name, lambda: self.arbiter.handle(Arrived(request, "16"), self._now)))

    def boundary(self) -> None:
        """A slice begins and ends."""
        started = time.perf_counter_ns()
        chosen = self.timings.of("decision", lambda: self.arbiter.next_slice(self._now))
        decided = time.perf_counter_ns() - started
        if chosen is None:
            raise AssertionError("the lane is idle")
        if chosen.first:
            self._left[chosen.batch] = 3
            self.timings.taken.setdefault("  of a batch that begins", []).append(decided)
        else:
            self.timings.taken.setdefault("  to go on", []).append(decided)
        took = int(SEGMENT * self._random.uniform(0.8, 1.05))
        self._now += took
        self._left[chosen.batch] -= 1
        finished = not self._left[chosen.batch]
        if finished:
            del self._left[chosen.batch]
        done = SliceDone(chosen.batch, took, finished)
        name = "end of a batch" if finished else "end of a slice"
        began = time.perf_counter_ns()
        actions = self.timings.of(name, lambda: self.arbiter.handle(done, self._now))
        actions += self.timings.of("time passes", lambda: self.arbiter.handle(TimePassed(), self._now))
        self.timings.taken.setdefault("boundary", []).append(time.perf_counter_ns() - began + decided)
        self._take(actions)

    def _take(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, Drop):
                self._open.discard(action.call)
            elif isinstance(action, Complete):
                self._open.difference_update(action.calls)


def once(policy: PolicyName, tenants: int, waiting: int, boundaries: int, seed: int) -> Timings:
    """One workload from its beginning."""
    load = Load(policy, tenants, waiting, seed)
    gc.collect()
    gc.disable()
    load.fill()
    for _ in range(boundaries):
        load.boundary()
        load.fill()
    gc.enable()
    load.arbiter.check_invariants()
    return load.timings


def measure(policy: PolicyName, tenants: int, waiting: int, boundaries: int, repeats: int) -> Timings:
    """The same workload several times: the shortest time of each operation."""
    runs = [once(policy, tenants, waiting, boundaries, seed=1) for _ in range(repeats)]
    shortest = Timings()
    for name in runs[0].taken:
        shortest.taken[name] = [min(times) for times in zip(*(run.taken[name] for run in runs), strict=True)]
    return shortest


def main() -> None:
    """Prints what each operation took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--boundaries", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    told: dict[str, dict[str, float]] = {}
    for policy in POLICIES:
        timings = measure(policy, arguments.tenants, arguments.waiting, arguments.boundaries, arguments.repeats)
        print(f"{policy}: {arguments.tenants} tenants, {arguments.waiting} requests waiting; microseconds")
        print(f"{'':26} {'count':>7} {'p50':>8} {'p90':>8} {'p99':>8} {'p99.9':>8}")
        for name in sorted(timings.taken, key=lambda name: name.strip()):
            row = [timings.quantile_us(name, share) for share in (0.5, 0.9, 0.99, 0.999)]
            print(f"{name:26} {len(timings.taken[name]):7} " + " ".join(f"{value:8.1f}" for value in row))
            told.setdefault(policy, {})[f"{name.strip()} p99 us"] = round(row[2], 1)
    print(json.dumps({"benchmark": "arbiter", "tenants": arguments.tenants, "waiting": arguments.waiting, **told}))


if __name__ == "__main__":
    main()
