"""What a frontend counts, as OTLP tells it: from the beginning every time, each SLO by itself, with traces to look at."""

from __future__ import annotations

import asyncio
from concurrent import futures
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as stubs
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from services.common import attributes as names
from services.common import otlp_metrics
from services.common.channel import Credentials
from services.common.errors import Reason, Refusal
from services.common.exponential import SCALE, index_of
from services.common.otlp_metrics import MetricsExporter
from services.common.telemetry import Tracer
from services.frontend.accounting import Accounts
from services.frontend.core.measured import MOST_EXEMPLARS, MOST_OBJECTIVES, Measured
from services.frontend.core.verdict import judge
from services.frontend.measures import Measures
from services.frontend.request import Request
from services.tracestore.metering import Series, decode

MS = 1_000_000
ACME = ("acme", "m")


def close(accounts: Accounts, took_ms: float, *, objective_ms: float | None = 50, reason: Reason | None = None) -> None:
    request = Request(0)
    request.tenant, request.model = ACME
    request.objective_ns = None if objective_ms is None else int(objective_ms * MS)
    request.deadline_ns = 60_000 * MS
    request.join_trace(None)
    if reason is not None:
        request.refusal = Refusal(reason, "no")
    took_ns = int(took_ms * MS)
    accounts.close(request, judge(reason, took_ns, request.objective_ns, request.deadline_ns), took_ns)


@pytest.fixture
def accounts() -> Accounts:
    return Accounts(Tracer("t", None), 0.0)


def test_what_is_told_is_what_was_counted(accounts: Accounts) -> None:
    accounts.judge_by({ACME: (20_000,)})
    for took_ms in (5, 30, 80):
        close(accounts, took_ms)
    close(accounts, 1, reason=Reason.OVERLOADED)
    close(accounts, 1, reason=Reason.FIELD_INVALID)
    (series, counts), *others = decode(Measures("f1", accounts, lambda: 7).build()).series.items()
    assert (series, others) == (Series("f1", 7, "acme", "m"), [])
    assert counts.outcomes == {"ok": 2, "late": 1, "OVERLOADED": 1, "FIELD_INVALID": 1}
    assert (counts.met, counts.missed, counts.violated) == (2, 2, 2)
    assert counts.within == {20_000: (1, 3)}, "of the SLO's own objective, whatever was promised"
    assert counts.latencies == {index_of(ms * MS): count for ms, count in ((5, 1), (30, 1), (80, 1), (1, 2))}
    assert counts.sum_us == 117_000


def test_counts_are_cumulative_from_the_time_at_which_the_process_began(accounts: Accounts) -> None:
    clock = iter(range(100, 200))
    measures = Measures("f1", accounts, lambda: next(clock))
    for expected in (1, 2):
        close(accounts, 5)
        metrics = measures.build().resource_metrics[0].scope_metrics[0].metrics
        points = [point for metric in metrics for point in getattr(metric, metric.WhichOneof("data")).data_points]
        assert {point.start_time_unix_nano for point in points} == {100}
        assert {point.time_unix_nano for point in points} == {100 + expected}
        (requests,) = (metric for metric in metrics if metric.name == otlp_metrics.REQUESTS)
        assert requests.sum.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
        assert [point.as_int for point in requests.sum.data_points] == [expected]


def test_a_model_that_went_and_came_again_begins_anew(accounts: Accounts) -> None:
    clock = iter(range(100, 200))
    measures = Measures("f1", accounts, lambda: next(clock))
    close(accounts, 5)
    assert [series.start_ns for series in decode(measures.build()).series] == [100]
    del accounts._counts[ACME]
    close(accounts, 5)
    ((series, counts),) = decode(measures.build()).series.items()
    assert (series.start_ns, counts.outcomes) == (101, {"ok": 1})


def test_an_objective_counts_from_when_it_is_set_and_its_counts_outlive_it(accounts: Accounts) -> None:
    within = lambda: decode(Measures("f1", accounts).build()).series.popitem()[1].within
    close(accounts, 5)
    assert within() == {}
    for objectives in ((20_000,), (), (20_000, 40_000)):
        accounts.judge_by({ACME: objectives} if objectives else {})
        close(accounts, 5)
    assert within() == {20_000: (2, 0), 40_000: (1, 0)}


def test_objectives_that_come_and_go_are_forgotten_but_for_the_last() -> None:
    measured = Measured()
    for objective_us in range(1, 1000):
        measured.judge_by((7, objective_us))
    assert len(measured.within) == MOST_OBJECTIVES
    assert {7, 999, 998} <= measured.within.keys()


def test_the_histogram_points_to_traces_that_are_kept() -> None:
    traced = Accounts(Tracer("t", "127.0.0.1:1"), 0.0)
    for number in range(MOST_EXEMPLARS + 3):
        close(traced, 80 + number)
    close(traced, 5)
    (metric,) = (
        metric
        for metric in Measures("f1", traced, lambda: 7_000 * MS, monotonic_ns=lambda: 100 * MS)
        .build()
        .resource_metrics[0]
        .scope_metrics[0]
        .metrics
        if metric.name == otlp_metrics.DURATION
    )
    (point,) = metric.exponential_histogram.data_points
    assert [each.time_unix_nano for each in point.exemplars] == [(6_900 + 83 + n) * MS for n in range(MOST_EXEMPLARS)]
    assert (metric.unit, point.scale, point.count) == ("s", SCALE, MOST_EXEMPLARS + 4)
    assert [round(each.as_double * 1000) for each in point.exemplars] == [83 + n for n in range(MOST_EXEMPLARS)]
    assert all(len(each.trace_id) == 16 and len(each.span_id) == 8 for each in point.exemplars)
    traced._tracer.shutdown(0.1)


@given(st.lists(st.tuples(st.integers(1, 200), st.sampled_from([None, *Reason])), max_size=30), st.integers(1, 150))
def test_an_slos_counts_are_the_verdicts_it_would_have_been_given(
    requests: list[tuple[int, Reason | None]], objective_ms: int
) -> None:
    measured = Measured()
    measured.judge_by((objective_ms * 1000,))
    for took_ms, reason in requests:
        measured.add(took_ms * MS, reason, 60_000 * MS)
    verdicts = [judge(reason, took_ms * MS, objective_ms * MS, 60_000 * MS) for took_ms, reason in requests]
    (within,) = measured.within.values()
    assert within.met == sum(each.outcome == "ok" for each in verdicts)
    assert within.missed == sum(each.violated for each in verdicts)


class Collector(stubs.MetricsServiceServicer):
    """Notes what it is sent; refuses as long as it is told to."""

    def __init__(self) -> None:
        self.heard: list[pb.ExportMetricsServiceRequest] = []
        self.metadata: list[Any] = []
        self.failing: grpc.StatusCode | None = None

    def Export(self, request: pb.ExportMetricsServiceRequest, context: Any) -> pb.ExportMetricsServiceResponse:
        self.metadata.append(dict(context.invocation_metadata()))
        if self.failing is not None:
            context.abort(self.failing, "no")
        self.heard.append(request)
        return pb.ExportMetricsServiceResponse()


async def until(holds: Any) -> None:
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to hold")


async def test_a_collector_that_was_away_misses_nothing_and_the_end_is_told(accounts: Accounts) -> None:
    collector, server = Collector(), grpc.server(futures.ThreadPoolExecutor(2))
    stubs.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    collector.failing = grpc.StatusCode.UNAVAILABLE
    exporter = MetricsExporter(
        f"127.0.0.1:{port}", Measures("f1", accounts).build, every_s=0.05, credentials=Credentials("secret")
    )
    exporter.start()
    close(accounts, 5)
    await until(lambda: len(collector.metadata) > 2)
    collector.failing = None
    await until(lambda: collector.heard)
    close(accounts, 5)
    await asyncio.to_thread(exporter.stop)
    assert decode(collector.heard[-1]).series.popitem()[1].outcomes == {"ok": 2}
    assert {each["authorization"] for each in collector.metadata} == {"Bearer secret"}
    server.stop(None)


async def test_a_backend_that_takes_no_metrics_is_left_alone(accounts: Accounts) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    built: list[int] = []

    def build() -> pb.ExportMetricsServiceRequest:
        built.append(1)
        return Measures("f1", accounts).build()

    exporter = MetricsExporter(f"127.0.0.1:{port}", build, every_s=0.02)
    exporter.start()
    await until(lambda: built)
    await asyncio.sleep(0.2)
    assert len(built) == 1
    await asyncio.to_thread(exporter.stop)
    assert len(built) == 1
    server.stop(None)


def test_without_an_endpoint_nothing_runs(accounts: Accounts) -> None:
    exporter = MetricsExporter(None, Measures("f1", accounts).build, every_s=0.01)
    exporter.start()
    exporter.stop()


def test_names_of_attributes_are_those_of_traces(accounts: Accounts) -> None:
    close(accounts, 5)
    metrics = Measures("f1", accounts).build().resource_metrics[0].scope_metrics[0].metrics
    keys = {
        pair.key
        for metric in metrics
        for point in getattr(metric, metric.WhichOneof("data")).data_points
        for pair in point.attributes
    }
    assert keys == {names.TENANT_NAME, names.MODEL_NAME, names.SLO_OUTCOME, otlp_metrics.MET}
