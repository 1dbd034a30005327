"""What a request's trace says of its time here: noted for every call, made into spans only for those whose verdict keeps them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from gpu_sharing.measurements import Batch
from gpu_sharing.units import Nanoseconds
from services.common import attributes as names
from services.common.errors import Refusal
from services.common.telemetry import Kind, SpanRecord, Tracer, new_span_id, new_trace_id
from services.executor.inflight import Call

_US = 1_000


class _Shared:
    """One batch as traces show it: a trace of its own, made once, when the first of its members is kept."""

    __slots__ = ("batch", "members", "span_id", "told", "trace_id")

    def __init__(self, batch: Batch) -> None:
        self.batch, self.told = batch, False
        self.trace_id, self.span_id = new_trace_id(), new_span_id()
        self.members: list[tuple[bytes, bytes]] = []


class _Note:
    """A finished call, until its verdict."""

    __slots__ = ("call", "ended", "refusal", "shared")

    def __init__(self, call: Call, shared: _Shared | None, ended: Nanoseconds, refusal: Refusal | None) -> None:
        self.call, self.shared, self.ended, self.refusal = call, shared, ended, refusal


class Spans:
    """Holds what is known of finished calls until the frontend's word on them.

    hold_ns and capacity: how long, and how many; the oldest go first and are counted in `dropped`.
    """

    def __init__(
        self, tracer: Tracer, executor_id: str, incarnation: str, *, hold_ns: Nanoseconds, capacity: int
    ) -> None:
        self._tracer, self._hold_ns, self._capacity = tracer, hold_ns, capacity
        self._where = {names.EXECUTOR_ID: executor_id, names.EXECUTOR_INCARNATION: incarnation}
        self._notes: OrderedDict[Hashable, _Note] = OrderedDict()
        self._early: OrderedDict[Hashable, Nanoseconds] = OrderedDict()
        self._last: dict[int, _Shared] = {}
        self.dropped = 0

    def finished(self, call: Call, batch: Batch | None, now: Nanoseconds, refusal: Refusal | None) -> None:
        """Notes a call that has been answered."""
        if not self._tracer.enabled or call.span is None:
            return
        shared = self._share(call, batch) if batch is not None else None
        note, key = _Note(call, shared, now, refusal), (call.caller.key, call.call)
        if self._early.pop(key, None) is not None:
            self._emit(note)
            return
        self._notes[key] = note
        self._trim(now)

    def verdict(self, caller: int, call: int, keep: bool, now: Nanoseconds) -> None:
        """The frontend's word on a call; where the call is not over yet, it is remembered."""
        key = (caller, call)
        note = self._notes.pop(key, None)
        if note is None and keep and self._tracer.enabled:
            self._early[key] = now
            self._trim(now)
        elif note is not None and keep:
            self._emit(note)

    def _trim(self, now: Nanoseconds) -> None:
        oldest = now - self._hold_ns
        while self._notes and (len(self._notes) > self._capacity or next(iter(self._notes.values())).ended < oldest):
            self._notes.popitem(last=False)
            self.dropped += 1
        while self._early and (len(self._early) > self._capacity or next(iter(self._early.values())) < oldest):
            self._early.popitem(last=False)

    def _share(self, call: Call, batch: Batch) -> _Shared:
        lane = call.serving.lane.number
        shared = self._last.get(lane)
        if shared is None or shared.batch.number != batch.number or shared.batch.started != batch.started:
            shared = self._last[lane] = _Shared(batch)
        if call.span is not None:
            shared.members.append(call.span)
        return shared

    def _emit(self, note: _Note) -> None:
        call, shared, refusal = note.call, note.shared, note.refusal
        self._stage(note, names.STAGE_DECODE, call.arrived, call.handed)
        if shared is None:
            self._stage(note, names.STAGE_QUEUE, call.handed, note.ended, refusal=refusal)
            return
        batch = shared.batch
        waited_from = max(call.handed, batch.started - batch.waited_for_others)
        self._stage(note, names.STAGE_QUEUE, call.handed, waited_from)
        if waited_from < batch.started:
            self._stage(note, names.STAGE_BATCH_WAIT, waited_from, batch.started)
        self._stage(note, names.STAGE_COMPUTE, batch.started, batch.ended, refusal=refusal)
        self._stage(note, names.STAGE_ENCODE, batch.ended, note.ended)
        if not shared.told:
            shared.told = True
            self._tracer.emit(self._batch(call, shared))

    def _stage(
        self, note: _Note, stage: str, start: Nanoseconds, end: Nanoseconds, *, refusal: Refusal | None = None
    ) -> None:
        call, shared = note.call, note.shared
        assert call.span is not None
        record = SpanRecord(
            name=stage,
            trace_id=call.span[0],
            span_id=new_span_id(),
            parent_span_id=call.span[1],
            start_ns=start,
            end_ns=max(start, end),
            attributes={**self._about(call), names.SLO_STAGE: stage},
        )
        if refusal is not None:
            record.error, record.attributes[names.ERROR_TYPE] = refusal.message, str(refusal.reason)
        if stage == names.STAGE_COMPUTE and shared is not None:
            record.links.append((shared.trace_id, shared.span_id, {names.LINK_KIND: names.LINK_BATCH}))
            record.attributes |= _facts(shared.batch)
        self._tracer.emit(record)

    def _batch(self, call: Call, shared: _Shared) -> SpanRecord:
        batch = shared.batch
        return SpanRecord(
            name=names.SPAN_BATCH,
            trace_id=shared.trace_id,
            span_id=shared.span_id,
            parent_span_id=None,
            start_ns=batch.started,
            end_ns=max(batch.started, batch.ended),
            kind=Kind.INTERNAL,
            attributes={**self._about(call), **_facts(batch)},
            events=[("slice ended", moment, {}) for moment in batch.segment_ends[:128]],
            links=[(trace, span, {names.LINK_KIND: names.LINK_MEMBER}) for trace, span in shared.members],
        )

    def _about(self, call: Call) -> dict[str, str | int]:
        serving = call.serving
        return {
            **self._where,
            names.TENANT_NAME: serving.tenant,
            names.MODEL_NAME: serving.model,
            names.MODEL_VERSION: str(serving.version),
            names.EXECUTOR_REPLICA: serving.replica,
            names.LANE_ID: serving.lane.number,
        }


def _facts(batch: Batch) -> dict[str, int]:
    return {
        names.BATCH_ID: batch.number,
        names.BATCH_ROWS: batch.rows,
        names.BATCH_REQUESTS: batch.requests,
        names.BATCH_SLICES: len(batch.segment_ends),
        names.BATCH_PREEMPTED_US: batch.preempted // _US,
    }
