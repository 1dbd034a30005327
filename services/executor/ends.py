"""How a worker's life ends: it is lost, or it is stopped since its lane is in no layout in force."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Any

import structlog

from gpu_sharing.worker.client import WorkerClient
from services.executor.inflight import Lane

log = structlog.get_logger()

LEAVE_POLL_S, LEAVE_LOOKS, LEAVE_GRACE_S = 0.05, 600, 1.0
"""A worker that is needed no more goes once nobody reads its memory: looked at this often, at most so many times; then it has so long."""
MOST_NAMED = 8
"""Traces that the log names where a worker took requests with it."""
NOT_NEEDED = "its lane is in no layout in force"


async def lost_or_left(lane: Lane, client: WorkerClient, leaves: asyncio.Event, is_read: Callable[[], bool]) -> str:
    """Waits until the worker is lost, or has been stopped since it was told to leave; why.

    is_read: whether an answer that lies in its memory is still being sent.
    """
    told = asyncio.create_task(leaves.wait())
    try:
        ends: list[asyncio.Future[Any]] = [client.lost, told]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not client.lost.done():
            await _until_nothing_is_read(lane, client, is_read)
    finally:
        told.cancel()
    if client.lost.done():
        reason = client.lost.result()
        _log_loss(lane, client, reason)
        return reason
    log.info("worker leaves", lane=lane.number, pid=client.pid, reason=NOT_NEEDED)
    await client.stop(LEAVE_GRACE_S)
    return NOT_NEEDED


async def _until_nothing_is_read(lane: Lane, client: WorkerClient, is_read: Callable[[], bool]) -> None:
    """Large answers are read from the worker's memory while they are sent."""
    for _ in range(LEAVE_LOOKS):
        if client.lost.done() or not (lane.calls or is_read()):
            return
        await asyncio.sleep(LEAVE_POLL_S)


def _log_loss(lane: Lane, client: WorkerClient, reason: str) -> None:
    traced = (call.span[0].hex() for call in lane.calls.values() if call.span is not None)
    log.error(
        "worker lost",
        lane=lane.number,
        pid=client.pid,
        reason=reason,
        calls=len(lane.calls),
        traces=list(islice(traced, MOST_NAMED)),
    )
