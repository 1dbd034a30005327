"""What a frontend counts, as OTLP has it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

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

Point: TypeAlias = tuple[tuple[str, str], Mapping[str, Value], int]
"""Of which model, what is said of it, and the count."""
CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


class Measures:
    """Makes the export messages of one frontend process. May be called from any thread.

    frontend_id: another one for every process. clock_ns: Unix time.
    """

    def __init__(self, frontend_id: str, accounts: Accounts, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._accounts, self._clock_ns = accounts, clock_ns
        self._built_ns = clock_ns()
        self._began: dict[tuple[str, str], tuple[Counts, int]] = {}
        self._resource = Resource(
            attributes=pairs({names.SERVICE_NAME: "apportion-frontend", names.SERVICE_INSTANCE_ID: frontend_id})
        )

    def build(self) -> ExportMetricsServiceRequest:
        """Everything from the beginning of each model's counts, which is the process' unless the model came later."""
        now = self._clock_ns()
        counts = list(self._accounts.by_model().items())
        self._note(counts)
        self._built_ns = now
        metrics = [
            self._sum(otlp_metrics.REQUESTS, now, (each for key, held in counts for each in _outcomes(key, held))),
            self._sum(otlp_metrics.OBJECTIVE_REQUESTS, now, (each for key, held in counts for each in _met(key, held))),
            self._sum(otlp_metrics.VIOLATIONS, now, ((key, {}, held.violated) for key, held in counts)),
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

    def _note(self, counts: Iterable[tuple[tuple[str, str], Counts]]) -> None:
        """Notes when each model's counts began. A model that went and came again has others, which begin at nothing."""
        before, self._began = self._began, {}
        for key, held in counts:
            known = before.get(key)
            self._began[key] = known if known is not None and known[0] is held else (held, self._built_ns)

    def _sum(self, name: str, now: int, points: Iterable[Point]) -> Metric:
        made = [
            NumberDataPoint(
                attributes=pairs({**_about(key), **facts}),
                start_time_unix_nano=self._began[key][1],
                time_unix_nano=now,
                as_int=count,
            )
            for key, facts, count in points
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
            start_time_unix_nano=self._began[key][1],
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


def _outcomes(key: tuple[str, str], counts: Counts) -> Iterable[Point]:
    for outcome, count in list(counts.outcomes.items()):
        yield key, {names.SLO_OUTCOME: outcome}, count


def _met(key: tuple[str, str], counts: Counts) -> Iterable[Point]:
    yield key, {otlp_metrics.MET: True}, counts.within
    yield key, {otlp_metrics.MET: False}, counts.missed
    for objective_us, each in counts.measured.within.items():
        yield key, {names.SLO_OBJECTIVE_US: objective_us, otlp_metrics.MET: True}, each.met
        yield key, {names.SLO_OBJECTIVE_US: objective_us, otlp_metrics.MET: False}, each.missed
