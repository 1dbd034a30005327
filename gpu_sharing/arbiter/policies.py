"""The policies that belong together, by name. PURE."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from gpu_sharing.arbiter.admission import DEFAULT_QUEUE_LIMIT, BoundedQueue, Reservations
from gpu_sharing.arbiter.batching import Largest, LargestInTime
from gpu_sharing.arbiter.core import WHOLE_DEVICE, Arbiter
from gpu_sharing.arbiter.switching import ArrivalOrder, EarliestDeadline
from gpu_sharing.units import Millidevices, Nanoseconds

PolicyName: TypeAlias = Literal["reservations", "arrival_order"]
"""reservations: what the package's docstring promises. arrival_order: nobody is promised anything; for comparison."""

POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)


def arbiter_of(
    policy: PolicyName,
    *,
    lane: int = 0,
    queue_limit: int = DEFAULT_QUEUE_LIMIT,
    capacity: Millidevices = WHOLE_DEVICE,
    quantum_ns: Nanoseconds | None = None,
    ahead: int = 1,
) -> Arbiter:
    """An arbiter with this policy. quantum_ns: batches are kept so small that their longest slice fits it; None: they are not.

    ahead: slices that may be out at once. Raises ValueError for a policy that there is not, or a limit below 1.
    """
    if policy == "reservations":
        return Arbiter(
            lane=lane, capacity=capacity, admission=Reservations(queue_limit), switching=EarliestDeadline(),
            batching=LargestInTime(quantum_ns), ahead=ahead,
        )  # fmt: skip
    if policy == "arrival_order":
        return Arbiter(
            lane=lane, capacity=capacity, admission=BoundedQueue(queue_limit), switching=ArrivalOrder(),
            batching=Largest(quantum_ns), ahead=ahead,
        )  # fmt: skip
    raise ValueError(f"policy: {policy!r} is none of {', '.join(POLICIES)}")
