"""The calls in hand: from a frontend's Infer to the worker and back. Never waits, makes no task for a usual request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import count

import structlog
from msgspec.structs import replace

from gpu_sharing.measurements import Batch
from gpu_sharing.units import Nanoseconds
from gpu_sharing.worker.messages import Cancel, Done, Failed, Release, Submit
from services._proto.apportion.v1.executor_pb2 import Infer, Result
from services.common.errors import Reason, Refusal
from services.common.status import to_status
from services.executor.core.elements import walk_elements
from services.executor.core.heads import Invalid
from services.executor.core.load import smoothed
from services.executor.core.regions import InRegions
from services.executor.core.statistics import StatisticsLedger
from services.executor.decode import (
    ALIGNMENT,
    WALKED_AT_ONCE,
    Decoded,
    Placed,
    as_refusal,
    check_elements,
    in_place,
    out_of_memory,
    place,
    place_typed,
    shape_key,
)
from services.executor.inflight import Call, Caller, Lane, Phase, Serving, stages
from services.executor.regions import DeviceRegions
from services.executor.spans import Spans

log = structlog.get_logger()

_US = 1_000
LEFT = Refusal(Reason.CANCELLED, "its frontend waits for it no more")


class Calls:
    """Every call of this executor.

    inline_bytes: longer answers go as chunks. changed: called with a replica whose load has changed. most: calls of one
    replica in hand, whether its worker answers or not; the worker's own, lower limit speaks first where it does.
    """

    def __init__(
        self, inline_bytes: int, spans: Spans, changed: Callable[[Serving], None], *, most: int = 8192
    ) -> None:
        self._inline_bytes, self._spans, self._changed, self._most = inline_bytes, spans, changed, most
        self._numbers = count(1)
        self._walks: set[asyncio.Task[None]] = set()
        self.statistics = StatisticsLedger()
        self.regions = DeviceRegions({})
        """What of callers' device memory is open here; nothing, unless it is set."""
        self.serving: dict[int, Serving] = {}
        """The replicas that take requests, by id."""

    def begin(self, caller: Caller, infer: Infer, serving: Serving, arrived: Nanoseconds) -> Call | None:
        """Takes a request for a served replica in; None where it has been answered already. Where its payload follows in
        chunks, `complete` says when it is there."""
        call = Call(next(self._numbers), caller, infer, serving, arrived)
        serving.outstanding += 1
        serving.lane.calls[call.number] = call
        self._changed(serving)
        try:
            if serving.outstanding > self._most:
                raise crowded(serving, self._most)
            if infer.bulk_bytes:
                self._reserve(call)
            else:
                self._start(call, infer.payload)
        except Refusal as refusal:
            self.refuse(call, refusal)
            return None
        return call

    def complete(self, call: Call) -> None:
        """The last chunk of a call has been written to its block."""
        memory = call.serving.client.inputs.view[call.base : call.base + call.bulk_bytes]
        call.complete = time.monotonic_ns()
        try:
            self._start(call, memory)
        except Refusal as refusal:
            self.refuse(call, refusal)

    def cancel(self, call: Call) -> None:
        """Nobody waits for it any more: no result, and its memory as soon as the worker lets go of it."""
        call.wanted = False
        if call.phase is Phase.RECEIVING:
            call.handed = time.monotonic_ns()
            self._over(call)
            self._left(call, call.handed)
        elif call.phase is Phase.RUNNING:
            call.serving.client.send(Cancel(call.number))

    def sent(self, call: Call) -> None:
        """The outputs of an answered call have been read, or nobody wants them."""
        call.serving.client.send(Release(call.number))

    def done(self, lane: Lane, done: Done) -> None:
        """The worker's answer."""
        call = lane.calls.get(done.call)
        if call is None or call.phase is not Phase.RUNNING:
            return
        serving, batch = call.serving, done.batch
        served_ns = max(0, batch.ended - batch.started - batch.preempted) // max(1, batch.requests)
        serving.service_ns = smoothed(serving.service_ns, served_ns)
        serving.queue_ns += max(0, batch.started - call.handed)
        serving.compute_ns += max(0, batch.ended - batch.started)
        self._over(call)
        if not call.wanted:
            self.sent(call)
            self._count(call, Reason.CANCELLED)
            now = time.monotonic_ns()
            serving.counts.refused(batch, call.arrived, call.handed, now)
            self._spans.finished(call, batch, now, LEFT, done.gathered, done.copied)
            return
        try:
            self._answer(call, done)
        except Refusal as refusal:
            self.sent(call)
            self._respond(call, refusal, batch)

    def failed(self, lane: Lane, failed: Failed) -> None:
        """The worker's refusal."""
        call = lane.calls.get(failed.call)
        if call is None or call.phase is not Phase.RUNNING:
            return
        reason = Reason(failed.reason) if failed.reason in _WORKER_REASONS else Reason.INTERNAL
        self._over(call)
        self._respond(call, Refusal(reason, failed.message[:4000], facts=failed.facts), failed.batch)

    def lost(self, lane: Lane, reason: str) -> None:
        """The lane's worker is gone: every call that depended on it is answered at once."""
        for call in list(lane.calls.values()):
            refusal = Refusal(Reason.WORKER_LOST, f"the worker of {call.serving.model!r} was lost: {reason}")
            self.refuse(call, refusal)

    def _reserve(self, call: Call) -> None:
        """Makes room for chunks, with some to spare so that the first tensor can be aligned."""
        arena, wanted = call.serving.client.inputs, call.bulk_bytes + ALIGNMENT
        block = arena.allocate(wanted, call.serving.owner) if wanted <= arena.capacity_bytes else None
        if block is None:
            raise out_of_memory(arena, wanted)
        call.blocks, call.base = (block,), block

    def _start(self, call: Call, payload: bytes | memoryview) -> None:
        """Decodes, checks, copies and submits. Raises Refusal."""
        serving = call.serving
        decoded = call.decoded = serving.decoder.decode(payload)
        arena = serving.client.inputs
        began = time.monotonic_ns()
        if isinstance(payload, bytes):
            placed = place(arena, decoded, payload, serving.owner)
        elif decoded.plan.raw:
            placed = in_place(decoded, payload, call.base)
        else:
            placed = place_typed(arena, decoded.plan, serving.owner)
        call.copy_ns = time.monotonic_ns() - began
        if placed.block is not None:
            call.blocks = (*call.blocks, placed.block)
        if check_elements(decoded.plan, placed.contents):
            self._submit(call, decoded, placed)
            return
        call.phase = Phase.CHECKING
        walk = asyncio.ensure_future(self._walk(call, decoded, placed))
        self._walks.add(walk)
        walk.add_done_callback(self._walks.discard)

    async def _walk(self, call: Call, decoded: Decoded, placed: Placed) -> None:
        """Checks many elements of BYTES, others getting their turns in between; then submits."""
        try:
            for each, content in zip(decoded.plan.inputs, placed.contents, strict=True):
                if each.length_bytes is None:
                    for _ in walk_elements(each, content, WALKED_AT_ONCE):
                        await asyncio.sleep(0)
                        if call.phase is not Phase.CHECKING or not call.wanted:
                            break
            if call.phase is Phase.CHECKING:
                self._submit(call, decoded, placed)
        except Invalid as problem:
            self.refuse(call, as_refusal(problem))
        except Refusal as refusal:
            self.refuse(call, refusal)

    def _submit(self, call: Call, decoded: Decoded, placed: Placed) -> None:
        """Hands a checked call to the worker. Raises Refusal where its deadline has passed."""
        if not call.wanted:
            call.handed = time.monotonic_ns()
            self._over(call)
            self._left(call, call.handed)
            return
        call.handed = now = time.monotonic_ns()
        queueing = call.serving.queueing
        deadline = queueing.deadline(call.arrived, call.deadline)
        if deadline is not None and now >= deadline:
            late_us = (now - deadline) // _US
            raise Refusal(
                Reason.DEADLINE_EXCEEDED,
                f"the deadline passed {late_us} µs before the request could be queued",
                facts={"stage": "decode", "late_us": late_us},
            )
        plan = decoded.plan
        submit = Submit(
            call.number,
            call.serving.replica,
            plan.rows,
            shape_key(plan, placed.contents, call.number),
            placed.refs,
            plan.outputs,
            call.arrived,
            deadline,
            call.objective,
            queueing.priority(call.priority),
        )
        if plan.in_regions:
            sources = plan.sources
            self.regions.check(call.serving.lane.number, InRegions(sources, plan.sinks))
            submit = replace(submit, sources=sources, sinks=plan.sinks)
        call.phase, call.rows = Phase.RUNNING, plan.rows
        call.serving.client.send(submit)

    def _over(self, call: Call) -> None:
        """The call needs its inputs no more."""
        serving = call.serving
        call.phase = Phase.ANSWERED
        serving.lane.calls.pop(call.number, None)
        serving.outstanding -= 1
        if call.blocks and not serving.client.lost.done():
            for block in call.blocks:
                serving.client.inputs.free(block)
        call.blocks = ()
        call.caller.returned(call)
        self._changed(serving)

    def refuse(self, call: Call, refusal: Refusal) -> None:
        """Ends a call with a refusal, unless it is over."""
        if call.phase is not Phase.ANSWERED:
            self._over(call)
            self._respond(call, refusal, None)

    def _respond(self, call: Call, refusal: Refusal, batch: Batch | None) -> None:
        """Answers with a status, unless nobody waits."""
        call.decoded = None
        self._count(call, refusal.reason)
        now = time.monotonic_ns()
        call.serving.counts.refused(batch, call.arrived, call.handed, now)
        if call.handed == call.arrived:
            # It never left for the worker: all its time here went before that.
            call.handed = now
        if not call.wanted:
            self._left(call, now, batch)
            return
        status = to_status(refusal).SerializeToString()
        call.caller.answer(Result(call=call.call, status=status, stages=stages(call, batch, now)))
        self._spans.finished(call, batch, now, refusal)

    def _answer(self, call: Call, done: Done) -> None:
        """Answers with the outputs: now, or in chunks. Raises Refusal where they do not fit."""
        decoded, serving = call.decoded, call.serving
        assert decoded is not None
        if tuple([ref.index for ref in done.outputs]) != decoded.plan.outputs:
            raise Refusal(Reason.MODEL_FAILED, "the worker answered with other outputs than were asked for")
        plan, memory = decoded.plan, serving.client.outputs
        if plan.classes:
            parts, length = serving.encoder.classified(
                decoded.model_name, decoded.request_id, done.outputs, plan.classes, memory
            )
        elif plan.sinks:
            parts, length = serving.encoder.stored(
                decoded.model_name, decoded.request_id, done.outputs, plan.sinks, memory
            )
        else:
            parts, length = serving.encoder.parts(decoded.model_name, decoded.request_id, done.outputs, memory)
        self._count(call, "OK")
        serving.rows += decoded.plan.rows
        serving.batched_requests += done.batch.requests
        now = time.monotonic_ns()
        if length > self._inline_bytes:
            call.caller.transfer(call, parts, done.batch)
        else:
            content = b"".join(parts)
            now = time.monotonic_ns()
            result = Result(call=call.call, payload=content, stages=stages(call, done.batch, now))
            call.caller.answer(result)
            serving.client.release(call.number, length)
        call.decoded = None
        serving.counts.succeeded(done.batch, plan.rows, call.arrived, call.handed, now)
        self._spans.finished(call, done.batch, now, None, done.gathered, done.copied)

    def _left(self, call: Call, now: Nanoseconds, batch: Batch | None = None) -> None:
        """The call is over and nobody waits for it; its frontend may still want to know where its time went."""
        self._spans.finished(call, batch, now, LEFT)

    def _count(self, call: Call, outcome: str) -> None:
        outcomes = call.serving.outcomes
        outcomes[outcome] = outcomes.get(outcome, 0) + 1


def crowded(serving: Serving, most: int) -> Refusal:
    """The refusal of a call whose replica has as many as it may have."""
    return Refusal(
        Reason.OVERLOADED,
        f"{serving.model!r} has {most} requests in hand here, as many as it may have",
        facts={"subject": serving.tenant, "outstanding": most, "limit": most},
        retry_after_s=1.0,
    )


_WORKER_REASONS = frozenset(
    {"DEADLINE_EXCEEDED", "CANCELLED", "OVERLOADED", "OUT_OF_MEMORY", "MODEL_FAILED", "MODEL_NOT_READY"}
    | {"REGION_NOT_FOUND", "FIELD_INVALID"}
)
