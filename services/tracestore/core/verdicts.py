"""Verdicts recomputed from spans: for each tenant and model, what was kept, what was late, and where the time went."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import services.common.attributes as names
from services.common.blame import Blame, blame
from services.tracestore.core.spans import SpanView

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the traces of one tenant's model say.

    Kept traces are every violator and a sample of the rest: `quantiles_ns` is of them, and so looks worse than what all
    requests saw; ratios belong to the counters.
    """

    tenant: str
    model: str
    requests: int
    """Requests whose trace was kept."""
    violated: int
    """Of those: late or failed, by their own timestamps."""
    disagreements: int
    """Of those: where the recorded verdict says otherwise than the timestamps."""
    quantiles_ns: Mapping[float, int]
    causes: Mapping[str, int] = field(default_factory=dict)
    """Violations by cause, as services.common.blame tells it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as its own spans tell it."""

    span: SpanView
    over: bool
    """It took longer than its objective, however it ended."""
    failed: bool
    """It ended in an error that is the service's."""
    recorded: bool
    """What the frontend's verdict said."""
    stages_ns: Mapping[str, int]
    """Time by stage, each without the stages inside it; what no stage explains is "unaccounted"."""
    why: Blame
    """Where its time went, and what is to blame for that."""

    @property
    def violated(self) -> bool:
        """The verdict, recomputed. A caller that broke off, or asked for what cannot be, was not let down."""
        return self.failed or (self.over and self.span.error is None)

    @property
    def cause(self) -> str:
        """What is to blame: one of services.common.attributes.CAUSES."""
        return self.why.cause


def verdicts(spans: Iterable[SpanView]) -> list[Verdicts]:
    """One entry a tenant and model, sorted; spans of any number of traces, in any order."""
    groups: dict[tuple[str, str], list[Request]] = {}
    for request in requests(spans):
        key = tuple(str(request.span.attributes.get(name, "")) for name in (names.TENANT_NAME, names.MODEL_NAME))
        groups.setdefault((key[0], key[1]), []).append(request)
    return [_summed(tenant, model, members) for (tenant, model), members in sorted(groups.items())]


def requests(spans: Iterable[SpanView]) -> list[Request]:
    """The requests among the spans: each is the span that bears a verdict, with all that lies below it.

    They are told apart by that span, not by the trace, whose id a caller may use again.
    """
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    children: dict[tuple[str, str], list[SpanView]] = {}
    for span in by_id.values():
        if span.parent_span_id is not None:
            children.setdefault((span.trace_id, span.parent_span_id), []).append(span)
    judged = [span for span in by_id.values() if names.SLO_VIOLATED in span.attributes and span.kind == "server"]
    judged.sort(key=lambda span: (span.start_ns, span.trace_id, span.span_id))
    return [_request(span, children) for span in judged]


def _request(span: SpanView, children: Mapping[tuple[str, str], Sequence[SpanView]]) -> Request:
    objective_us = span.attributes.get(names.SLO_OBJECTIVE_US)
    over = isinstance(objective_us, int | float) and span.duration_ns > objective_us * 1000
    recorded = span.attributes[names.SLO_VIOLATED] is True
    # A caller's own mistake is an error, but no violation: only the verdict knows which it was.
    failed = span.error is not None and recorded
    why = blame(span, _below(span, children))
    return Request(span, over, failed, recorded, _stages(span, children), why)


def _below(top: SpanView, children: Mapping[tuple[str, str], Sequence[SpanView]]) -> list[SpanView]:
    """The spans of one request below its own; others in the same trace are left out."""
    found: dict[str, SpanView] = {}
    waiting = list(children.get((top.trace_id, top.span_id), ()))
    while waiting:
        span = waiting.pop()
        if span.span_id not in found and span.span_id != top.span_id and names.SLO_VIOLATED not in span.attributes:
            found[span.span_id] = span
            waiting += children.get((span.trace_id, span.span_id), ())
    return list(found.values())


def _stages(top: SpanView, children: Mapping[tuple[str, str], Sequence[SpanView]]) -> dict[str, int]:
    """Time by stage below a request's span. Nested stages are taken out of the one around them."""
    stages: dict[str, int] = {}
    explained_ns = 0
    seen = {top.span_id}
    waiting: list[tuple[SpanView, str | None]] = [
        (span, None) for span in children.get((top.trace_id, top.span_id), ())
    ]
    while waiting:
        span, around = waiting.pop()
        if span.span_id in seen or names.SLO_VIOLATED in span.attributes:
            continue
        seen.add(span.span_id)
        stage = span.attributes.get(names.SLO_STAGE)
        if isinstance(stage, str):
            stages[stage] = stages.get(stage, 0) + span.duration_ns
            if around is None:
                explained_ns += span.duration_ns
            else:
                stages[around] -= span.duration_ns
        inner = stage if isinstance(stage, str) else around
        waiting += [(child, inner) for child in children.get((span.trace_id, span.span_id), ())]
    left_ns = max(0, top.duration_ns - explained_ns)
    stages[names.STAGE_UNACCOUNTED] = stages.get(names.STAGE_UNACCOUNTED, 0) + left_ns
    return stages


def _summed(tenant: str, model: str, members: Sequence[Request]) -> Verdicts:
    durations = sorted(request.span.duration_ns for request in members)
    violators = [request for request in members if request.violated]
    return Verdicts(
        tenant=tenant,
        model=model,
        requests=len(members),
        violated=len(violators),
        disagreements=sum(request.violated != request.recorded for request in members),
        quantiles_ns={quantile: nearest_rank(durations, quantile) for quantile in QUANTILES},
        causes=dict(sorted(Counter(request.cause for request in violators).items())),
    )


def nearest_rank(ordered: Sequence[int], quantile: float) -> int:
    """The quantile of an ordered, non-empty sequence: the least value that this part of all does not exceed."""
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]
