"""What the check of a quota costs a request: nothing but a look into a dictionary for a tenant without one.

    python -m bench.quota_check

One process, no mesh, nothing else measured: the calls that the frontend's path makes, in turns; the median of the turns. What
the loop itself takes is taken off. The last line is JSON.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

from services.frontend.core.gate import MICRO, NEVER_NS, Lease, Terms
from services.frontend.core.gates import Gates, Limits

ROUNDS, CALLS = 25, 100_000
TENANTS = 1000


def main() -> None:
    gates = made()
    cases: dict[str, Callable[[], int]] = {
        "nothing": lambda: loop(),
        "without a quota": lambda: without(gates),
        "within its quota": lambda: within(gates, "t0"),
        "beyond its quota": lambda: within(gates, "none"),
    }
    took: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, case in cases.items():
            took[name].append(case() / CALLS)
    nothing = statistics.median(took["nothing"])
    found = {name: round(statistics.median(each) - nothing, 1) for name, each in took.items() if name != "nothing"}
    for name, ns in found.items():
        print(f"{name:18} {ns:7.1f} ns a request")
    print(json.dumps({"tenants": TENANTS, "calls": CALLS, "rounds": ROUNDS, "ns": found}))


def made() -> Gates:
    """A thousand tenants with a quota of everything, and one of nothing."""
    gates = Gates(unleased=0)
    now_ns = time.monotonic_ns()
    limits = {f"t{place}": Limits(10**9 * MICRO, 10**6, 10**6, 10**18) for place in range(TENANTS)}
    gates.replace({**limits, "none": Limits(rate=1)}, now_ns)
    terms = Terms(10**9 * MICRO, 10**6 * MICRO, 10**6, 10**15)
    gates.take({name: Lease(terms, terms, mint=terms.burst) for name in limits}, NEVER_NS, now_ns)
    return gates


def loop() -> int:
    """Takes what every turn of the loops takes."""
    started = time.perf_counter_ns()
    for _ in range(CALLS):
        pass
    return time.perf_counter_ns() - started


def without(gates: Gates) -> int:
    """What `Inference` does for a tenant without a quota."""
    get = gates.get
    started = time.perf_counter_ns()
    for _ in range(CALLS):
        gate = get("nobody")
        if gate is not None:
            raise AssertionError
        if gate is not None:
            raise AssertionError
    return time.perf_counter_ns() - started


def within(gates: Gates, tenant: str) -> int:
    """What it does for one that has a quota. The moment of arrival is known to every request."""
    get, now_ns = gates.get, time.monotonic_ns()
    started = time.perf_counter_ns()
    for _ in range(CALLS):
        gate = get(tenant)
        if gate is None:
            raise AssertionError
        now_ns += 1000
        exceeded = gate.enter(now_ns)
        if exceeded is None:
            gate.leave()
    return time.perf_counter_ns() - started


if __name__ == "__main__":
    main()
