"""Traces: nothing is made before the verdict, and what is made adds up to the time the call took."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
from harness import Frontend, house, request

from gpu_sharing.measurements import Batch, Turn
from services._proto.apportion.v1 import executor_pb2 as pb
from services.common import attributes as names
from services.common.errors import Reason, Refusal
from services.common.telemetry import SpanRecord
from services.executor.inflight import Call
from services.executor.spans import MOST_DESERTED, Spans

SMALL = np.arange(6, dtype=np.float32).reshape(2, 3)
SPAN = pb.SpanContext(trace_id=b"t" * 16, span_id=b"s" * 8)


class Recorder:
    """A tracer that keeps what it is given."""

    enabled = True

    def __init__(self) -> None:
        self.records: list[SpanRecord] = []

    def emit_all(self, records: list[SpanRecord], *, spare: bool = False) -> bool:
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


class Calling:
    """A caller whose results are let go."""

    def __init__(self, key: int = 1) -> None:
        self.key = key


def note(spans: Spans, number: int, *, caller: int = 1, tenant: str = "acme", replica: int = 1, **more: Any) -> Any:
    """A call that is over, of a request whose span is known."""
    span = pb.SpanContext(trace_id=number.to_bytes(16, "big"), span_id=number.to_bytes(8, "big"))
    infer = pb.Infer(call=number, replica_id=replica, span=span, objective_us=more.pop("objective_us", 50_000))
    lane = SimpleNamespace(number=0)
    serving = SimpleNamespace(replica=replica, tenant=tenant, model=f"model-of-{tenant}", version=1, lane=lane)
    call: Any = Call(number, Calling(caller), infer, serving, more.pop("arrived", 1_000))  # type: ignore[arg-type]
    call.handed = more.pop("handed", 2_000)
    for name in ("complete", "copy_ns", "announced"):
        setattr(call, name, more.pop(name, getattr(call, name)))
    spans.finished(
        call,
        more.pop("batch", None),
        more.pop("now", 10_000_000),
        more.pop("refusal", None),
        more.pop("gathered", 0),
        more.pop("copied", 0),
    )
    assert not more, more
    return call


def watching(**more: Any) -> tuple[Spans, Recorder]:
    recorder: Any = Recorder()
    owners = {1: ("acme", "model-of-acme"), 2: ("globex", "model-of-globex")}
    lanes = {0: {names.EXECUTOR_BACKEND: "cpu", names.LANE_COMPUTE_UNITS: 2, names.LANE_PARTITION: "units 0-1"}}
    more = {"hold_ns": 10**12, "capacity": 100, "lanes": lanes, "owners": owners.get, **more}
    return Spans(recorder, "e1", "i1", **more), recorder


def ran(number: int, started: int, ended: int, **more: Any) -> Batch:
    return Batch(number, 0, 1, 1, started, ended, 0, 0, 0, (ended,), **more)


def named(recorder: Recorder, name: str) -> SpanRecord:
    (found,) = [record for record in recorder.records if record.name == name]
    return found


def test_copies_chunks_and_segments_are_told_where_they_happened() -> None:
    spans, recorder = watching()
    batch = ran(1, 3_000_000, 6_000_000, expected=2_000_000, predicted=2_500_000, tier="guaranteed")
    times = {"complete": 800_000, "handed": 1_000_000, "copy_ns": 90_000, "gathered": 3_200_000, "copied": 6_300_000}
    note(spans, 1, batch=batch, now=6_500_000, **times)
    spans.verdict(1, 1, True, 7_000_000, violated=True)
    stages = [record.name for record in recorder.records]
    assert stages == ["transport", "decode", "queue", "compute", "encode", "batch"]
    chunks, decode, compute, encode = (recorder.records[index] for index in (0, 1, 3, 4))
    assert (chunks.end_ns, decode.start_ns) == (800_000, 800_000)
    assert decode.attributes[names.SLO_COPY_US] == 90
    assert compute.attributes[names.SLO_COPY_US] == 200
    assert [event[:2] for event in compute.events] == [
        (names.EVENT_GATHERED, 3_200_000),
        (names.EVENT_SEGMENT, 6_000_000),
    ]
    assert encode.attributes[names.SLO_COPY_US] == 300
    facts = {names.BATCH_EXPECTED_US: 2000, names.BATCH_PREDICTED_US: 2500, names.SLO_ADMISSION: "guaranteed"}
    where = {names.EXECUTOR_BACKEND: "cpu", names.LANE_COMPUTE_UNITS: 2, names.LANE_PARTITION: "units 0-1"}
    for record in (compute, named(recorder, names.SPAN_BATCH)):
        assert record.attributes.items() >= (facts | where).items()
    assert named(recorder, names.SPAN_BATCH).attributes[names.SLO_KEPT_BECAUSE] == names.KEPT_VIOLATED


def test_a_batch_that_was_nothing_but_its_copy_says_so() -> None:
    spans, recorder = watching()
    note(spans, 1, batch=ran(1, 3_000_000, 6_000_000), handed=2_000_000, gathered=6_000_100, now=7_000_000)
    spans.verdict(1, 1, True, 8_000_000)
    compute = named(recorder, names.STAGE_COMPUTE)
    assert compute.attributes[names.SLO_COPY_US] == 3_000
    assert all(compute.start_ns <= moment <= compute.end_ns for _, moment, _ in compute.events)


def test_a_violator_points_to_the_neighbours_batch_and_never_names_it() -> None:
    spans, recorder = watching()
    note(spans, 1, caller=2, tenant="globex", replica=2, batch=ran(1, 5_000, 900_000))
    turn = Turn(2, 5_000, 900_000)
    note(spans, 2, batch=ran(2, 900_000, 950_000, others=(turn,)), handed=100_000)
    spans.verdict(1, 2, True, 10**7, violated=True)
    queue = named(recorder, names.STAGE_QUEUE)
    assert queue.attributes[names.SLO_NEIGHBOUR_US] == 800
    assert queue.attributes[names.TENANT_NEIGHBOUR] == ["neighbour A"]
    assert queue.events == [
        (names.EVENT_OTHERS, 900_000, {names.EVENT_TOOK_US: 800, names.TENANT_NEIGHBOUR: "neighbour A"})
    ]
    (link,) = queue.links
    own, other = [record for record in recorder.records if record.name == names.SPAN_BATCH]
    assert (link[0], link[2]) == (other.trace_id, {names.LINK_KIND: names.LINK_NEIGHBOUR})
    assert other.attributes[names.TENANT_NAME] == "globex"
    assert "globex" not in repr([record for record in recorder.records if record is not other])
    assert own.attributes[names.TENANT_NAME] == "acme"


def test_a_neighbours_batch_is_told_once_however_many_waited_for_it() -> None:
    spans, recorder = watching()
    note(spans, 1, caller=2, tenant="globex", replica=2, batch=ran(1, 5_000, 900_000))
    for number in (2, 3):
        note(spans, number, batch=ran(number, 900_000 + number, 950_000), handed=100_000)
        spans.verdict(1, number, True, 10**7, violated=True)
    batches = [record for record in recorder.records if record.name == names.SPAN_BATCH]
    assert sorted(record.attributes[names.TENANT_NAME] for record in batches) == ["acme", "acme", "globex"]


def test_time_behind_an_earlier_batch_of_the_same_model_is_a_batch_wait() -> None:
    spans, recorder = watching()
    note(spans, 1, batch=ran(5, 700_000, 800_000, others=(Turn(1, 50_000, 700_000),)), handed=100_000, now=810_000)
    spans.verdict(1, 1, True, 10**7)
    wait = named(recorder, names.STAGE_BATCH_WAIT)
    assert (wait.start_ns, wait.end_ns) == (100_000, 700_000)
    assert named(recorder, names.STAGE_QUEUE).end_ns == 100_000


def test_what_a_lost_worker_took_with_it_is_said_to_be_missing() -> None:
    spans, recorder = watching()
    note(spans, 1, refusal=Refusal(Reason.WORKER_LOST, "the worker was lost"))
    spans.verdict(1, 1, True, 10**7, violated=True)
    unknown = named(recorder, names.STAGE_UNACCOUNTED)
    assert unknown.attributes[names.SLO_MISSING] == "queue, compute: the worker of lane 0 was lost"
    assert unknown.attributes[names.ERROR_TYPE] == "WORKER_LOST"


def test_a_lost_frontends_late_requests_are_kept_and_say_so() -> None:
    spans, recorder = watching()
    note(spans, 1, objective_us=1, now=10**9)
    note(spans, 2, objective_us=10**7)
    note(spans, 3, caller=2, objective_us=1, now=10**9)
    spans.deserted(1, 10**9)
    assert {record.trace_id for record in recorder.records} == {(1).to_bytes(16, "big")}
    assert all(
        "was lost before its verdict" in str(record.attributes[names.SLO_MISSING]) for record in recorder.records
    )
    assert spans.held == 1
    note(spans, 4, now=10**9)
    assert recorder.records[-1].trace_id == (4).to_bytes(16, "big")


def test_of_a_lost_frontend_no_more_than_so_many_traces_are_kept() -> None:
    spans, recorder = watching(capacity=10**6)
    for number in range(1, MOST_DESERTED + 11):
        note(spans, number, objective_us=1, now=10**9)
    spans.deserted(1, 10**9)
    assert len({record.trace_id for record in recorder.records}) == MOST_DESERTED
    assert spans.dropped == 10


def test_what_is_held_is_bounded_in_number_and_in_age_and_what_goes_is_counted() -> None:
    spans, recorder = watching(capacity=5, hold_ns=1_000)
    for number in range(1, 9):
        note(spans, number, now=10_000)
    assert (spans.held, spans.dropped) == (5, 3)
    note(spans, 9, now=12_000)
    assert (spans.held, spans.dropped) == (1, 8)
    for number in range(1, 9):
        spans.verdict(1, number, True, 12_000)
    assert recorder.records == []
    spans.verdict(1, 100, True, 20_000)
    assert spans.unheard == 8


async def test_a_request_that_its_frontend_gave_up_still_says_what_it_waited_for() -> None:
    recorder: Any = Recorder()
    async with house(tracer=recorder) as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        built.worker.hold = True
        number = await frontend.infer(request(SMALL), span=SPAN)
        await built.until(lambda: built.worker.held)
        verdicts = [pb.Verdict(call=number, keep=True, violated=True)]
        await frontend.send(cancels=[pb.Cancel(call=number)], verdicts=verdicts)
        await built.until(lambda: recorder.records)
    assert [record.name for record in recorder.records] == ["decode", "queue"]
    assert recorder.records[1].attributes[names.ERROR_TYPE] == "CANCELLED"
    assert recorder.records[1].end_ns > recorder.records[1].start_ns
