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

    frontend_id: another one for every process. clock_ns: Unix time. monotonic_ns: what requests' ends are told by. pause: called after each model, so that the event loop need not
    wait for the interpreter's lock until all are told.
    """

    def __init__(
        self,
        frontend_id: str,
        accounts: Accounts,
        clock_ns: Callable[[], int] = time.time_ns,
        pause: Callable[[], None] = lambda: None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._accounts, self._clock_ns, self._pause = accounts, clock_ns, pause
        self._monotonic_ns = monotonic_ns
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
        outcomes, judged, violated, durations = [], [], [], []
        for key, held in counts:
            outcomes += [self._point(key, facts, count, now) for facts, count in _outcomes(held)]
            judged += [self._point(key, facts, count, now) for facts, count in _judged(held)]
            violated.append(self._point(key, {}, held.violated, now))
            durations.append(self._histogram(key, held, now))
            self._pause()
        histogram = ExponentialHistogram(aggregation_temporality=CUMULATIVE, data_points=durations)
        metrics = [
            _summed(otlp_metrics.REQUESTS, outcomes),
            _summed(otlp_metrics.OBJECTIVE_REQUESTS, judged),
            _summed(otlp_metrics.VIOLATIONS, violated),
            Metric(name=otlp_metrics.DURATION, unit="s", exponential_histogram=histogram),
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

    def _point(self, key: tuple[str, str], facts: Mapping[str, Value], count: int, now: int) -> NumberDataPoint:
        attributes = pairs({**_about(key), **facts})
        began = self._began[key][1]
        return NumberDataPoint(attributes=attributes, start_time_unix_nano=began, time_unix_nano=now, as_int=count)

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
        to_unix_ns = now - self._monotonic_ns()
        for elapsed_ns, ended_ns, trace_id, span_id in list(counts.measured.exemplars):
            # Never later than the point that it belongs to: it may have ended since that was begun.
            at_ns = min(now, ended_ns + to_unix_ns)
            point.exemplars.add(time_unix_nano=at_ns, as_double=elapsed_ns / 1e9, trace_id=trace_id, span_id=span_id)
        return point


def _about(key: tuple[str, str]) -> dict[str, Value]:
    return {names.TENANT_NAME: key[0], names.MODEL_NAME: key[1]}


def _outcomes(counts: Counts) -> Iterable[tuple[Mapping[str, Value], int]]:
    for outcome, count in list(counts.outcomes.items()):
        yield {names.SLO_OUTCOME: outcome}, count


def _judged(counts: Counts) -> Iterable[tuple[Mapping[str, Value], int]]:
    yield {otlp_metrics.MET: True}, counts.within
    yield {otlp_metrics.MET: False}, counts.missed
    for objective_us, each in counts.measured.within.items():
        yield {names.SLO_OBJECTIVE_US: objective_us, otlp_metrics.MET: True}, each.met
        yield {names.SLO_OBJECTIVE_US: objective_us, otlp_metrics.MET: False}, each.missed


def _summed(name: str, points: Iterable[NumberDataPoint]) -> Metric:
    summed = Sum(aggregation_temporality=CUMULATIVE, is_monotonic=True, data_points=points)
    return Metric(name=name, unit="{request}", sum=summed)
