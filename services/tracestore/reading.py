"""RollupService: what is known of requests, out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from services._proto.apportion.v1 import rollups_pb2 as pb
from services._proto.apportion.v1.rollups_pb2_grpc import RollupServiceServicer
from services.common.errors import invalid
from services.tracestore.messages import message
from services.tracestore.rollups import Rollups

PART_BYTES = 1 << 20


class Reader(RollupServiceServicer):
    """Answers from the rollups, model by model."""

    def __init__(self, rollups: Rollups) -> None:
        self._rollups = rollups

    async def ReadRollups(self, request: pb.ReadRollupsRequest, _context: Any) -> AsyncIterator[pb.ReadRollupsResponse]:
        """See rollups.proto."""
        start_s, end_s = request.start.seconds, request.end.seconds + bool(request.end.nanos)
        if not (request.HasField("start") and request.HasField("end") and start_s < end_s):
            raise invalid("start, end", "the range is empty")
        for tenant, model in await asyncio.to_thread(self._rollups.models, start_s, end_s):
            if request.tenant in ("", tenant) and request.model in ("", model):
                slots = await asyncio.to_thread(self._rollups.slots, tenant, model, start_s, end_s)
                for part in _parts(map(message, slots)):
                    yield part


def _parts(rollups: Iterable[pb.Rollup]) -> Iterable[pb.ReadRollupsResponse]:
    part, size = pb.ReadRollupsResponse(), 0
    for each in rollups:
        part.rollups.append(each)
        size += each.ByteSize()
        if size >= PART_BYTES:
            yield part
            part, size = pb.ReadRollupsResponse(), 0
    if part.rollups:
        yield part
