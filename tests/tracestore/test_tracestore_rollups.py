"""What is known of requests outlives their spans: whatever is sent, however often, and however little room there is."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from services.cli.slo.figures import plain
from services.cli.slo.text import lines
from services.common import attributes as names
from services.common import otlp_metrics
from services.common.channel import NOTHING
from services.common.errors import Reason, Refusal
from services.common.exponential import LEAST, MOST, SCALE
from services.common.otlp import Exporter, pairs
from services.common.span_bytes import encoded, request_for
from services.common.spans import Kind, SpanRecord
from services.tracestore import rows
from services.tracestore.client import fetch_trace, find_every, read_rollups
from services.tracestore.core.budgets import Objective, standing
from services.tracestore.core.report import report
from services.tracestore.core.rollups import Counts, Slot, Worst, beyond, most, total
from services.tracestore.metering import Series, decode
from services.tracestore.rollups import FINE_S, HOUR_S, MINUTE_S, Rollups
from services.tracestore.settling import Settling
from services.tracestore.store import Store
from services.tracestore.views import views

MS = 1_000_000
SERIES = Series("f1", 1, "acme", "m")


def exported(*metrics: Metric, instance: str = "f1") -> ExportMetricsServiceRequest:
    resource = Resource(attributes=pairs({names.SERVICE_INSTANCE_ID: instance}))
    return ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=resource, scope_metrics=[ScopeMetrics(metrics=metrics)])]
    )


def point(count: int, *, start_ns: int = 1, **about: Any) -> NumberDataPoint:
    facts = {names.TENANT_NAME: "acme", names.MODEL_NAME: "m", **{key.replace("_", "."): v for key, v in about.items()}}
    return NumberDataPoint(attributes=pairs(facts), start_time_unix_nano=start_ns, as_int=count)


def summed(name: str, *points: NumberDataPoint, temporality: int = 2) -> Metric:
    return Metric(name=name, sum=Sum(aggregation_temporality=temporality, is_monotonic=True, data_points=points))  # type: ignore[arg-type]


def histogram(**more: Any) -> Metric:
    about = pairs({names.TENANT_NAME: "acme", names.MODEL_NAME: "m"})
    values: dict[str, Any] = {
        "attributes": about,
        "start_time_unix_nano": 1,
        "count": 6,
        "sum": 0.3,
        "scale": SCALE,
        "positive": {"offset": -80, "bucket_counts": [1, 2, 3]},
        **more,
    }
    made = ExponentialHistogram(aggregation_temporality=2, data_points=[ExponentialHistogramDataPoint(**values)])
    return Metric(name=otlp_metrics.DURATION, exponential_histogram=made)


def outcomes(ok: int, late: int = 0, **more: Any) -> Metric:
    return summed(otlp_metrics.REQUESTS, point(ok, slo_outcome="ok", **more), point(late, slo_outcome="late", **more))


async def send(listen: str, *requests: ExportMetricsServiceRequest) -> list[Any]:
    async with grpc.aio.insecure_channel(listen) as channel:
        return [await MetricsServiceStub(channel).Export(each) for each in requests]


async def held(query: str) -> Counts:
    now = int(time.time())
    slots = await read_rollups(query, start_ns=(now - 3600) * 10**9, end_ns=(now + 3600) * 10**9, tenant="acme")
    return total(slot.counts for slot in slots)


async def test_what_is_told_from_its_beginning_every_time_is_counted_once(store: Any) -> None:
    first, second = exported(outcomes(5, 1), histogram()), exported(outcomes(7, 1), histogram())
    await send(store.listen, first, first, second, first)
    counts = await held(store.query_listen)
    assert counts.outcomes == {"ok": 7, "late": 1}
    assert (counts.latencies, counts.sum_us) == ({-80: 1, -79: 2, -78: 3}, 300_000)


async def test_another_process_and_another_life_of_one_count_beside(store: Any) -> None:
    lives = exported(outcomes(5)), exported(outcomes(3), instance="f2"), exported(outcomes(2, start_ns=9))
    await send(store.listen, *lives)
    assert (await held(store.query_listen)).outcomes == {"ok": 10}


async def test_a_store_that_is_started_again_goes_on_counting_where_it_was(tmp_path: Path, run_store: Any) -> None:
    async with run_store(tmp_path) as where:
        await send(where.listen, exported(outcomes(5)))
    async with run_store(tmp_path) as where:
        await send(where.listen, exported(outcomes(8)))
        assert (await held(where.query_listen)).outcomes == {"ok": 8}


async def test_verdicts_and_objectives_of_slos_are_kept_apart(store: Any) -> None:
    judged = [point(9, slo_met=True), point(1, slo_met=False)]
    judged += [point(6, slo_met=True, **{names.SLO_OBJECTIVE_US: 20_000})]
    judged += [point(4, slo_met=False, **{names.SLO_OBJECTIVE_US: 20_000})]
    for each in judged[2:]:
        each.attributes.add(key=names.SLO_OBJECTIVE_US).value.int_value = 20_000
    await send(
        store.listen,
        exported(summed(otlp_metrics.OBJECTIVE_REQUESTS, *judged), summed(otlp_metrics.VIOLATIONS, point(3))),
    )
    counts = await held(store.query_listen)
    assert (counts.met, counts.missed, counts.violated, counts.within) == (9, 1, 3, {20_000: (6, 4)})


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        (summed("somebody.elses", point(1)), "not kept"),
        (summed(otlp_metrics.REQUESTS, point(1, slo_outcome="ok"), temporality=1), "cumulative"),
        (summed(otlp_metrics.REQUESTS, point(-1, slo_outcome="ok")), "as_int"),
        (summed(otlp_metrics.REQUESTS, point((1 << 63) - 1, slo_outcome="ok")), "as_int"),
        (summed(otlp_metrics.REQUESTS, point(1)), "slo.outcome"),
        (summed(otlp_metrics.REQUESTS, point(1, slo_outcome="x" * 300)), "slo.outcome"),
        (summed(otlp_metrics.REQUESTS, NumberDataPoint(as_int=1)), "tenant.name"),
        (summed(otlp_metrics.REQUESTS, point(1, start_ns=(1 << 64) - 1, slo_outcome="ok")), "start_time"),
        (summed(otlp_metrics.OBJECTIVE_REQUESTS, point(1, slo_met="perhaps")), "slo.met"),
        (histogram(scale=-3), "coarser"),
        (histogram(scale=30), "scale 30"),
        (histogram(positive={"offset": 0, "bucket_counts": [1] * 5000}), "5000 buckets"),
        (histogram(positive={"offset": 0, "bucket_counts": [1 << 60]}), "bucket_counts"),
        (histogram(sum=float("nan")), "sum"),
        (histogram(sum=-1.0), "sum"),
    ],
)
async def test_a_point_that_cannot_be_counted_is_told_of_and_the_others_count(
    store: Any, metric: Metric, problem: str
) -> None:
    (answer,) = await send(store.listen, exported(metric, outcomes(2)))
    assert answer.partial_success.rejected_data_points == 1
    assert problem in answer.partial_success.error_message
    assert (await held(store.query_listen)).outcomes == {"ok": 2}


def test_a_process_that_invents_outcomes_and_objectives_gets_only_so_many() -> None:
    many = summed(otlp_metrics.REQUESTS, *(point(1, slo_outcome=f"o{n}") for n in range(500)))
    (counts,) = decode(exported(many)).series.values()
    assert len(counts.outcomes) == 64


def test_indices_out_of_all_proportion_are_held_within_bounds() -> None:
    far = histogram(scale=20, positive={"offset": -(1 << 31), "bucket_counts": [1]})
    near = histogram(scale=SCALE, positive={"offset": (1 << 31) - 2, "bucket_counts": [1]})
    assert [next(iter(decode(exported(each)).series.values())).latencies for each in (far, near)] == [
        {LEAST: 1},
        {MOST: 1},
    ]


async def test_bytes_that_are_no_metrics_end_the_call_not_the_store(store: Any) -> None:
    async with grpc.aio.insecure_channel(store.listen) as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export")
        for junk in (b"\xff" * 100, b"\x0a" + b"\xff" * 9, bytes([10, 2, 10, 200])):
            with pytest.raises(grpc.aio.AioRpcError):
                await export(junk)
    await send(store.listen, exported(outcomes(2)))
    assert (await held(store.query_listen)).outcomes == {"ok": 2}


def violator(trace: int, stage: str, took_ms: int = 80) -> list[SpanRecord]:
    """A request that was late, and the stage that took its time."""
    trace_id, own = trace.to_bytes(16, "big"), trace.to_bytes(8, "big")
    now = time.monotonic_ns()
    facts = {
        names.TENANT_NAME: "acme",
        names.MODEL_NAME: "m",
        names.SLO_VIOLATED: True,
        names.SLO_OUTCOME: "late",
        names.SLO_OBJECTIVE_US: 50_000,
        "filler": "x" * 2000,
    }
    start = now - took_ms * MS
    server = SpanRecord("ModelInfer", trace_id, own, None, start, now, kind=Kind.SERVER, attributes=facts)
    below = SpanRecord(stage, trace_id, b"s" + own[1:], own, start, now, attributes={names.SLO_STAGE: stage})
    return [server, below]


async def export_spans(listen: str, records: list[SpanRecord]) -> None:
    exporter = Exporter(listen, NOTHING, 5.0)
    offset = time.time_ns() - time.monotonic_ns()
    request = request_for({names.SERVICE_NAME: "t"}, [encoded(each, offset) for each in records])
    assert await asyncio.to_thread(exporter.export, request)
    exporter.close()


@pytest.mark.parametrize(
    "bounds", [{"retention_s": 1}, {"retention_s": 3600, "retention_bytes": 1 << 20}], ids=["age", "size"]
)
async def test_causes_and_worst_requests_are_known_when_their_spans_are_gone(
    tmp_path: Path, run_store: Any, wait_until: Any, bounds: dict[str, int]
) -> None:
    async with run_store(tmp_path, **bounds) as where:
        slow = violator(1, names.STAGE_QUEUE, 500)
        await export_spans(where.listen, slow)
        for first in range(2, 802, 100):
            stage = names.STAGE_TRANSPORT if first < 402 else names.STAGE_QUEUE
            await export_spans(where.listen, [each for n in range(first, first + 100) for each in violator(n, stage)])

        async def gone() -> bool:
            kept = (await held(where.query_listen)).kept
            return (kept == 801 or "retention_bytes" in bounds) and not await fetch_trace(
                where.query_listen, slow[0].trace_id.hex()
            )

        await wait_until(gone)
        counts = await held(where.query_listen)
        if "retention_bytes" not in bounds:
            assert counts.causes == {"queue": 401, "transport": 400}
        assert counts.kept_violated == counts.kept == sum(counts.causes.values()) > 100
        assert (counts.worst[0].trace_id, counts.worst[0].cause) == (slow[0].trace_id.hex(), "queue")
        assert len(counts.worst) == 5


odd_values = st.one_of(
    st.text(max_size=20),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(),
    st.lists(st.text(max_size=3), max_size=3),
)
odd_names = st.sampled_from(
    [value for key, value in vars(names).items() if key.isupper() and isinstance(value, str) and "." in value]
)
odd_facts = st.dictionaries(odd_names, odd_values, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(odd_facts, st.booleans(), st.sampled_from(names.STAGES)), min_size=1, max_size=5))
def test_whatever_spans_claim_they_are_settled_and_a_report_is_made_of_them(
    tmp_path_factory: Any, requests: list[tuple[dict[str, Any], bool, str]]
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    rollups = Rollups(folder / "rollups.db", retention_s=10**9, retention_bytes=64 << 20)
    store = Store(folder / "traces.db", retention_s=3600, retention_bytes=64 << 20, queue_spans=1000, rollups=rollups)
    try:
        records = []
        for number, (facts, violated, stage) in enumerate(requests, 1):
            server, below = violator(number, stage)
            server.attributes = {names.TENANT_NAME: "acme", names.SLO_VIOLATED: violated, **facts}
            below.attributes |= facts
            records += [server, below]
        written = request_for({names.SERVICE_NAME: "t"}, [encoded(each, 0) for each in records])
        told = ExportTraceServiceRequest.FromString(written)
        asyncio.run(store.insert(rows.decode(told).rows))
        store.close()
        connection = sqlite3.connect(folder / "traces.db")
        Settling(rollups, connection).before(connection, 1 << 40)
        connection.close()
        kept = all_of(rollups)
        assert kept.kept_violated == sum(kept.causes.values()) <= kept.kept <= len(requests)
        data = TracesData(resource_spans=told.resource_spans)
        made = report([], [], list(views(data)), 0, 1 << 33)
        assert json.dumps(plain(made))
        assert list(lines(made))
    finally:
        rollups.close()


async def test_every_trace_is_found_however_many_match(store: Any) -> None:
    for number in range(1, 31):
        await export_spans(store.listen, violator(number, names.STAGE_QUEUE))
        await asyncio.sleep(0.002)
    found = await find_every(
        store.query_listen, start_ns=0, end_ns=1 << 61, wanted={names.SLO_VIOLATED: "true"}, depth=4
    )
    assert len({span.trace_id for span in found}) == 30
    assert len(found) == 60


def forget(data: Path) -> None:
    for file in data.glob("traces.db*"):
        file.unlink()


async def test_each_request_is_settled_once_over_restarts_and_a_database_that_began_anew(
    tmp_path: Path, run_store: Any, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.tracestore.settling.SETTLED_AFTER_S", -1)
    seen = 0
    for life, anew in enumerate((False, False, True)):
        if anew:
            forget(tmp_path)
        async with run_store(tmp_path) as where:
            await export_spans(where.listen, violator(life + 1, names.STAGE_QUEUE))
            seen += 1

            async def settled(where: Any = where, seen: int = seen) -> bool:
                return (await held(where.query_listen)).kept >= seen

            await wait_until(settled)
            assert (await held(where.query_listen)).kept_violated == seen


async def test_a_damaged_file_is_put_aside_and_the_store_counts_on(tmp_path: Path, run_store: Any) -> None:
    (tmp_path / "rollups.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    async with run_store(tmp_path) as where:
        await send(where.listen, exported(outcomes(2)))
        assert (await held(where.query_listen)).outcomes == {"ok": 2}
    assert any(name.startswith("rollups.db.unreadable-") for name in os.listdir(tmp_path))


@pytest.fixture
def rollups(tmp_path: Path) -> Iterator[Rollups]:
    made = Rollups(tmp_path / "rollups.db", retention_s=400 * 86_400, retention_bytes=64 << 20)
    yield made
    made.close()


def told(ok: int) -> Counts:
    return Counts(outcomes={"ok": ok}, latencies={-60: ok})


def all_of(rollups: Rollups) -> Counts:
    models = rollups.models(0, 1 << 40)
    return total(slot.counts for model in models for slot in rollups.slots(*model, 0, 1 << 40))


def test_a_full_disk_loses_no_count_and_damages_nothing(rollups: Rollups) -> None:
    rollups.count({SERIES: told(3)}, 60)
    pages = rollups._connection.execute("PRAGMA page_count").fetchone()[0]
    rollups._connection.execute(f"PRAGMA max_page_count = {pages}")
    crowd = {Series("f1", 1, "t" * 200, f"m{n}"): told(1) for n in range(500)}
    with pytest.raises(Refusal) as refused:
        rollups.count({**crowd, SERIES: told(5)}, 120)
    assert refused.value.reason is Reason.STORAGE_FULL
    assert all_of(rollups).outcomes == {"ok": 3}
    rollups._connection.execute("PRAGMA max_page_count = 100000")
    rollups.count({**crowd, SERIES: told(6)}, 180)
    assert all_of(rollups).outcomes == {"ok": 506}
    assert rollups._connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


async def test_a_store_whose_rollups_are_full_tells_so_and_goes_on_taking_spans(
    tmp_path: Path, run_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise Refusal(Reason.STORAGE_FULL, "rollups.db: database or disk is full")

    monkeypatch.setattr(Rollups, "count", full)
    monkeypatch.setattr(Rollups, "settle", full)
    async with run_store(tmp_path, retention_s=1) as where:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await send(where.listen, exported(outcomes(2)))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for trace in (1, 2):
            await export_spans(where.listen, violator(trace, names.STAGE_QUEUE))
            assert await fetch_trace(where.query_listen, trace.to_bytes(16, "big").hex())


def test_too_much_goes_and_the_oldest_goes_first(tmp_path: Path) -> None:
    rollups = Rollups(tmp_path / "rollups.db", retention_s=400 * 86_400, retention_bytes=1 << 20)
    now_s = 1_000_000_000
    for hour in range(12):
        crowd = {Series("f1", 1, "acme", f"m{n}-{'x' * 200}"): told(hour + 1) for n in range(400)}
        rollups.count(crowd, now_s + hour * HOUR_S)
        for _ in range(3):
            rollups.trim(now_s + hour * HOUR_S)
    size = sum(file.stat().st_size for file in tmp_path.glob("rollups.db"))
    slots = [slot for model in rollups.models(0, 1 << 40) for slot in rollups.slots(*model, 0, 1 << 40)]
    rollups.close()
    assert size < 2 << 20
    assert max(slot.start_s for slot in slots) >= now_s + 11 * HOUR_S - MINUTE_S
    assert min(slot.start_s for slot in slots) > now_s + HOUR_S


def test_what_is_too_old_goes(rollups: Rollups) -> None:
    rollups.count({SERIES: told(3)}, 1_000_000)
    rollups.trim(1_000_000 + 401 * 86_400)
    assert all_of(rollups) == Counts()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40 * 24 * 60), st.integers(1, 9)), min_size=1, max_size=60))
def test_minutes_become_hours_and_no_count_is_lost(tmp_path_factory: Any, arrivals: list[tuple[int, int]]) -> None:
    rollups = Rollups(tmp_path_factory.mktemp("r") / "rollups.db", retention_s=10**9, retention_bytes=64 << 20)
    try:
        base_s, ok = 1_700_000_000 // HOUR_S * HOUR_S, 0
        for number, (minute, count) in enumerate(arrivals):
            # Times go back and forth: what is late comes into an hour that has been made already.
            now_s = base_s + minute * MINUTE_S
            ok += count
            rollups.count({Series(f"f{number}", 1, "acme", "m"): told(count)}, now_s)
            rollups.trim(base_s + 20 * 86_400)
        assert all_of(rollups).outcomes == {"ok": ok}
        slots = rollups.slots("acme", "m", 0, 1 << 40)
        assert all(slot.width_s == MINUTE_S or slot.end_s <= base_s + 20 * 86_400 - FINE_S for slot in slots)
        for one, other in pairwise(slots):
            assert one.end_s <= other.start_s, "no time is told twice"
    finally:
        rollups.close()


async def test_thirty_days_are_judged_from_counts_alone_after_restarts_and_without_a_span(
    tmp_path: Path, run_store: Any
) -> None:
    now_s = int(time.time()) // HOUR_S * HOUR_S
    rollups = Rollups(tmp_path / "rollups.db", retention_s=400 * 86_400, retention_bytes=64 << 20)
    met = missed = 0
    for hour in range(40 * 24, 0, -1):
        # One life of a frontend every ten days; what lies further back than the window is much worse.
        life, at_s = Series(f"f{hour // 240}", 1, "acme", "m"), now_s - hour * HOUR_S
        met, missed = (0, 0) if hour % 240 == 239 else (met, missed)
        met, missed = met + 1000, missed + (5 if hour <= 720 else 500)
        rollups.count({life: Counts(met=met, missed=missed, outcomes={"ok": met, "late": missed})}, at_s)
        rollups.trim(at_s)
    rollups.close()
    async with run_store(tmp_path) as where:
        slots = await read_rollups(where.query_listen, start_ns=(now_s - 40 * 86_400) * 10**9, end_ns=now_s * 10**9)
    assert len(slots) == 40 * 24
    assert {slot.width_s for slot in slots} == {MINUTE_S, HOUR_S}
    found = standing(Objective("acme", "m", "o", 990_000, None, 30 * 86_400), slots, now_s)
    assert (found.judged.met, found.judged.missed) == (720_000, 3_600)
    assert (found.broken, found.spent) == (False, pytest.approx(0.4975, abs=0.001))


counts_of = st.builds(
    lambda ok, late, bucket: Counts(outcomes={"ok": ok, "late": late}, missed=late, latencies={bucket: ok}),
    st.integers(0, 100),
    st.integers(0, 100),
    st.integers(-3, 3),
)


@given(st.lists(counts_of, min_size=1, max_size=8), st.data())
def test_whatever_the_order_and_repetition_what_was_told_most_is_what_is_counted(
    steps: list[Counts], data: st.DataObject
) -> None:
    cumulative = [total(steps[: n + 1]) for n in range(len(steps))]
    heard = data.draw(st.permutations(cumulative + data.draw(st.lists(st.sampled_from(cumulative), max_size=4))))
    before, counted = Counts(), []
    for each in heard:
        counted.append(beyond(each, before))
        before = most(each, before)
    whole = total(counted)
    nothing_zero = lambda counts: {key: n for key, n in counts.items() if n}
    assert nothing_zero(whole.outcomes) == nothing_zero(cumulative[-1].outcomes)
    assert nothing_zero(whole.latencies) == nothing_zero(cumulative[-1].latencies)
    assert whole.missed == cumulative[-1].missed


def test_of_slots_added_up_the_slowest_requests_stay_each_once(rollups: Rollups) -> None:
    for n in range(20):
        worst = [Worst(n * 1000, f"{n:032x}", "queue"), Worst(5, "f" * 32, "queue")]
        rollups.settle([Slot("acme", "m", 60 * n, 60, Counts(kept=1, kept_violated=1, worst=worst))], n)
    assert [each.duration_us for each in all_of(rollups).worst] == [19000, 18000, 17000, 16000, 15000]


def test_a_slot_that_cannot_be_written_leaves_the_mark_where_it_was(rollups: Rollups) -> None:
    rollups.settle([Slot("acme", "m", 60, 60, Counts(kept=1))], 7)
    with pytest.raises(sqlite3.IntegrityError):
        rollups.settle([Slot(None, "m", 60, 60, Counts(kept=1))], 9)  # type: ignore[arg-type]
    assert (rollups.settled, all_of(rollups).kept) == (7, 1)
