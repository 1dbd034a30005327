"""A tenant that sends as fast as it was told to, over many connections, whatever it is answered."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import grpc

from services._proto.inference import grpc_service_pb2_grpc as stubs
from services.common.status import from_rpc_error

CHANNELS = 12
"""Frontends that share a port share its connections by chance: with so many, each has some."""


@dataclass
class Sent:
    """What became of requests: moments, from the begin, of those that were answered, and how long each took; the others by reason.
    retry_s: what the refused were told to wait."""

    answered_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    retry_s: list[float] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return len(self.answered_s) + sum(self.refused.values())

    def within(self, since_s: float, until_s: float) -> int:
        """Answers between two moments."""
        return sum(since_s <= at < until_s for at in self.answered_s)


async def send(
    address: str, metadata: tuple[tuple[str, str], ...], asked: Any, *, rate_per_s: float, seconds: float, channels: int
) -> Sent:
    """Sends at an even rate for so long, in turns over the connections; nobody waits for an answer."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    opened = [grpc.aio.insecure_channel(address, options=options) for _ in range(channels)]
    callers = [stubs.GRPCInferenceServiceStub(channel) for channel in opened]  # type: ignore[no-untyped-call]
    found, tasks = Sent(), set[asyncio.Task[None]]()
    await asyncio.gather(*(channel.channel_ready() for channel in opened))
    began = time.monotonic()
    for number in range(int(rate_per_s * seconds)):
        due = began + number / rate_per_s
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.ensure_future(_one(callers[number % channels], metadata, asked, began, due, found))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    await asyncio.gather(*(channel.close() for channel in opened))
    return found


async def _one(stub: Any, metadata: Any, asked: Any, began: float, due: float, found: Sent) -> None:
    try:
        await stub.ModelInfer(asked, timeout=10, metadata=metadata)
    except grpc.RpcError as error:
        refusal = from_rpc_error(error)
        reason = error.code().name if refusal is None else f"{refusal.reason} {refusal.facts.get('quota', '')}".strip()
        found.refused[reason] = found.refused.get(reason, 0) + 1
        if refusal is not None and refusal.retry_after_s is not None:
            found.retry_s.append(refusal.retry_after_s)
        return
    now = time.monotonic()
    found.answered_s.append(due - began)
    found.took_s.append(now - due)
