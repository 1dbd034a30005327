"""The spans of one call and of one batch, from what was noted of them. Nothing is read here but arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from gpu_sharing.measurements import Batch
from gpu_sharing.units import Nanoseconds
from services.common import attributes as names
from services.common.errors import Reason, Refusal
from services.common.spans import SpanRecord, Value, new_span_id
from services.executor.core.waits import Owner, Waits, neighbours, waits
from services.executor.inflight import Call

_US = 1_000
MOST_SEGMENTS = 128
"""Segments of a batch that a span tells of."""
Link = tuple[bytes, bytes, dict[str, Value]]


class Told(NamedTuple):
    """What is known of a call that is over. batch: None: it rode in none. missing: what its trace cannot show; "": nothing."""

    call: Call
    batch: Batch | None
    ended: Nanoseconds
    refusal: Refusal | None
    gathered: Nanoseconds
    copied: Nanoseconds
    missing: str


def stages_of(
    told: Told,
    about: Mapping[str, Value],
    lane: Mapping[str, Value],
    own: Owner,
    owners: Callable[[int], Owner | None],
) -> list[SpanRecord]:
    """One span for each stage, end to end from the arrival to the end. about: what all of them say; lane: what compute's does."""
    call, batch = told.call, told.batch
    stages = _Stages(told, about)
    if call.complete > call.arrived:
        stages.add(names.STAGE_TRANSPORT, call.arrived, call.complete)
    decode = stages.add(names.STAGE_DECODE, call.complete, call.handed)
    if call.copy_ns:
        decode.attributes[names.SLO_COPY_US] = call.copy_ns // _US
        decode.events.append((names.EVENT_PLACED, call.handed, {}))
    if batch is None:
        return stages.without_batch()
    # A worker's moments are its own word: no stage begins before the one before it has ended.
    started = max(batch.started, call.handed)
    finished = max(batch.ended, started)
    waited = waits(batch, call.handed, call.serving.replica, own, owners)
    joining_from = max(call.handed, started - waited.batch)
    queue = stages.add(names.STAGE_QUEUE, call.handed, joining_from)
    _describe_wait(queue, waited, own)
    if joining_from < started:
        stages.add(names.STAGE_BATCH_WAIT, joining_from, started)
    compute = stages.add(names.STAGE_COMPUTE, started, finished)
    compute.attributes |= lane
    _describe_compute(compute, told, batch, waited)
    ended = max(told.ended, call.announced)
    encode = stages.add(names.STAGE_ENCODE, finished, ended)
    if finished < told.copied <= ended:
        encode.attributes[names.SLO_COPY_US] = (told.copied - finished) // _US
        encode.events.append((names.EVENT_SCATTERED, told.copied, {}))
    return stages.done(compute)


class _Stages:
    """Spans of one call as they are made."""

    def __init__(self, told: Told, about: Mapping[str, Value]) -> None:
        self._told, self._about = told, about
        self.records: list[SpanRecord] = []

    def add(self, stage: str, start: Nanoseconds, end: Nanoseconds) -> SpanRecord:
        """A stage; never one that ends before it starts."""
        call = self._told.call
        assert call.span is not None
        record = SpanRecord(
            name=stage,
            trace_id=call.span[0],
            span_id=new_span_id(),
            parent_span_id=call.span[1],
            start_ns=start,
            end_ns=max(start, end),
            attributes={**self._about, names.SLO_STAGE: stage},
        )
        if self._told.missing:
            record.attributes[names.SLO_MISSING] = self._told.missing
        self.records.append(record)
        return record

    def without_batch(self) -> list[SpanRecord]:
        """The rest of a call that rode in no batch: it waited, or its worker took with it what it did."""
        call, ended = self._told.call, self._told.ended
        refusal = self._told.refusal
        if call.handed >= ended:
            return self.done(self.records[-1])
        lost = refusal is not None and refusal.reason is Reason.WORKER_LOST
        record = self.add(names.STAGE_UNACCOUNTED if lost else names.STAGE_QUEUE, call.handed, ended)
        if lost:
            record.attributes[names.SLO_MISSING] = (
                f"{names.STAGE_QUEUE}, {names.STAGE_COMPUTE}: the worker of lane {call.serving.lane.number} was lost"
            )
        return self.done(record)

    def done(self, failed: SpanRecord) -> list[SpanRecord]:
        """All spans. failed: the one that bears the error, where the call was refused."""
        refusal = self._told.refusal
        if refusal is not None:
            failed.error, failed.attributes[names.ERROR_TYPE] = refusal.in_traces, str(refusal.reason)
        return self.records


def _describe_wait(queue: SpanRecord, waited: Waits, own: Owner) -> None:
    if waited.neighbours:
        queue.attributes[names.SLO_NEIGHBOUR_US] = waited.neighbours // _US
    told = neighbours(waited.turns, own[0])
    if told:
        queue.attributes[names.TENANT_NEIGHBOUR] = sorted(told.values())
    for turn, whose in waited.turns:
        facts: dict[str, Value] = {names.EVENT_TOOK_US: (turn.ended - turn.began) // _US}
        if whose is not None:
            # Of its own tenant's, the model; of anyone else's, neither name nor model.
            other = whose[0] != own[0]
            facts[names.TENANT_NEIGHBOUR if other else names.MODEL_NAME] = told[whose[0]] if other else whose[1]
        queue.events.append((names.EVENT_OTHERS, turn.ended, facts))


def _describe_compute(compute: SpanRecord, told: Told, batch: Batch, waited: Waits) -> None:
    compute.attributes |= facts_of(batch)
    if waited.interrupted:
        compute.attributes[names.SLO_NEIGHBOUR_US] = waited.interrupted // _US
    # A slice begins for its arbiter a little before it does for its lane: all of it may have been the copy.
    gathered = min(told.gathered, compute.end_ns)
    if compute.start_ns < gathered:
        compute.attributes[names.SLO_COPY_US] = (gathered - compute.start_ns) // _US
        compute.events.append((names.EVENT_GATHERED, gathered, {}))
    compute.events += _segments(batch)


def _segments(batch: Batch) -> list[tuple[str, Nanoseconds, dict[str, Value]]]:
    return [(names.EVENT_SEGMENT, moment, {}) for moment in batch.segment_ends[:MOST_SEGMENTS]]


def batch_span(
    batch: Batch, trace_id: bytes, span_id: bytes, about: Mapping[str, Value], links: list[Link]
) -> SpanRecord:
    """A batch as a trace of its own. links: to its members."""
    return SpanRecord(
        name=names.SPAN_BATCH,
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=None,
        start_ns=batch.started,
        end_ns=max(batch.started, batch.ended),
        attributes={**about, **facts_of(batch)},
        events=_segments(batch),
        links=links,
    )


def facts_of(batch: Batch) -> dict[str, Value]:
    """What spans say of a batch."""
    facts: dict[str, Value] = {
        names.BATCH_ID: batch.number,
        names.BATCH_ROWS: batch.rows,
        names.BATCH_REQUESTS: batch.requests,
        names.BATCH_SLICES: len(batch.segment_ends),
        names.BATCH_PREEMPTIONS: batch.preemptions,
        names.BATCH_PREEMPTED_US: batch.preempted // _US,
        names.BATCH_COLD: not batch.expected,
    }
    if batch.expected:
        facts[names.BATCH_EXPECTED_US] = batch.expected // _US
    if batch.predicted:
        facts[names.BATCH_PREDICTED_US] = batch.predicted // _US
    if batch.tier:
        facts[names.SLO_ADMISSION] = batch.tier
    return facts
