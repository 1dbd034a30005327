"""Looks after workers: one that has work and does nothing is killed, so that its calls are answered and another is started."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping

import structlog

from gpu_sharing.measurements import Profile
from gpu_sharing.units import Nanoseconds
from gpu_sharing.worker.messages import Event
from services.executor.core.replica import Phase as ReplicaPhase
from services.executor.core.replicas import Replicas
from services.executor.core.watchdog import Patience, Watch, longest_ns
from services.executor.inflight import Lane, Phase

log = structlog.get_logger()

_LOOKS = 10
"""Times that it is looked within a lane's patience, so that a silence is found out at most a tenth too late."""


class Watching:
    """The watch over every lane's worker."""

    def __init__(self, lanes: Mapping[int, Lane], replicas: Replicas, patience: Patience) -> None:
        self._lanes, self._replicas, self._patience = lanes, replicas, patience
        self._watches: dict[int, Watch] = {}

    def started(self, lane: int) -> None:
        """The lane has a new worker."""
        self._watches[lane] = Watch(time.monotonic_ns())

    def loads(self, lane: int) -> None:
        """The lane's worker has been told to load a replica."""
        if lane in self._watches:
            self._watches[lane].loads(time.monotonic_ns())

    def heard(self, lane: int, event: Event) -> None:
        """The lane's worker has said something."""
        if lane in self._watches:
            self._watches[lane].heard(event, time.monotonic_ns())

    async def run(self) -> None:
        """Looks until cancelled."""
        pause_s = min(1.0, self._patience.lane_ns / _LOOKS / 1e9)
        while True:
            await asyncio.sleep(pause_s)
            self.look(time.monotonic_ns())

    def look(self, now: Nanoseconds) -> None:
        """Kills every worker that has been silent for too long."""
        for number, watch in self._watches.items():
            client = self._lanes[number].client
            if client is None or client.lost.done():
                continue
            reason = watch.silent(
                self._patience,
                working=any(call.phase is Phase.RUNNING for call in self._lanes[number].calls.values()),
                loading=self._replicas.loading(number) is not None,
                expected_ns=longest_ns(self._profiles(number)),
                now=now,
            )
            if reason is not None:
                log.error("worker does not answer; it is killed", lane=number, pid=client.pid, reason=reason)
                client.kill(reason)

    def _profiles(self, number: int) -> Iterator[tuple[Profile, int]]:
        for replica in self._replicas.all():
            profile, signature = replica.profile, replica.signature
            here = replica.wanted.lane == number and replica.phase is ReplicaPhase.READY
            if here and profile is not None and signature is not None:
                yield profile, signature.max_batch_size
