"""Objectives for other tools: OpenSLO documents, and Prometheus recording and alert rules.

YAML is written by hand: every text is a JSON string, which is YAML, too, so that no name can break out of its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

from services.cli.slo.words import percent, said, short_span
from services.tracestore.core.budgets import WHOLE_PPM, Objective, windows

PROMISED = "apportion_frontend_objective_requests_total"
JUDGED = "apportion_frontend_slo_requests_total"
HEADER = "# Made by `apportion slo export`: change the objectives in the registry, not here.\n"


def selector(objective: Objective, *, met: bool | None = None) -> str:
    """The counter that judges this objective, in PromQL."""
    labels = {"tenant": objective.tenant, "model": objective.model}
    if objective.objective_us is not None:
        labels["objective_us"] = str(objective.objective_us)
    if met is not None:
        labels["met"] = "true" if met else "false"
    name = PROMISED if objective.objective_us is None else JUDGED
    # PromQL's strings escape as JSON's do.
    return f"{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in labels.items())}}}"


def openslo(objectives: Iterable[Objective]) -> str:
    """One OpenSLO (v1) document an objective, after one for each tenant as a service."""
    held = list(objectives)
    documents = [_service(tenant) for tenant in sorted({each.tenant for each in held})]
    return HEADER + "".join(f"---\n{document}" for document in [*documents, *map(_slo, held)])


def _service(tenant: str) -> str:
    return (
        "apiVersion: openslo/v1\n"
        "kind: Service\n"
        "metadata:\n"
        f"  name: {json.dumps(dns_name(tenant))}\n"
        f"  displayName: {json.dumps(tenant)}\n"
        "spec:\n"
        f"  description: {json.dumps(f'The models of tenant {tenant}')}\n"
    )


def _slo(objective: Objective) -> str:
    name = dns_name(objective.tenant, objective.model, objective.name)
    queries = {"good": selector(objective, met=True), "total": selector(objective)}
    lines = [
        "apiVersion: openslo/v1",
        "kind: SLO",
        "metadata:",
        f"  name: {json.dumps(name)}",
        f"  displayName: {json.dumps(f'{objective.tenant}/{objective.model} {objective.name}')}",
        "spec:",
        f"  description: {json.dumps(_sentence(objective))}",
        f"  service: {json.dumps(dns_name(objective.tenant))}",
        "  indicator:",
        "    metadata:",
        f"      name: {json.dumps(f'{name[:58]}-sli')}",
        "    spec:",
        "      ratioMetric:",
        "        counter: true",
    ]
    for kind, query in queries.items():
        lines += [
            f"        {kind}:",
            "          metricSource:",
            "            type: Prometheus",
            "            spec:",
            f"              query: {json.dumps(f'sum({query})')}",
        ]
    lines += [
        "  timeWindow:",
        f"    - duration: {json.dumps(short_span(objective.window_s))}",
        "      isRolling: true",
        "  budgetingMethod: Occurrences",
        "  objectives:",
        f"    - displayName: {json.dumps(percent(objective.ratio_ppm))}",
        f"      target: {objective.ratio_ppm / WHOLE_PPM!r}",
    ]
    return "\n".join(lines) + "\n"


def prometheus(objectives: Iterable[Objective]) -> str:
    """One group of rules an objective: the part of requests that missed it over each window, and an alert for each pair."""
    held = list(objectives)
    return HEADER + ("groups:\n" if held else "groups: []\n") + "".join(map(_group, held))


def _group(objective: Objective) -> str:
    name = f"{objective.tenant}/{objective.model} {objective.name}"
    lines = [f"  - name: {json.dumps(f'apportion slo {name}')}", "    rules:"]
    pairs = windows(objective.window_s)
    lengths = sorted({length for pair in pairs for length in (pair.long_s, pair.short_s)} | {objective.window_s})
    for length_s in lengths:
        lines += _rule("record", recorded(length_s), missed(objective, length_s), _labels(objective), ())
    budget = (WHOLE_PPM - objective.ratio_ppm) / WHOLE_PPM
    for pair in pairs:
        most = f"{pair.factor * budget:.9g}"
        own = _matcher(objective)
        expression = f"{recorded(pair.long_s)}{own} > {most} and {recorded(pair.short_s)}{own} > {most}"
        spent = f"{100 * pair.factor * pair.long_s / objective.window_s:.3g} % of its budget within {short_span(pair.long_s)}"
        annotations = [("summary", f"{name} spends {spent}"), ("description", _sentence(objective))]
        labels = [*_labels(objective), ("severity", pair.severity), ("window", short_span(pair.long_s))]
        lines += _rule("alert", "ApportionSloBudgetBurn", expression, _verbatim(labels), _verbatim(annotations))
    return "\n".join(lines) + "\n"


def recorded(length_s: int) -> str:
    """The name of the recorded part of requests that missed an objective over a time."""
    return f"apportion:slo_missed:ratio_rate{short_span(length_s)}"


def missed(objective: Objective, length_s: int) -> str:
    """The part of requests that missed an objective over a time, in PromQL."""
    window = f"[{short_span(length_s)}]"
    return f"sum(rate({selector(objective, met=False)}{window})) / (sum(rate({selector(objective)}{window})) > 0)"


def _labels(objective: Objective) -> list[tuple[str, str]]:
    return [("tenant", objective.tenant), ("model", objective.model), ("slo", objective.name)]


def _matcher(objective: Objective) -> str:
    return f"{{{','.join(f'{key}={json.dumps(value)}' for key, value in _labels(objective))}}}"


def _rule(
    kind: str,
    name: str,
    expression: str,
    labels: Sequence[tuple[str, str]],
    annotations: Sequence[tuple[str, str]],
) -> Iterator[str]:
    yield f"      - {kind}: {name}"
    yield f"        expr: {json.dumps(expression)}"
    for section, pairs in (("labels", labels), ("annotations", annotations)):
        if pairs:
            yield f"        {section}:"
            yield from (f"          {key}: {json.dumps(value)}" for key, value in pairs)


def _verbatim(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """An alert's labels and annotations are templates to Prometheus: what would begin an action there is written as text."""
    return [(key, value.replace("{{", '{{"{{"}}')) for key, value in pairs]


def _sentence(objective: Objective) -> str:
    return said(objective.ratio_ppm, objective.objective_us, objective.window_s)


def dns_name(*parts: str) -> str:
    """A name as RFC 1123 has it, at most 63 characters. Of parts that such a name cannot spell, a part of their hash is added, so
    that different ones stay different."""
    joined = "-".join(parts)
    plain = "".join(char if char.isascii() and (char.isalnum() or char == "-") else "-" for char in joined.lower())
    if plain == joined and len(plain) <= 63 and len(parts) == 1:
        return plain
    digest = hashlib.sha256("/".join(parts).encode()).hexdigest()[:8]
    return f"{plain[:54].strip('-')}-{digest}"
