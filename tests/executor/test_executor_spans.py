"""Traces: nothing is made before the verdict, and what is made adds up to the time the call took."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from harness import Frontend, house, request

from services._proto.apportion.v1 import executor_pb2 as pb
from services.common import attributes as names
from services.common.telemetry import SpanRecord
from services.executor.spans import Spans

SMALL = np.arange(6, dtype=np.float32).reshape(2, 3)
SPAN = pb.SpanContext(trace_id=b"t" * 16, span_id=b"s" * 8)


class Recorder:
    """A tracer that keeps what it is given."""

    enabled = True

    def __init__(self) -> None:
        self.records: list[SpanRecord] = []

    def emit_all(self, records: list[SpanRecord]) -> bool:
        self.records += records
        return True


async def traced(keep: bool | None, *, early: bool = False, **more: Any) -> tuple[list[SpanRecord], Spans]:
    recorder: Any = Recorder()
    async with house(tracer=recorder) as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        verdicts = [pb.Verdict(call=1, keep=keep)] if keep is not None else []
        if early:
            await frontend.send(verdicts=verdicts)
        await frontend.result(await frontend.infer(request(SMALL), span=SPAN, **more))
        if not early:
            assert recorder.records == []
            await frontend.send(verdicts=verdicts)
        await frontend.result(await frontend.infer(request(SMALL)))
        return recorder.records, built.spans


async def test_a_kept_request_has_a_span_for_each_stage_end_to_end() -> None:
    records, _ = await traced(True)
    stages = [record for record in records if record.name != names.SPAN_BATCH]
    assert [record.name for record in stages] == ["decode", "queue", "compute", "encode"]
    assert all((record.trace_id, record.parent_span_id) == (b"t" * 16, b"s" * 8) for record in stages)
    assert all(a.end_ns == b.start_ns for a, b in itertools.pairwise(stages))
    assert stages[2].attributes[names.BATCH_ROWS] == 2
    assert stages[2].attributes[names.TENANT_NAME] == "acme"


async def test_a_batch_is_a_trace_of_its_own_linked_both_ways() -> None:
    records, _ = await traced(True)
    (batch,) = [record for record in records if record.name == names.SPAN_BATCH]
    (compute,) = [record for record in records if record.name == names.STAGE_COMPUTE]
    assert compute.links == [(batch.trace_id, batch.span_id, {names.LINK_KIND: names.LINK_BATCH})]
    assert batch.links == [(b"t" * 16, b"s" * 8, {names.LINK_KIND: names.LINK_MEMBER})]
    assert batch.parent_span_id is None


async def test_a_request_that_is_not_kept_costs_no_span() -> None:
    assert (await traced(False))[0] == []
    assert (await traced(None))[0] == []


async def test_a_verdict_that_comes_before_the_end_is_remembered() -> None:
    assert len((await traced(True, early=True))[0]) == 5


async def test_a_refused_request_says_why_in_its_trace() -> None:
    records, _ = await traced(True, deadline_us=0)
    assert [record.name for record in records] == ["decode", "queue"]
    assert records[1].attributes[names.ERROR_TYPE] == "DEADLINE_EXCEEDED"
    assert records[1].error
