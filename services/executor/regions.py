"""Regions of other processes' device memory: opened in every worker that runs, anew in one that is started, closed with their
frontend's session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from gpu_sharing.units import Bytes
from gpu_sharing.worker.messages import CloseRegion, OpenRegion, RegionFailed, RegionOpened
from services._proto.apportion.v1.executor_pb2 import OpenRegionRequest
from services.common.errors import Reason, Refusal, invalid
from services.executor.core.regions import MOST_BYTES, InRegions, is_region
from services.executor.inflight import Lane

log = structlog.get_logger()

ANSWER_S = 10.0
"""How long a worker may take to open a region."""
MOST_REGIONS = 4096
"""Of all tenants together: frontends bound each tenant."""
HANDLE_BYTES = 64
_REASONS = {
    "FIELD_INVALID": Reason.FIELD_INVALID,
    "UNSUPPORTED": Reason.UNSUPPORTED,
    "OUT_OF_MEMORY": Reason.OUT_OF_MEMORY,
}


class _Held:
    """session: with which it is closed. lanes: whose workers have it open."""

    def __init__(self, command: OpenRegion, session: bytes) -> None:
        self.command, self.session = command, session
        self.lanes: set[int] = set()


class DeviceRegions:
    """What frontends have opened here. Belongs to one event loop.

    opens: whether there is a device whose memory may be opened. machine: the kernel's boot id.
    """

    def __init__(self, lanes: Mapping[int, Lane], *, opens: bool = False, machine: str = "") -> None:
        self._lanes, self.opens, self._machine = lanes, opens, machine
        self._held: dict[str, _Held] = {}
        self._waiting: dict[tuple[int, str], asyncio.Future[RegionOpened | RegionFailed | str]] = {}

    async def open(self, asked: OpenRegionRequest, is_open: Callable[[bytes], bool]) -> Bytes:
        """Opens a region in every worker that runs: the size of its memory. is_open: whether a session is. Raises Refusal."""
        self._check(asked, is_open)
        command = OpenRegion(asked.region, asked.tenant, asked.handle, asked.byte_size)
        held = self._held.get(asked.region)
        if held is not None and held.command != command:
            raise invalid("region", "is open already, as other memory")
        lanes = [number for number, lane in self._lanes.items() if lane.client is not None]
        if not lanes:
            raise Refusal(Reason.WORKER_LOST, "no worker runs on the device now; try again", retry_after_s=1.0)
        if held is None:
            held = self._held[asked.region] = _Held(command, asked.session)
        held.session = asked.session
        try:
            sizes = await asyncio.gather(*(self._open_in(number, held) for number in lanes))
            if not is_open(asked.session):
                raise _no_session()
        except BaseException:
            if self._held.get(asked.region) is held:
                self.close(asked.region)
            raise
        return min(sizes)

    def close(self, region: str) -> None:
        """Lets go of a region; what is not there is gone already."""
        if self._held.pop(region, None) is None:
            return
        for lane in self._lanes.values():
            if lane.client is not None:
                lane.client.send(CloseRegion(region))

    def session_ended(self, session: bytes) -> None:
        """Its frontend is gone, and its callers' connections with it."""
        for region in [name for name, held in self._held.items() if held.session == session]:
            self.close(region)

    def worker_up(self, lane: int) -> None:
        """A worker has started: it opens what the one before had open."""
        client = self._lanes[lane].client
        if client is not None:
            for held in self._held.values():
                client.send(held.command)

    def worker_lost(self, lane: int, reason: str) -> None:
        """What was open there is open no more."""
        for held in self._held.values():
            held.lanes.discard(lane)
        for (number, _), waiting in list(self._waiting.items()):
            if number == lane and not waiting.done():
                waiting.set_result(reason)

    def take(self, lane: int, event: RegionOpened | RegionFailed) -> None:
        """A worker's answer."""
        held = self._held.get(event.region)
        if held is not None and isinstance(event, RegionOpened):
            held.lanes.add(lane)
        elif isinstance(event, RegionFailed):
            log.info("region not opened", lane=lane, reason=event.reason, problem=event.message[:200])
        waiting = self._waiting.get((lane, event.region))
        if waiting is not None and not waiting.done():
            waiting.set_result(event)

    def check(self, lane: int, used: InRegions) -> None:
        """Raises Refusal unless every part lies within a region that the lane's worker has open."""
        for part in (*used.sources, *used.sinks):
            held = self._held.get(part.region)
            if held is None or lane not in held.lanes:
                raise Refusal(
                    Reason.REGION_NOT_FOUND,
                    "a region of shared memory that the request names is not open on its device",
                )
            size_bytes = held.command.size_bytes
            if part.offset + part.length_bytes > size_bytes:
                raise invalid(
                    "shared_memory_byte_size",
                    f"{part.length_bytes} bytes at {part.offset} reach beyond the {size_bytes} bytes of the region",
                    region_bytes=size_bytes,
                )

    def _check(self, asked: OpenRegionRequest, is_open: Callable[[bytes], bool]) -> None:
        if not self.opens:
            raise Refusal(
                Reason.UNSUPPORTED,
                "this executor opens no memory of a CUDA device (APPORTION_EXECUTOR_CUDA_SHARED_MEMORY); send tensors in "
                "the request, or register system shared memory",
            )
        if not self._machine or asked.machine != self._machine:
            raise Refusal(Reason.UNSUPPORTED, "machine: memory of a device is shared within one machine alone")
        if not is_open(asked.session):
            raise _no_session()
        if not is_region(asked.region):
            raise invalid("region", "must be 32 lower-case hexadecimal digits")
        if len(asked.handle) != HANDLE_BYTES:
            raise invalid("handle", f"{len(asked.handle)} bytes given, {HANDLE_BYTES} are needed")
        if not 0 < asked.byte_size < MOST_BYTES:
            raise invalid("byte_size", f"must lie within 1 to {MOST_BYTES - 1}")
        if len(self._held) >= MOST_REGIONS and asked.region not in self._held:
            raise Refusal(
                Reason.QUOTA_EXCEEDED, f"an executor has {MOST_REGIONS} regions at most", facts={"limit": MOST_REGIONS}
            )

    async def _open_in(self, lane: int, held: _Held) -> Bytes:
        client, place = self._lanes[lane].client, (lane, held.command.region)
        assert client is not None
        waiting = self._waiting.get(place)
        if waiting is None:
            waiting = self._waiting[place] = asyncio.get_running_loop().create_future()
            client.send(held.command)
        try:
            answer = await asyncio.wait_for(asyncio.shield(waiting), ANSWER_S)
        except TimeoutError:
            raise Refusal(
                Reason.WORKER_LOST, f"a worker has not opened the region within {ANSWER_S:g} s", retry_after_s=1.0
            ) from None
        finally:
            self._waiting.pop(place, None)
        match answer:
            case RegionOpened():
                return answer.memory_bytes
            case RegionFailed():
                raise _refused(answer)
            case reason:
                raise Refusal(Reason.WORKER_LOST, f"the worker was lost: {reason}", retry_after_s=1.0)


def _refused(answer: RegionFailed) -> Refusal:
    message = answer.message[:400]
    reason = _REASONS.get(answer.reason, Reason.INTERNAL)
    return invalid("handle", message) if reason is Reason.FIELD_INVALID else Refusal(reason, message)


def _no_session() -> Refusal:
    return Refusal(Reason.REGION_NOT_FOUND, "session: there is no open primary stream of this session")
