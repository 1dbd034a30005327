"""What a frontend counts, as OTLP has it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from services.common import attributes as names
from services.common import otlp_metrics
from services.common.exponential import SCALE
from services.common.otlp import pairs
from services.common.spans import Value
from services.frontend.accounting import Accounts, Counts

CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


class Measures:
    """Makes the export messages of one frontend process. May be called from any thread.

    frontend_id: another one for every process. clock_ns: Unix time.
    """

    def __init__(self, frontend_id: str, accounts: Accounts, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._accounts, self._clock_ns, self._start_ns = accounts, clock_ns, clock_ns()
        self._resource = Resource(
            attributes=pairs({names.SERVICE_NAME: "apportion-frontend", names.SERVICE_INSTANCE_ID: frontend_id})
        )

    def build(self) -> ExportMetricsServiceRequest:
        """Everything from the beginning of the process, model by model."""
        now = self._clock_ns()
        counts = list(self._accounts.by_model().items())
        metrics = [
            self._sum(otlp_metrics.REQUESTS, now, (each for key, held in counts for each in _outcomes(key, held))),
            self._sum(otlp_metrics.OBJECTIVE_REQUESTS, now, (each for key, held in counts for each in _met(key, held))),
            self._sum(otlp_metrics.VIOLATIONS, now, ((_about(key), held.violated) for key, held in counts)),
            Metric(
                name=otlp_metrics.DURATION,
                unit="s",
                exponential_histogram=ExponentialHistogram(
                    aggregation_temporality=CUMULATIVE,
                    data_points=[self._histogram(key, held, now) for key, held in counts],
                ),
            ),
        ]
        scope = ScopeMetrics(scope=InstrumentationScope(name="apportion"), metrics=metrics)
        return ExportMetricsServiceRequest(
            resource_metrics=[ResourceMetrics(resource=self._resource, scope_metrics=[scope])]
        )

    def _sum(self, name: str, now: int, points: Iterable[tuple[Mapping[str, Value], int]]) -> Metric:
        made = [
            NumberDataPoint(
                attributes=pairs(about), start_time_unix_nano=self._start_ns, time_unix_nano=now, as_int=count
            )
            for about, count in points
        ]
        return Metric(
            name=name,
            unit="{request}",
            sum=Sum(aggregation_temporality=CUMULATIVE, is_monotonic=True, data_points=made),
        )

    def _histogram(self, key: tuple[str, str], counts: Counts, now: int) -> ExponentialHistogramDataPoint:
        latencies = dict(counts.measured.latencies)
        point = ExponentialHistogramDataPoint(
            attributes=pairs(_about(key)),
            start_time_unix_nano=self._start_ns,
            time_unix_nano=now,
            count=sum(latencies.values()),
            sum=counts.sum_ns / 1e9,
            scale=SCALE,
        )
        if latencies:
            first, last = min(latencies), max(latencies)
            point.positive.offset = first
            point.positive.bucket_counts.extend(latencies.get(index, 0) for index in range(first, last + 1))
        for elapsed_ns, trace_id, span_id in list(counts.measured.exemplars):
            point.exemplars.add(time_unix_nano=now, as_double=elapsed_ns / 1e9, trace_id=trace_id, span_id=span_id)
        return point


def _about(key: tuple[str, str]) -> dict[str, Value]:
    return {names.TENANT_NAME: key[0], names.MODEL_NAME: key[1]}


def _outcomes(key: tuple[str, str], counts: Counts) -> Iterable[tuple[Mapping[str, Value], int]]:
    for outcome, count in list(counts.outcomes.items()):
        yield {**_about(key), names.SLO_OUTCOME: outcome}, count


def _met(key: tuple[str, str], counts: Counts) -> Iterable[tuple[Mapping[str, Value], int]]:
    about = _about(key)
    yield {**about, otlp_metrics.MET: True}, counts.within
    yield {**about, otlp_metrics.MET: False}, counts.missed
    for objective_us, each in counts.measured.within.items():
        judged = {**about, names.SLO_OBJECTIVE_US: objective_us}
        yield {**judged, otlp_metrics.MET: True}, each.met
        yield {**judged, otlp_metrics.MET: False}, each.missed
