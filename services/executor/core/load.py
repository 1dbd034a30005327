"""How long a request that arrives now is likely to wait: what frontends choose replicas by."""

from __future__ import annotations

from gpu_sharing.units import Millidevices, Nanoseconds

_WEIGHT = 8
"""One observation counts for an eighth, as in TCP's estimate of a round trip (Jacobson 1988)."""


def smoothed(before_ns: Nanoseconds, seen_ns: Nanoseconds) -> Nanoseconds:
    """A moving average of device time per request; the first observation stands as it is."""
    return seen_ns if before_ns == 0 else before_ns + (seen_ns - before_ns) // _WEIGHT


def expected_wait_ns(own_backlog_ns: Nanoseconds, lane_backlog_ns: Nanoseconds, bandwidth: Millidevices) -> Nanoseconds:
    """Time until a request behind all of its own replica's work would start.

    Its replica is served at least at its bandwidth, and waits at most for everything on the lane.
    """
    if bandwidth <= 0:
        return lane_backlog_ns
    return min(lane_backlog_ns, own_backlog_ns * 1000 // bandwidth)
