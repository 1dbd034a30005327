"""A report as one HTML page that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from services.cli.slo import plots
from services.cli.slo.figures import burn_text, checked, completeness_text, outcome_counts, spent_text, verdict
from services.cli.slo.markup import Content, Markup, joined, tag
from services.cli.slo.plots import duration, moment
from services.cli.slo.words import percent, said, short_span, span_text
from services.tracestore.core.budgets import Standing
from services.tracestore.core.report import ModelReport, Report
from services.tracestore.core.rollups import Slot

CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light dark; --ink:#1b1f24; --dim:#68707a; --paper:#fff; --edge:#d9dee4; --good:#2c7fb8; --bad:#d1495b;
  --other:#b8c0c8; --limit:#b8860b; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ec; --dim:#98a1ab; --paper:#15191e; --edge:#313841; --good:#5aa9dd;
  --bad:#ef6f7f; --other:#55606b; --limit:#e0b040; } }
body { font: 14px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto; max-width: 74rem;
  padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; border-top: 1px solid var(--edge);
  padding-top: 1rem; } h3 { font-size: .95rem; margin: 1rem 0 .3rem; }
table { border-collapse: collapse; margin: .4rem 0; } th, td { padding: .2rem .9rem .2rem 0; text-align: left;
  vertical-align: top; } th { color: var(--dim); font-weight: 500; } td.n, th.n { text-align: right;
  font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } .dim { color: var(--dim); } .broken, .no { color: var(--bad); font-weight: 600; }
.kept, .yes { color: var(--good); } .plots { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; flex: 1 1 26rem;
  max-width: 36rem; } figcaption { color: var(--dim); font-size: .85rem; } svg { width: 100%; height: auto; display: block; }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim); } svg text.limit { fill: var(--limit); }
rect.good { fill: var(--good); } rect.bad { fill: var(--bad); } rect.other { fill: var(--other); }
line.axis { stroke: var(--edge); } line.limit { stroke: var(--limit); stroke-dasharray: 4 3; }
line.mark { stroke: var(--ink); stroke-width: .7; } polyline.left { fill: none; stroke: var(--good); stroke-width: 1.6; }
code { font-size: .85em; }
"""
TRACE_ID = re.compile(r"[0-9a-f]{32}")


def page(report: Report, windows: dict[tuple[str, str], Sequence[Slot]], trace_url: str | None = None) -> str:
    """The whole page. windows: each model's slots over its objectives' windows. trace_url: where a trace is to be seen, with {} for
    its id."""
    name = f"Objectives, {moment(report.start_s)} to {moment(report.end_s)} UTC"
    body = joined(
        tag("h1", "Were the promises kept?"),
        tag("p", f"{moment(report.start_s)} to {moment(report.end_s)} UTC. ", _summary(report)),
        _overview(report),
        *(_model(each, report, windows.get((each.tenant, each.model), ()), trace_url) for each in report.models),
        tag("p", "Ratios come from counters, quantiles from histograms, causes from traces.", class_="dim"),
    )
    head = joined(
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=CSP),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", name),
        tag("style", Markup(STYLE)),
    )
    return "<!DOCTYPE html>\n" + tag("html", tag("head", head), tag("body", body), lang="en") + "\n"


def _summary(report: Report) -> Markup:
    judged = [each for model in report.models for each in model.standings]
    broken = sum(each.broken for each in judged)
    if not report.models:
        return tag("span", "Nothing was counted and there is no model: nothing to judge.", class_="dim")
    if not judged:
        return tag("span", "No model has an objective: nothing to judge.", class_="dim")
    text = f"{broken} of {len(judged)} objectives broken" if broken else f"All of {len(judged)} objectives kept"
    return tag("strong", text, class_="broken" if broken else "kept")


def _overview(report: Report) -> Markup | None:
    if not report.models:
        return None
    head = ["tenant", "model", ">requests", ">violations", ">p50", ">p95", ">p99", "objectives"]
    rows = [
        [
            model.tenant,
            tag("a", model.model, href=f"#{_anchor(place)}"),
            f"{model.counts.requests:,}",
            f"{model.counts.violated:,}",
            *(("–" if at is None else duration(at)) for at in model.quantiles_s.values()),
            _verdicts(model.standings),
        ]
        for place, model in enumerate(report.models)
    ]
    return _table(head, rows)


def _verdicts(standings: Sequence[Standing]) -> Content:
    if not standings:
        return tag("span", "none", class_="dim")
    return [[_verdict(each), tag("span", f" {each.objective.name} ", class_="dim")] for each in standings]


def _verdict(standing: Standing) -> Markup:
    word = verdict(standing)
    return tag("span", word, class_={"broken": "broken", "kept": "kept"}.get(word, "dim"))


def _model(model: ModelReport, report: Report, slots: Sequence[Slot], trace_url: str | None) -> Markup:
    place = report.models.index(model)
    return tag(
        "section",
        tag("h2", f"{model.tenant} / {model.model}"),
        _standings(model.standings),
        _plots(model, report, slots),
        tag("p", "Outcomes: ", outcome_counts(model.counts) or "none"),
        _worst(model, trace_url),
        _checks(model),
        id=_anchor(place),
    )


def _standings(standings: Sequence[Standing]) -> Markup:
    if not standings:
        return tag("p", "No objective to judge it by.", class_="dim")
    head = ["", "objective", ">attained", ">met", ">missed", ">budget spent", "burn rates: long, short, limit"]
    rows = []
    for each in standings:
        attained = each.judged.attainment
        burns = [[tag("span", burn_text(burn), class_="no" if burn.fires else None), tag("br")] for burn in each.burns]
        about = [
            said(each.objective.ratio_ppm, each.objective.objective_us, each.objective.window_s),
            tag("br"),
            tag("span", f"{each.objective.name}; {span_text(each.covered_s // 60 * 60)} of it counted", class_="dim"),
        ]
        attainment = "–" if attained is None else percent(int(attained * 1_000_000))
        spent = spent_text(each)
        rows.append(
            [_verdict(each), about, attainment, f"{each.judged.met:,}", f"{each.judged.missed:,}", spent, burns]
        )
    return _table(head, rows)


def _plots(model: ModelReport, report: Report, slots: Sequence[Slot]) -> Markup:
    marks = [each.objective.objective_us / 1e6 for each in model.standings if each.objective.objective_us]
    drawn = [
        ("Requests over time", plots.over_time(model.slots, report.start_s, report.end_s)),
        ("Latency", plots.latencies(model.counts.latencies, model.quantiles_s, marks)),
        (f"Violations by cause, from {model.causes_from}", plots.causes(model.causes)),
        *(
            (
                f"Error budget left of {each.objective.name}, over {short_span(each.objective.window_s)}",
                plots.budget(each.objective, slots, report.end_s),
            )
            for each in model.standings
        ),
    ]
    shown = [tag("figure", plot, tag("figcaption", title)) for title, plot in drawn if plot is not None]
    if not shown:
        return tag("p", "Nothing was counted within the range.", class_="dim")
    return tag("div", *shown, class_="plots")


def _worst(model: ModelReport, trace_url: str | None) -> Markup | None:
    if not model.worst:
        return None
    rows = [[duration(each.duration_us / 1e6), each.cause, _trace(each.trace_id, trace_url)] for each in model.worst]
    return joined(tag("h3", "Worst requests"), _table([">took", "to blame", "trace"], rows))


def _trace(trace_id: str, trace_url: str | None) -> Markup:
    if trace_url is None or TRACE_ID.fullmatch(trace_id) is None:
        return tag("code", f"apportion trace show {trace_id}")
    return tag("a", trace_id, href=trace_url.replace("{}", trace_id), rel="noreferrer")


def _checks(model: ModelReport) -> Markup:
    rows = [
        [tag("span", word, class_=word if word in ("yes", "no") else "dim"), check.what, check.one, check.other]
        for check in model.checks
        for word in (checked(check),)
    ]
    return joined(
        tag("h3", "Do the sources agree?"),
        tag("p", completeness_text(model)),
        _table(["agrees", "", "one", "the other"], rows),
    )


def _anchor(place: int) -> str:
    return f"model-{place}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Content]]) -> Markup:
    kinds = ["n" if each.startswith(">") else None for each in head]
    return tag(
        "div",
        tag(
            "table",
            tag("tr", *(tag("th", each.lstrip(">"), class_=kind) for each, kind in zip(head, kinds, strict=True))),
            *(
                tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)))
                for row in rows
            ),
        ),
        class_="wide",
    )
