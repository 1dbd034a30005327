"""Tries to break the promise with thousands of workloads, many of them at its bound: `python -m bench.promise`.

Each workload is a seed; a run prints how many there were, how many were within 10 % of the bound, how many pressed a tenant to
within 10 % of its objective, and how many broke the promise. What broke it is made as small as possible and, with --keep,
written down where the tests find it. The last line is JSON. Exits with 1 where anything broke.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpu_sharing.simulation.minimise import minimise
from gpu_sharing.simulation.promise import kept
from gpu_sharing.simulation.run import simulate
from gpu_sharing.simulation.scenario import Scenario, dumps
from gpu_sharing.simulation.workloads import Chance, promise_workload


class Tried(NamedTuple):
    """One workload. margins: of each tenant with the promise, its worst answer over its objective."""

    seed: int
    calls: int
    promised: int
    near: bool
    pressed: bool
    broken: bool
    margins: tuple[float, ...]


def workload(seed: int) -> Scenario:
    """The workload that a seed stands for."""
    return promise_workload(Chance(np.random.Generator(np.random.PCG64(seed))))


def attempt(seed: int) -> Tried:
    """Runs one. What raises has broken the promise, and more."""
    try:
        outcome = simulate(workload(seed))
    except Exception:
        traceback.print_exc()
        return Tried(seed, 0, 0, near=False, pressed=False, broken=True, margins=())
    fared = kept(outcome)
    return Tried(
        seed,
        len(outcome.answers),
        len(fared),
        any(each.is_near for each in fared),
        any(each.is_near and each.is_pressed for each in fared),
        any(each.broken for each in fared),
        tuple(each.worst / each.objective for each in fared if each.is_near),
    )


def breaks(scenario: Scenario) -> bool:
    """Whether it breaks the promise, or the arbiter itself."""
    try:
        return any(each.broken for each in kept(simulate(scenario)))
    except Exception:
        return True


def keep(seed: int, folder: Path) -> Path:
    """Writes down the smallest scenario that still breaks the promise the way this seed's workload does."""
    small = minimise(workload(seed), breaks)
    why = _why(small)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"promise_{seed}.txt"
    path.write_text(dumps(small, why=why))
    return path


def _why(scenario: Scenario) -> str:
    try:
        fared = [each for each in kept(simulate(scenario)) if each.broken]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "\n".join(
        f"replica {each.replica}: bound {each.bound}, objective {each.objective}, worst {each.worst}; "
        f"first: {each.broken[0].reason} at {each.broken[0].moment} of the call that came at {each.broken[0].request.arrived}"
        for each in fared
    )


def main() -> int:
    """Prints what was tried and what broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", type=int, default=10_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for what broke the promise, made small")
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.workloads)
    started = time.perf_counter()
    if arguments.jobs > 1:
        with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
            tried = pool.map(attempt, seeds, chunksize=50)
    else:
        tried = [attempt(seed) for seed in seeds]
    took = time.perf_counter() - started
    wrong = [each.seed for each in tried if each.broken]
    margins = sorted(margin for each in tried for margin in each.margins)
    told = {
        "workloads": len(tried),
        "tenants_with_the_promise": sum(each.promised for each in tried),
        "calls": sum(each.calls for each in tried),
        "within_10_percent_of_the_bound": sum(each.near for each in tried),
        "of_these_answered_within_10_percent_of_the_objective": sum(each.pressed for each in tried),
        "worst_over_objective_p50_near_the_bound": round(margins[len(margins) // 2], 3) if margins else None,
        "worst_over_objective_max_near_the_bound": round(margins[-1], 3) if margins else None,
        "broken": len(wrong),
        "broken_seeds": wrong[:20],
        "seconds": round(took, 1),
    }
    for name, value in told.items():
        print(f"{name.replace('_', ' '):55} {value}")
    if arguments.keep is not None:
        for seed in wrong[:20]:
            print("kept", keep(seed, arguments.keep))
    print(json.dumps(told))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
