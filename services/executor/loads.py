"""Tells frontends how busy replicas are, soon after that has changed and not more often than they can use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from services.executor.core.load import expected_wait_ns
from services.executor.inflight import Serving
from services.executor.session import Session


class Expected(NamedTuple):
    """How busy a replica is."""

    waiting: int
    wait_us: int


class Loads:
    """Of one executor's replicas. serving: those that take requests, by number. sessions: of the frontends that are told.
    interval_s: between a change and its telling."""

    def __init__(
        self,
        serving: Callable[[], dict[int, Serving]],
        sessions: Callable[[], Sequence[Session]],
        interval_s: float,
    ) -> None:
        self._serving, self._sessions, self._interval_s = serving, sessions, interval_s
        self._told: dict[int, Expected] = {}
        self._dirty: set[int] = set()
        """Lanes whose load has changed since it was told."""

    def changed(self, serving: Serving) -> None:
        """A replica has one call more or less; frontends are told in a moment."""
        if not self._dirty:
            asyncio.get_running_loop().call_later(self._interval_s, self._tell)
        self._dirty.add(serving.lane.number)

    def forget(self, replica: int) -> None:
        """The replica takes no more requests."""
        self._told.pop(replica, None)

    def _tell(self) -> None:
        dirty, self._dirty = self._dirty, set()
        sessions = self._sessions()
        for serving in self._serving().values():
            if serving.lane.number in dirty:
                expected = self._expected(serving)
                if self._told.get(serving.replica) != expected:
                    self._told[serving.replica] = expected
                    for session in sessions:
                        session.load(serving.replica, expected.waiting, expected.wait_us)

    def _expected(self, serving: Serving) -> Expected:
        lane_ns = sum(
            other.outstanding * other.service_ns for other in self._serving().values() if other.lane is serving.lane
        )
        wait_ns = expected_wait_ns(serving.outstanding * serving.service_ns, lane_ns, serving.bandwidth)
        return Expected(serving.outstanding, wait_ns // 1_000)
