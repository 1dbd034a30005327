"""What the trace benchmarks judge by: medians with their intervals, processor time, an objective that half of all requests miss."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import pytest

from bench.trace_match import EVERY, PLACES, VIOLATORS, Near
from bench.tracing import cpu_ns, middle


@pytest.mark.parametrize(("count", "low", "high"), [(1, 0, 0), (5, 0, 4), (6, 0, 5), (15, 3, 11), (30, 9, 20)])
def test_a_median_lies_between_the_ranks_that_the_sign_test_gives(count: int, low: int, high: int) -> None:
    values = list(range(count))
    random.Random(1).shuffle(values)
    assert (middle(values)["from"], middle(values)["to"]) == (low, high)


def test_the_interval_holds_the_true_median_nineteen_times_in_twenty() -> None:
    chance = random.Random(2)
    held = sum(
        told["from"] <= 1.0 <= told["to"]
        for told in (middle([chance.lognormvariate(0, 0.5) for _ in range(20)]) for _ in range(1000))
    )
    assert 930 <= held <= 990


def test_processor_time_is_that_of_the_process_and_of_no_other() -> None:
    before, wall_ns = cpu_ns(os.getpid()), time.process_time_ns()
    while time.process_time_ns() - wall_ns < 20_000_000:
        pass
    assert cpu_ns(os.getpid()) - before >= 20_000_000
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(ProcessLookupError):
        cpu_ns(ended.pid)


@pytest.mark.parametrize("slower", [0.1, 1.0, 50.0])
def test_half_of_the_near_ones_are_late_on_a_fast_machine_and_on_a_slow_one(slower: float) -> None:
    near, chance = Near(), random.Random(3)
    for _ in range(200):
        near.judged(chance.lognormvariate(1, 0.8) * slower > near.slo_ms)
    late = [chance.lognormvariate(1, 0.8) * slower * (1 + number / 500) for number in range(1000)]
    missed = 0
    for took_ms in late:
        violated = took_ms > near.slo_ms
        missed += violated
        near.judged(violated)
    assert 450 <= missed <= 550
    # Two of the three kinds always are, and half of the third.
    assert (len(PLACES) - 0.5) / EVERY == VIOLATORS
