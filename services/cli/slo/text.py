"""A report for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from services.cli.slo.figures import burn_text, checked, completeness_text, outcome_counts, spent_text, verdict
from services.cli.slo.plots import duration, moment
from services.cli.slo.words import percent, said, span_text
from services.tracestore.core.budgets import Standing
from services.tracestore.core.report import ModelReport, Report
from services.tracestore.core.waterfall import printable


def lines(report: Report) -> Iterator[str]:
    """The report, line by line. Nothing in it can steer a terminal."""
    yield f"{moment(report.start_s)} to {moment(report.end_s)} UTC"
    if not report.models:
        yield "nothing was counted, and there is no model with an objective"
    for model in report.models:
        yield ""
        yield from _model(model)
    judged = [each for model in report.models for each in model.standings]
    if judged:
        broken = sum(each.broken for each in judged)
        yield ""
        yield f"{broken} of {len(judged)} objectives broken" if broken else f"all of {len(judged)} objectives kept"


def _model(model: ModelReport) -> Iterator[str]:
    yield f"{printable(model.tenant)}/{printable(model.model)}  {model.counts.requests:,} requests"
    for standing in model.standings:
        yield from _standing(standing)
    if model.counts.requests:
        told = [f"p{q * 100:g} {duration(at)}" for q, at in model.quantiles_s.items() if at is not None]
        yield f"  latency      {', '.join(told)}"
        yield f"  outcomes     {printable_list(outcome_counts(model.counts))}"
    if model.causes:
        named = ", ".join(f"{printable(cause)} {count:,}" for cause, count in model.causes.items())
        yield f"  causes       {named}  (from {model.causes_from})"
    for each in model.worst:
        yield f"  worst        {duration(each.duration_us / 1e6):>9}  {printable(each.cause):<12} {printable(each.trace_id)}"
    yield f"  traces       {completeness_text(model)}"
    for check in model.checks:
        if check.agrees is False or (check.agrees is None and model.counts.requests):
            yield f"  {'DISAGREE' if check.agrees is False else checked(check):<12} {check.what}: {check.one}, {check.other}"


def _standing(standing: Standing) -> Iterator[str]:
    objective, attained = standing.objective, standing.judged.attainment
    text = said(objective.ratio_ppm, objective.objective_us, objective.window_s)
    word = verdict(standing)
    yield f"  {word.upper() if word == 'broken' else word:<12} {printable(objective.name)}: {text}"
    if attained is None:
        return
    yield (
        f"               attained {percent(int(attained * 1_000_000))} of {standing.judged.total:,}, "
        f"budget spent {spent_text(standing)}, {span_text(standing.covered_s // 60 * 60)} counted"
    )
    yield f"               burn {'; '.join(map(burn_text, standing.burns))}"


def printable_list(text: str) -> str:
    """As `printable`, however long."""
    return "".join(char if char.isprintable() else "·" for char in text)
