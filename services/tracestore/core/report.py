"""The verifier: what three sources say of one time range, and whether they agree.

Ratios come from counters, quantiles from histograms, causes from traces. None of the three is taken on trust: what two of them
can both tell is compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import services.common.attributes as names
from services.common.exponential import quantile_s, upper_s
from services.tracestore.core.budgets import Objective, Standing, standing
from services.tracestore.core.rollups import MOST_WORST, Counts, Slot, Worst, slowest, total
from services.tracestore.core.spans import SpanView, tree
from services.tracestore.core.verdicts import Request, nearest_rank, requests

QUANTILES = (0.5, 0.95, 0.99)
EDGE_S = 15
"""Counts reach the store some seconds after the requests: violators this near to an end of the range may be on its other side."""
TRACES, ROLLUPS, NOWHERE = "traces", "rollups", "nothing"


@dataclass(frozen=True, slots=True)
class Check:
    """Two sources on one question. agrees: None where one of them does not say."""

    what: str
    one: str
    other: str
    agrees: bool | None


@dataclass(frozen=True, slots=True)
class Completeness:
    """Of the traces of violators.

    counted: violations by the counters. kept: traces of them that are held. edge: of these, so near to an end of the range that
    they may belong on its other side. orphans: spans whose parent should be there and is not. admitted: traces that say
    themselves that something is missing. unaccounted_p99: of the requests' durations, the part that no stage explains; None: no
    trace.
    """

    counted: int
    kept: int
    edge: int
    orphans: int
    admitted: int
    unaccounted_p99: float | None

    @property
    def whole(self) -> bool:
        """Every counted violation has its trace, and no trace is in pieces."""
        return abs(self.counted - self.kept) <= self.edge and not self.orphans


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model within the range.

    quantiles_s: by quantile; None: no request. causes_from: TRACES, ROLLUPS or NOWHERE. slots: by time, for plots.
    """

    tenant: str
    model: str
    counts: Counts
    quantiles_s: Mapping[float, float | None]
    standings: tuple[Standing, ...]
    causes: Mapping[str, int]
    causes_from: str
    worst: tuple[Worst, ...]
    completeness: Completeness | None
    checks: tuple[Check, ...]
    slots: tuple[Slot, ...]

    @property
    def broken(self) -> bool:
        """One of its objectives is."""
        return any(each.broken for each in self.standings)

    @property
    def disagrees(self) -> bool:
        """Two sources say different things."""
        return any(check.agrees is False for check in self.checks)


@dataclass(frozen=True, slots=True)
class Report:
    """[start_s, end_s), Unix time. Objectives are judged over their own windows, which end with the range."""

    start_s: int
    end_s: int
    models: tuple[ModelReport, ...]

    @property
    def broken(self) -> bool:
        """An objective is broken."""
        return any(model.broken for model in self.models)

    @property
    def doubtful(self) -> bool:
        """Nothing was judged, or what there is does not hang together."""
        judged = any(each.judged.total for model in self.models for each in model.standings)
        return not judged or any(
            model.disagrees or (model.completeness is not None and not model.completeness.whole)
            for model in self.models
        )


def report(
    slots: Iterable[Slot],
    objectives: Iterable[Objective],
    spans: Iterable[SpanView] | None,
    start_s: int,
    end_s: int,
) -> Report:
    """slots: from the beginning of the longest window. spans: of the violators that ended within the range, and of whatever
    else is held; None: no traces were to be had."""
    by_model: dict[tuple[str, str], list[Slot]] = {}
    for slot in sorted(slots, key=lambda each: each.start_s):
        by_model.setdefault((slot.tenant, slot.model), []).append(slot)
    wanted: dict[tuple[str, str], list[Objective]] = {}
    for objective in objectives:
        wanted.setdefault((objective.tenant, objective.model), []).append(objective)
    traced = None if spans is None else _traced(spans, start_s, end_s)
    keys = by_model.keys() | wanted.keys() | (traced or {}).keys()
    models = [
        _model(
            key,
            by_model.get(key, []),
            wanted.get(key, []),
            None if traced is None else traced.get(key, _Traced([], 0)),
            (start_s, end_s),
        )
        for key in sorted(keys)
    ]
    return Report(start_s, end_s, tuple(models))


@dataclass(slots=True)
class _Traced:
    """What traces tell of one model within the range."""

    requests: list[Request]
    orphans: int


def _traced(spans: Iterable[SpanView], start_s: int, end_s: int) -> dict[tuple[str, str], _Traced]:
    held = list({(span.trace_id, span.span_id): span for span in spans}.values())
    found: dict[tuple[str, str], _Traced] = {}
    owner: dict[str, tuple[str, str]] = {}
    for request in requests(held):
        if start_s <= request.span.end_ns // 1_000_000_000 < end_s:
            about = request.span.attributes
            key = (str(about.get(names.TENANT_NAME, "")), str(about.get(names.MODEL_NAME, "")))
            found.setdefault(key, _Traced([], 0)).requests.append(request)
            owner[request.span.trace_id] = key
    by_trace: dict[str, list[SpanView]] = {}
    for span in held:
        by_trace.setdefault(span.trace_id, []).append(span)
    for trace_id, members in by_trace.items():
        if trace_id in owner:
            found[owner[trace_id]].orphans += sum(node.orphan for node in tree(members))
    return found


def _model(
    key: tuple[str, str],
    slots: Sequence[Slot],
    objectives: Sequence[Objective],
    traced: _Traced | None,
    span_s: tuple[int, int],
) -> ModelReport:
    inside = [slot for slot in slots if span_s[0] <= slot.start_s + slot.width_s // 2 < span_s[1]]
    counts = total(slot.counts for slot in inside)
    completeness = None if traced is None else _completeness(counts, traced, span_s)
    causes, causes_from, worst = _causes(counts, traced)
    return ModelReport(
        tenant=key[0],
        model=key[1],
        counts=counts,
        quantiles_s={quantile: quantile_s(counts.latencies, quantile) for quantile in QUANTILES},
        standings=tuple(standing(each, slots, span_s[1]) for each in sorted(objectives, key=lambda each: each.name)),
        causes=causes,
        causes_from=causes_from,
        worst=worst,
        completeness=completeness,
        checks=tuple(_checks(counts, traced, completeness)),
        slots=tuple(inside),
    )


def _causes(counts: Counts, traced: _Traced | None) -> tuple[dict[str, int], str, tuple[Worst, ...]]:
    """From the traces, unless more of them have been here than are left."""
    violators = [] if traced is None else [request for request in traced.requests if request.recorded]
    if violators and len(violators) >= counts.kept_violated:
        held = [Worst(each.span.duration_ns // 1000, each.span.trace_id, each.cause) for each in violators]
        found = dict(sorted(Counter(each.cause for each in violators).items(), key=lambda item: (-item[1], item[0])))
        return found, TRACES, tuple(slowest(held)[:MOST_WORST])
    ordered = dict(sorted(counts.causes.items(), key=lambda item: (-item[1], item[0])))
    return ordered, ROLLUPS if ordered else NOWHERE, tuple(counts.worst)


def _completeness(counts: Counts, traced: _Traced, span_s: tuple[int, int]) -> Completeness:
    violators = [request for request in traced.requests if request.recorded]
    ends = [request.span.end_ns / 1e9 for request in violators]
    unexplained = sorted(
        round(1e6 * request.why.unaccounted_ns / max(1, request.span.duration_ns)) for request in traced.requests
    )
    return Completeness(
        counted=counts.violated,
        kept=len(violators),
        edge=sum(min(end - span_s[0], span_s[1] - end) <= EDGE_S for end in ends),
        orphans=traced.orphans,
        admitted=sum(bool(request.why.missing) for request in traced.requests),
        unaccounted_p99=nearest_rank(unexplained, 0.99) / 1e6 if unexplained else None,
    )


def _checks(counts: Counts, traced: _Traced | None, completeness: Completeness | None) -> Iterable[Check]:
    yield Check(
        "requests: counters and histogram",
        str(counts.requests),
        str(counts.measured),
        counts.requests == counts.measured,
    )
    if completeness is not None and traced is not None:
        gone = completeness.kept < counts.kept_violated
        yield Check(
            "violations: counters and traces",
            str(completeness.counted),
            f"{completeness.kept}{', spans of more have been dropped by age or size' if gone else ''}",
            None if gone else abs(completeness.counted - completeness.kept) <= completeness.edge,
        )
        wrong = sum(request.violated != request.recorded for request in traced.requests)
        yield Check(
            "verdicts: recorded and recomputed from timestamps",
            str(len(traced.requests)),
            f"{len(traced.requests) - wrong} the same",
            wrong == 0 if traced.requests else None,
        )
    yield from _within_checks(counts)


def _within_checks(counts: Counts) -> Iterable[Check]:
    """Who was answered within a time is at most whom the histogram puts there, and at least those of them that did not fail."""
    unanswered = counts.requests - sum(counts.outcomes.get(outcome, 0) for outcome in ("ok", "late"))
    for objective_us, (met, missed) in sorted(counts.within.items()):
        least, most = _bounds(counts, objective_us)
        # An objective that came within the range has not judged everybody that the histogram knows.
        whole = counts.requests - met - missed <= unanswered
        what = f"answered within {objective_us / 1000:g} ms: counters and histogram"
        agrees = met <= most and least - met <= unanswered
        yield Check(what, str(met), f"{max(0, least - unanswered)} to {most}", agrees if whole else None)


def _bounds(counts: Counts, objective_us: int) -> tuple[int, int]:
    """Requests, whatever their outcome, that the histogram puts within a time: for certain, and at the most."""
    objective_s = objective_us / 1e6
    least = sum(count for index, count in counts.latencies.items() if upper_s(index) <= objective_s)
    most = sum(count for index, count in counts.latencies.items() if upper_s(index - 1) <= objective_s)
    return least, most
