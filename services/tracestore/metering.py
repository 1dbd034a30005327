"""From OTLP metrics to counts: what is checked, and what is left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    ExponentialHistogramDataPoint,
    Metric,
    NumberDataPoint,
)

from services.common import attributes as names
from services.common import otlp_metrics
from services.common.exponential import rescaled
from services.tracestore.core.rollups import Counts
from services.tracestore.rows import MOST_NS, text_of

CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
MOST_NAME_CHARS = 256
MOST_COUNT = 1 << 53
MOST_KINDS = 64
"""Outcomes, and objectives, of one model."""
MOST_BUCKETS = 4096
MOST_SUM_S = 1e12


class Series(NamedTuple):
    """Whose counts: one process' of one model."""

    instance: str
    start_ns: int
    tenant: str
    model: str


@dataclass(slots=True)
class Metered:
    """What came out of one export request."""

    series: dict[Series, Counts] = field(default_factory=dict)
    points: int = 0
    rejected: int = 0
    problem: str = ""
    """What was wrong with the first point that was rejected."""


class _Wrong(Exception):
    """A point that cannot be counted; its message says why."""


def decode(request: ExportMetricsServiceRequest) -> Metered:
    """Counts by process and model. Points that are malformed, or not a frontend's, are counted with the first one's problem."""
    metered = Metered()
    for group in request.resource_metrics:
        instance = text_of(group.resource.attributes, names.SERVICE_INSTANCE_ID) or ""
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                for point in _points(metric):
                    metered.points += 1
                    try:
                        _take(metered, instance, metric, point)
                    except _Wrong as wrong:
                        metered.rejected += 1
                        metered.problem = metered.problem or f"{metric.name[:80]}: {wrong}"
    return metered


def _points(metric: Metric) -> Iterable[NumberDataPoint | ExponentialHistogramDataPoint]:
    kind = metric.WhichOneof("data")
    return [] if kind is None else getattr(metric, kind).data_points


def _take(
    metered: Metered, instance: str, metric: Metric, point: NumberDataPoint | ExponentialHistogramDataPoint
) -> None:
    if not 1 <= len(instance) <= MOST_NAME_CHARS:
        raise _Wrong(f"resource: {names.SERVICE_INSTANCE_ID} must be 1 to {MOST_NAME_CHARS} characters")
    if point.start_time_unix_nano > MOST_NS:
        raise _Wrong("start_time_unix_nano: past the year 2262")
    tenant, model = (_name(point, name) for name in (names.TENANT_NAME, names.MODEL_NAME))
    counts = metered.series.setdefault(Series(instance, point.start_time_unix_nano, tenant, model), Counts())
    if isinstance(point, ExponentialHistogramDataPoint):
        if metric.name != otlp_metrics.DURATION:
            raise _Wrong("is not kept here")
        _histogram(counts, metric, point)
    else:
        _sum(counts, metric, point)


def _sum(counts: Counts, metric: Metric, point: NumberDataPoint) -> None:
    if metric.sum.aggregation_temporality != CUMULATIVE:
        raise _Wrong("aggregation_temporality: only cumulative sums are kept")
    if point.WhichOneof("value") != "as_int" or not 0 <= point.as_int <= MOST_COUNT:
        raise _Wrong(f"as_int: a count of 0 to {MOST_COUNT}")
    count = point.as_int
    if metric.name == otlp_metrics.REQUESTS:
        outcome = _name(point, names.SLO_OUTCOME)
        _few(counts.outcomes, outcome)
        counts.outcomes[outcome] = count
    elif metric.name == otlp_metrics.VIOLATIONS:
        counts.violated = count
    elif metric.name == otlp_metrics.OBJECTIVE_REQUESTS:
        _judged(counts, point, count)
    else:
        raise _Wrong("is not kept here")


def _judged(counts: Counts, point: NumberDataPoint, count: int) -> None:
    met, objective = text_of(point.attributes, otlp_metrics.MET), text_of(point.attributes, names.SLO_OBJECTIVE_US)
    if met not in ("true", "false"):
        raise _Wrong(f"{otlp_metrics.MET}: true or false")
    if objective is None:
        counts.met, counts.missed = (count, counts.missed) if met == "true" else (counts.met, count)
        return
    if not (objective.isascii() and objective.isdigit() and len(objective) <= 15):
        raise _Wrong(f"{names.SLO_OBJECTIVE_US}: microseconds")
    _few(counts.within, int(objective))
    before = counts.within.get(int(objective), (0, 0))
    counts.within[int(objective)] = (count, before[1]) if met == "true" else (before[0], count)


def _histogram(counts: Counts, metric: Metric, point: ExponentialHistogramDataPoint) -> None:
    if metric.exponential_histogram.aggregation_temporality != CUMULATIVE:
        raise _Wrong("aggregation_temporality: only cumulative histograms are kept")
    told = point.positive.bucket_counts
    if len(told) > MOST_BUCKETS or point.scale > 20:
        raise _Wrong(f"positive: {len(told)} buckets at scale {point.scale}; at most {MOST_BUCKETS} at 20")
    if max(told, default=0) > MOST_COUNT or point.zero_count > MOST_COUNT:
        raise _Wrong(f"positive.bucket_counts: at most {MOST_COUNT}")
    if not 0 <= point.sum <= MOST_SUM_S:
        raise _Wrong(f"sum: 0 to {MOST_SUM_S:g} s")
    buckets = {point.positive.offset + place: count for place, count in enumerate(told) if count}
    try:
        counts.latencies = rescaled(buckets, point.scale)
    except ValueError as error:
        raise _Wrong(str(error)) from None
    counts.sum_us = round(point.sum * 1e6)


def _name(point: NumberDataPoint | ExponentialHistogramDataPoint, key: str) -> str:
    text = text_of(point.attributes, key)
    if text is None or not 1 <= len(text) <= MOST_NAME_CHARS:
        raise _Wrong(f"{key}: 1 to {MOST_NAME_CHARS} characters")
    return text


def _few(held: dict[str, int] | dict[int, tuple[int, int]], key: str | int) -> None:
    if key not in held and len(held) >= MOST_KINDS:
        raise _Wrong(f"at most {MOST_KINDS} of a kind for one model")
