"""A report's figures: as words that text and page share, and as plain values for JSON."""

from __future__ import annotations

import math
from typing import Any

from services.cli.slo.words import said, short_span
from services.tracestore.core.budgets import Burn, Standing
from services.tracestore.core.report import Check, ModelReport, Report
from services.tracestore.core.rollups import Counts


def verdict(standing: Standing) -> str:
    """ "kept", "broken", or "no requests"."""
    if not standing.judged.total:
        return "no requests"
    return "broken" if standing.broken else "kept"


def spent_text(standing: Standing) -> str:
    """How much of the error budget is gone."""
    if standing.spent is None:
        return "–"
    return "all, there is none" if math.isinf(standing.spent) else f"{standing.spent:.1%}"


def burn_text(burn: Burn) -> str:
    """One pair of windows: "1h 0.3, 5m 0, limit 14.4"."""
    long, short = (
        "–" if value is None else "∞" if math.isinf(value) else f"{value:.3g}" for value in (burn.long, burn.short)
    )
    window = burn.window
    fires = f" ({window.severity})" if burn.fires else ""
    return f"{short_span(window.long_s)} {long}, {short_span(window.short_s)} {short}, limit {window.factor:g}{fires}"


def outcome_counts(counts: Counts) -> str:
    """The most frequent first."""
    ordered = sorted(counts.outcomes.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{outcome} {count:,}" for outcome, count in ordered if count)


def checked(check: Check) -> str:
    """ "yes", "no", or "not known"."""
    return "not known" if check.agrees is None else "yes" if check.agrees else "no"


def completeness_text(model: ModelReport) -> str:
    """Whether every violation has its trace."""
    held = model.completeness
    if held is None:
        return "No traces were to be had."
    parts = [f"{held.counted:,} violations counted, {held.kept:,} with their trace"]
    if held.edge:
        parts.append(f"{held.edge:,} of them at the edges of the range")
    parts.append(f"{held.orphans:,} spans without their parent")
    if held.admitted:
        parts.append(f"{held.admitted:,} traces say that they miss something")
    if held.unaccounted_p99 is not None:
        parts.append(f"unaccounted at p99: {held.unaccounted_p99:.2%} of a request's time")
    return "; ".join(parts) + "."


def plain(report: Report) -> dict[str, Any]:
    """Everything, for `--json`. Times of day are Unix seconds, durations seconds; null: nothing to tell."""
    return {
        "start_s": report.start_s,
        "end_s": report.end_s,
        "broken": report.broken,
        "doubtful": report.doubtful,
        "models": [_model(each) for each in report.models],
    }


def _model(model: ModelReport) -> dict[str, Any]:
    counts, held = model.counts, model.completeness
    return {
        "tenant": model.tenant,
        "model": model.model,
        "requests": counts.requests,
        "outcomes": dict(sorted(counts.outcomes.items())),
        "met": counts.met,
        "missed": counts.missed,
        "violated": counts.violated,
        "quantiles_s": {f"p{quantile * 100:g}": at for quantile, at in model.quantiles_s.items()},
        "objectives": [_standing(each) for each in model.standings],
        "causes": dict(model.causes),
        "causes_from": model.causes_from,
        "worst": [
            {"trace_id": each.trace_id, "duration_s": each.duration_us / 1e6, "cause": each.cause}
            for each in model.worst
        ],
        "completeness": None
        if held is None
        else {
            "counted": held.counted,
            "kept": held.kept,
            "edge": held.edge,
            "orphans": held.orphans,
            "admitted": held.admitted,
            "unaccounted_p99": held.unaccounted_p99,
            "whole": held.whole,
        },
        "checks": [
            {"what": each.what, "one": each.one, "other": each.other, "agrees": each.agrees} for each in model.checks
        ],
    }


def _standing(standing: Standing) -> dict[str, Any]:
    objective = standing.objective
    return {
        "name": objective.name,
        "objective": said(objective.ratio_ppm, objective.objective_us, objective.window_s),
        "target": objective.target,
        "objective_us": objective.objective_us,
        "window_s": objective.window_s,
        "covered_s": standing.covered_s,
        "met": standing.judged.met,
        "missed": standing.judged.missed,
        "attainment": standing.judged.attainment,
        "budget": standing.budget,
        "budget_spent": _finite(standing.spent),
        "budget_left_s": standing.left_s,
        "broken": standing.broken,
        "burn_rates": [
            {
                "long_s": burn.window.long_s,
                "short_s": burn.window.short_s,
                "limit": burn.window.factor,
                "severity": burn.window.severity,
                "long": _finite(burn.long),
                "short": _finite(burn.short),
                "fires": burn.fires,
            }
            for burn in standing.burns
        ],
    }


def _finite(value: float | None) -> float | str | None:
    """JSON knows no infinity."""
    return "infinite" if value is not None and math.isinf(value) else value
