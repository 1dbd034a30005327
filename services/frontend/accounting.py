"""What is told of each request once it is over: counts, the verdict for its executor, the server span."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from services.common.errors import Reason
from services.common.logs import Sparse, about
from services.common.telemetry import Tracer
from services.frontend.core.measured import Measured
from services.frontend.core.verdict import OK, Judgement
from services.frontend.request import Request
from services.frontend.spans import spans_of
from services.frontend.triton_metrics import TritonMetrics

log = structlog.get_logger()
BROKEN = frozenset(
    (Reason.MODEL_FAILED, Reason.WORKER_LOST, Reason.EXECUTOR_LOST, Reason.OUT_OF_MEMORY, Reason.INTERNAL)
)
"""Ends of requests that somebody will want to look into: each is a line in the log, as far as there are not too many."""
BOUNDS_S = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    0.75,
    1.0,
    2.0,
    5.0,
    10.0,
    30.0,
    60.0,
)
"""Upper bounds of the latency histogram's buckets, in seconds."""
FEW = 64
"""So many models' counts are never looked through for those of models that are gone."""
_BOUNDS_NS = tuple(int(bound * 1e9) for bound in BOUNDS_S)


class Counts:
    """Of one tenant's model. buckets: answers by latency, the last one beyond all bounds; latencies: the same, finely, by the
    bucket that `bucket_of` says. answer_bytes: the last answer's. bytes: of requests that were answered, and of their answers, by
    executor."""

    __slots__ = (
        "answer_bytes",
        "buckets",
        "bytes",
        "in_flight",
        "latencies",
        "measured",
        "missed",
        "outcomes",
        "sum_ns",
        "violated",
        "within",
    )

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.latencies: dict[int, int] = {}
        self.bytes: dict[str, list[int]] = {}
        self.measured = Measured()
        self.answer_bytes = self.sum_ns = self.in_flight = self.within = self.missed = self.violated = 0

    def moved(self, executor_id: str, bytes_in: int, bytes_out: int) -> None:
        """Counts the bytes of a request that was answered, and of its answer."""
        moved = self.bytes.get(executor_id)
        if moved is None:
            moved = self.bytes[executor_id] = [0, 0]
        moved[0] += bytes_in
        moved[1] += bytes_out


class Accounts:
    """Counts by (tenant, model), and the spans of requests that are kept. A Prometheus collector.

    Plain integers on the path of requests, made into metrics when they are asked for. A model's name is a label only
    where the model exists, so that callers cannot make up labels.
    """

    def __init__(self, tracer: Tracer, trace_sample: float, samples: Mapping[str, float] | None = None) -> None:
        """trace_sample: the part of requests whose trace is kept though they broke no promise. samples: of these tenants'."""
        self._lines = Sparse()
        self._tracer, self._sample, self._samples = tracer, trace_sample, dict(samples or {})
        self._counts: dict[tuple[str, str], Counts] = {}
        self.triton = TritonMetrics()
        self.held: Callable[[], Mapping[str, Iterable[tuple[str, int]]]] = dict
        """Bytes that are held for each tenant, by what they are."""
        self._objectives_us: dict[tuple[str, str], tuple[int, ...]] = {}
        self._looked_at = FEW
        self.triton.pending = lambda: ((*key, counts.in_flight) for key, counts in list(self._counts.items()) if key[1])

    def counts(self, tenant: str, model: str) -> Counts:
        """The counts of a tenant's model; "" for what is not known."""
        counts = self._counts.get((tenant, model))
        if counts is None:
            counts = self._counts[tenant, model] = Counts()
            counts.measured.judge_by(self._objectives_us.get((tenant, model), ()))
        return counts

    def judge_by(self, objectives_us: Mapping[tuple[str, str], tuple[int, ...]]) -> None:
        """Takes the objectives of all models' SLOs, beside what each request is promised."""
        before, self._objectives_us = self._objectives_us, dict(objectives_us)
        for key in before.keys() | objectives_us.keys():
            if key in self._counts:
                self._counts[key].measured.judge_by(self._objectives_us.get(key, ()))

    def keep(self, exists: Callable[..., bool]) -> None:
        """Lets go of the counts of models, and of versions, that are gone, each time there are twice as many as before.

        exists(tenant, model): there is such a model; exists(tenant, model, version).
        """
        if len(self._counts) + len(self.triton) < 2 * self._looked_at:
            return
        for (tenant, model), counts in list(self._counts.items()):
            if model and not counts.in_flight and not exists(tenant, model):
                del self._counts[tenant, model]
        self.triton.keep(exists)
        self._looked_at = max(FEW, len(self._counts) + len(self.triton))

    def by_model(self) -> dict[tuple[str, str], Counts]:
        """The counts of every model that exists, as they stand and go on changing."""
        return {key: counts for key, counts in self._counts.items() if key[1]}

    def close(self, request: Request, judgement: Judgement, ended_ns: int) -> bool:
        """Takes a request that is over; whether its trace is kept."""
        counts = self.counts(request.tenant, request.model)
        outcome, elapsed_ns = judgement.outcome, ended_ns - request.arrived_ns
        counts.outcomes[outcome] = counts.outcomes.get(outcome, 0) + 1
        counts.buckets[bisect_left(_BOUNDS_NS, elapsed_ns)] += 1
        counts.sum_ns += elapsed_ns
        bucket = bucket_of(elapsed_ns)
        counts.latencies[bucket] = counts.latencies.get(bucket, 0) + 1
        reason = request.refusal.reason if request.refusal is not None else None
        counts.measured.add(elapsed_ns, reason, request.deadline_ns)
        if request.objective_ns is not None:
            if outcome == OK:
                counts.within += 1
            elif judgement.violated:
                counts.missed += 1
        if judgement.violated:
            counts.violated += 1
        stages = request.attempts[-1].stages if request.attempts else None
        self.triton.close((request.tenant, request.model, request.version), outcome, elapsed_ns, stages)
        keep = judgement.violated or random.random() < self._samples.get(request.tenant, self._sample)
        if request.attempts:
            for call in request.attempts:
                if call.carrier is not None:
                    call.carrier.verdict(call, judgement.violated, keep)
        if outcome in BROKEN:
            self._tell(request, outcome, ended_ns)
        if keep and self._tracer.enabled:
            counts.measured.exemplars.append((elapsed_ns, ended_ns, request.trace_id, request.span_id))
            self._tracer.emit_all(spans_of(request, judgement, ended_ns), spare=not judgement.violated)
        return keep

    def _tell(self, request: Request, outcome: str, now_ns: int) -> None:
        """A line for people, of a request that the service broke."""
        held_back = self._lines.passes(now_ns)
        if held_back is not None:
            with about(trace_id=request.trace_id, tenant=request.tenant):
                log.warning("request failed", model=request.model, reason=outcome, held_back=held_back)

    def collect(self) -> Iterator[Metric]:
        """The counts as metrics. Called by the metrics thread."""
        by_model, by_outcome = ["tenant", "model"], ["tenant", "model", "outcome"]
        requests = CounterMetricFamily("apportion_frontend_requests", "Requests that are over.", labels=by_outcome)
        latency = HistogramMetricFamily(
            "apportion_frontend_request_seconds", "From arrival to answer, whatever the outcome.", labels=by_model
        )
        objective = CounterMetricFamily(
            "apportion_frontend_objective_requests",
            "Requests with an objective, by whether it was met; those that the caller broke off or got wrong are in neither.",
            labels=["tenant", "model", "met"],
        )
        judged = CounterMetricFamily(
            "apportion_frontend_slo_requests",
            "Requests judged by the objectives of the model's SLOs, whatever each was promised.",
            labels=["tenant", "model", "objective_us", "met"],
        )
        violations = CounterMetricFamily(
            "apportion_frontend_violations",
            "Requests that were late, refused or failed by the service.",
            labels=by_model,
        )
        in_flight = GaugeMetricFamily(
            "apportion_frontend_in_flight", "Requests that wait for their answer.", labels=by_model
        )
        held = GaugeMetricFamily(
            "apportion_frontend_held_bytes",
            "Requests that wait for their answer; answers that callers have not read, large ones apart.",
            labels=["tenant", "what"],
        )
        for what, tenants in self.held().items():
            for tenant, held_bytes in tenants:
                held.add_metric([tenant, what], held_bytes)
        for (tenant, model), counts in list(self._counts.items()):
            for outcome, count in list(counts.outcomes.items()):
                requests.add_metric([tenant, model, outcome], count)
            latency.add_metric([tenant, model], _cumulative(counts.buckets), counts.sum_ns / 1e9)
            objective.add_metric([tenant, model, "true"], counts.within)
            objective.add_metric([tenant, model, "false"], counts.missed)
            for objective_us, each in counts.measured.within.items():
                judged.add_metric([tenant, model, str(objective_us), "true"], each.met)
                judged.add_metric([tenant, model, str(objective_us), "false"], each.missed)
            violations.add_metric([tenant, model], counts.violated)
            in_flight.add_metric([tenant, model], counts.in_flight)
        yield from (requests, latency, objective, judged, violations, in_flight, held)
        yield from self.triton.collect()


def bucket_of(elapsed_ns: int) -> int:
    """The bucket of a time, eight of which make an octave: see LatencyCount in apportion.v1."""
    eighths = max(8, elapsed_ns // 125)
    exponent = eighths.bit_length() - 4
    return 8 * exponent + (eighths >> exponent) - 8


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    total, told = 0, []
    for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], buckets, strict=True):
        total += count
        told.append((bound, float(total)))
    return told
