"""Open-loop traffic: requests arrive when they arrive, whether or not the ones before have been answered.

Arrivals of each tenant are a Poisson process. How long a request took counts from when it was due, so that a client that
lags behind cannot make the mesh look quicker than it is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from demo.client import Model
from services.common.status import from_rpc_error


@dataclass(frozen=True)
class Stream:
    """What one tenant sends. requests: encoded before, sent in turn; rate_per_s: the mean of arrivals. slo_ms: None for class `batch`."""

    tenant: str
    model: Model
    requests: Sequence[Any]
    rate_per_s: float
    slo_ms: float | None
    flood: bool = False


@dataclass
class Seen:
    """How a tenant's requests fared. latencies_s: of those answered; refused: the others, by reason."""

    latencies_s: list[float] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        """Requests altogether."""
        return len(self.latencies_s) + sum(self.refused.values())

    def within(self, objective_s: float) -> float:
        """The part of all requests that were answered within the objective."""
        return sum(took <= objective_s for took in self.latencies_s) / self.sent if self.sent else 1.0

    def kept(self, objective_s: float) -> float:
        """The part of those answered that were so within the objective: what being admitted was worth."""
        answered = len(self.latencies_s)
        return sum(took <= objective_s for took in self.latencies_s) / answered if answered else 1.0

    def quantile_s(self, q: float) -> float | None:
        """A quantile of the answered requests' times; None where none was answered."""
        if not self.latencies_s:
            return None
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


async def play(streams: Sequence[Stream], length_s: float, *, seed: int = 1) -> dict[str, Seen]:
    """Sends all streams at once for `length_s`, then waits for what is still out."""
    seen = {stream.tenant: Seen() for stream in streams}
    await asyncio.gather(
        *(_send(stream, length_s, random.Random(f"{seed}/{stream.tenant}"), seen[stream.tenant]) for stream in streams)
    )
    return seen


async def _send(stream: Stream, length_s: float, chance: random.Random, seen: Seen) -> None:
    started, due, calls = time.monotonic(), 0.0, []
    for number in range(1 << 30):
        due += chance.expovariate(stream.rate_per_s)
        if due >= length_s:
            break
        await asyncio.sleep(max(0.0, started + due - time.monotonic()))
        request = stream.requests[number % len(stream.requests)]
        calls.append(asyncio.create_task(_call(stream.model, request, started + due, seen)))
    await asyncio.gather(*calls)


async def _call(model: Model, request: Any, due: float, seen: Seen) -> None:
    try:
        await model.send(request)
        seen.latencies_s.append(time.monotonic() - due)
    except grpc.RpcError as error:
        refusal = from_rpc_error(error)
        reason = str(refusal.reason) if refusal is not None else error.code().name
        seen.refused[reason] = seen.refused.get(reason, 0) + 1
