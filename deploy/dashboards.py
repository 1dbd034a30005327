"""`python -m deploy.dashboards`: writes Grafana's dashboards; what is checked is that the written ones are these.

A dashboard is a title and rows of panels; a panel is a title, a unit and its queries. Grafana's JSON is made from that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.lint.chart import Finding

FOLDER = Path(__file__).parent / "observability" / "grafana" / "dashboards"
WIDTH, HEIGHT = 24, 8
SOURCE = {"type": "prometheus", "uid": "${source}"}
OF_TENANT = 'tenant=~"$tenant"'
OF_MODEL = 'tenant=~"$tenant",model=~"$model"'


@dataclass(frozen=True)
class Query:
    """One line, or several, of a panel. legend: with {{label}} where the series differ."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture. unit: Grafana's name of it; kind: timeseries, stat or bargauge. bad: from this value on it is red."""

    title: str
    unit: str
    queries: Sequence[Query]
    kind: str = "timeseries"
    stacked: bool = False
    bad: float | None = None
    about: str = ""


@dataclass(frozen=True)
class Dashboard:
    """A page. variables: label by the query's metric, for the choices at its top."""

    name: str
    title: str
    variables: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Panel]]


TENANT = ("tenant", "label_values(apportion_frontend_requests_total, tenant)")
MODEL = ("model", 'label_values(apportion_frontend_requests_total{tenant=~"$tenant"}, model)')
LANE = ("lane", "label_values(apportion_executor_lane_busy_seconds_total, lane)")

TENANTS = Dashboard(
    "tenants",
    "Apportion: tenants",
    (TENANT, MODEL),
    (
        (
            Panel("Requests", "reqps", (Query(f"sum by (tenant) (rate(apportion_frontend_requests_total{{{OF_MODEL}}}[1m]))", "{{tenant}}"),)),
            Panel("Outcomes", "reqps", (Query(f"sum by (outcome) (rate(apportion_frontend_requests_total{{{OF_MODEL}}}[1m]))", "{{outcome}}"),), stacked=True),
        ),
        (
            Panel("Latency, p99", "s", (Query(f"apportion:request_seconds:p99_5m{{{OF_MODEL}}}", "{{tenant}}/{{model}}"),)),
            Panel("Latency, median", "s", (Query(f"histogram_quantile(0.5, sum by (tenant, model, le) (rate(apportion_frontend_request_seconds_bucket{{{OF_MODEL}}}[5m])))", "{{tenant}}/{{model}}"),)),
        ),
        (
            Panel("Devices used, and promised", "short", (
                Query(f"apportion_scheduler_used_devices{{{OF_TENANT}}}", "{{tenant}}"),
                Query(f"apportion_scheduler_reserved_devices{{{OF_TENANT}}}", "{{tenant}}, promised"),
            )),
            Panel("Device time, by whose account", "short", (Query(f"sum by (account) (apportion:account_seconds:rate5m{{{OF_TENANT}}})", "{{account}}"),), stacked=True,
                  about="guaranteed: of the reservation; surplus: of what others left; gap: between their slices"),
        ),
        (
            Panel("Requests that wait for their answer", "short", (Query(f"sum by (tenant, model) (apportion_frontend_in_flight{{{OF_MODEL}}})", "{{tenant}}/{{model}}"),)),
            Panel("Bytes held", "bytes", (Query(f"sum by (tenant, what) (apportion_frontend_held_bytes{{{OF_TENANT}}})", "{{tenant}}: {{what}}"),)),
        ),
        (
            Panel("Beyond a quota", "reqps", (Query(f'sum by (tenant) (rate(apportion_frontend_requests_total{{outcome="QUOTA_EXCEEDED",{OF_TENANT}}}[1m]))', "{{tenant}}"),), about="`apportion quota show` tells which, and what of it is used"),
            Panel("Calls turned away before anybody looked at them", "reqps", (Query("sum by (job, reason) (rate(apportion_access_refused_total[1m]))", "{{job}}: {{reason}}"),), about="bad keys, and callers who may not"),
        ),
    ),
)  # fmt: skip

SLO = Dashboard(
    "slo",
    "Apportion: objectives and their burn",
    (TENANT, MODEL),
    (
        (
            Panel("Within the objective, last hour", "percentunit", (Query(f"1 - apportion:objective_missed:ratio1h{{{OF_MODEL}}}", "{{tenant}}/{{model}}"),), kind="bargauge"),
            Panel("Burn rate of an objective of 99 %", "short", (
                Query(f"apportion:objective_missed:ratio5m{{{OF_MODEL}}} / 0.01", "{{tenant}}/{{model}}, 5 min"),
                Query(f"apportion:objective_missed:ratio1h{{{OF_MODEL}}} / 0.01", "{{tenant}}/{{model}}, 1 h"),
            ), bad=14.4, about="1: as fast as the objective allows; from 14.4 on somebody is paged, from 6 on there is a ticket"),
        ),
        (
            Panel("Violations", "reqps", (Query(f"sum by (tenant, model) (rate(apportion_frontend_violations_total{{{OF_MODEL}}}[1m]))", "{{tenant}}/{{model}}"),)),
            Panel("Refused for want of room", "reqps", (Query(f'sum by (tenant, outcome) (rate(apportion_frontend_requests_total{{outcome=~"OVERLOADED|QUOTA_EXCEEDED|OUT_OF_MEMORY",{OF_MODEL}}}[1m]))', "{{tenant}}: {{outcome}}"),)),
        ),
        (
            Panel("Wait for a batch, mean", "s", (Query(f"apportion:executor_queue_delay_seconds:mean1m{{{OF_MODEL}}}", "{{tenant}}/{{model}}"),)),
            Panel("Within objectives that were set for models", "percentunit", (Query(f'sum by (tenant, model, objective_us) (rate(apportion_frontend_slo_requests_total{{met="true",{OF_MODEL}}}[5m])) / (sum by (tenant, model, objective_us) (rate(apportion_frontend_slo_requests_total{{{OF_MODEL}}}[5m])) > 0)', "{{tenant}}/{{model}}, {{objective_us}} µs"),),
                  about="`apportion slo set`; what requests were promised is above"),
        ),
        (
            Panel("Traces that executors let go of without a verdict", "reqps", (Query("sum by (instance) (rate(apportion_executor_traces_dropped_total[1m]))", "{{instance}}"),), about="violators among them lack their executor's spans"),
            Panel("Spans", "ops", (Query("sum by (job, outcome) (rate(apportion_telemetry_spans_total[1m]))", "{{job}}: {{outcome}}"),), about="dropped ones are verdicts that no trace can prove"),
        ),
    ),
)  # fmt: skip

LANES = Dashboard(
    "lanes",
    "Apportion: lanes and partitions",
    (LANE,),
    (
        (
            Panel("Busy", "percentunit", (Query('apportion:lane_busy:ratio1m{lane=~"$lane"}', "{{instance}}, lane {{lane}}"),), bad=0.95),
            Panel("Workers", "short", (Query('apportion_executor_worker_up{lane=~"$lane"}', "{{instance}}, lane {{lane}}"),), kind="stat"),
        ),
        (
            Panel("Who has the lane", "short", (Query('sum by (lane, tenant) (rate(apportion_executor_account_seconds_total{lane=~"$lane"}[1m]))', "lane {{lane}}: {{tenant}}"),), stacked=True),
            Panel("On which terms requests got in", "reqps", (Query('sum by (account) (rate(apportion_executor_admitted_requests_total{lane=~"$lane"}[1m]))', "{{account}}"),), stacked=True),
        ),
        (
            Panel("Rows a batch", "short", (Query("sum by (tenant, model) (rate(apportion_executor_rows_total[1m])) / (sum by (tenant, model) (rate(apportion_executor_batches_total[1m])) > 0)", "{{tenant}}/{{model}}"),)),
            Panel("Device time a batch", "s", (Query("sum by (tenant, model) (rate(apportion_executor_device_seconds_total[1m])) / (sum by (tenant, model) (rate(apportion_executor_batches_total[1m])) > 0)", "{{tenant}}/{{model}}"),)),
        ),
        (
            Panel("Memory of models", "bytes", (Query('apportion_executor_memory_used_bytes{lane=~"$lane"}', "{{instance}}, lane {{lane}}"),)),
            Panel("Memory of requests", "bytes", (Query('apportion_executor_input_arena_used_bytes{lane=~"$lane"}', "{{instance}}, lane {{lane}}"),)),
        ),
    ),
)  # fmt: skip

SCHEDULER = Dashboard(
    "scheduler",
    "Apportion: scheduler and fleet",
    (),
    (
        (
            Panel("Executors", "short", (Query("sum by (state) (apportion_scheduler_executors)", "{{state}}"),), kind="stat"),
            Panel("Replicas", "short", (Query("sum by (state) (apportion_scheduler_replicas)", "{{state}}"),), stacked=True),
            Panel("Catalogue known", "bool_yes_no", (Query("min(apportion_scheduler_catalogue_known)", "known"),), kind="stat"),
        ),
        (
            Panel("Wanted without a replica", "short", (Query("sum by (tenant, model) (apportion_scheduler_unplaced_versions)", "{{tenant}}/{{model}}"),), bad=1),
            Panel("Replicas on their way, by executor", "short", (Query("sum by (instance, phase) (apportion_executor_replicas)", "{{instance}}: {{phase}}"),)),
        ),
        (
            Panel("Lanes as reported: busy", "percentunit", (Query("apportion_scheduler_lane_busy_ratio", "{{executor}}, lane {{lane}}"),), bad=0.95),
            Panel("Lanes as reported: waiting requests", "short", (Query("apportion_scheduler_lane_waiting_requests", "{{executor}}, lane {{lane}}"),)),
        ),
        (
            Panel("Promised of the devices there are", "percentunit", (Query('sum(apportion_scheduler_reserved_devices) / clamp_min(sum(apportion_scheduler_executors{state="attached"}), 1)', "promised"),), bad=1),
            Panel("Processor time of the services", "short", (Query('sum by (job) (rate(process_cpu_seconds_total{job=~"apportion-.*"}[1m]))', "{{job}}"),)),
        ),
    ),
)  # fmt: skip

ALL = (TENANTS, SLO, LANES, SCHEDULER)


def text(dashboard: Dashboard) -> str:
    """A dashboard as Grafana reads it."""
    page = {
        "uid": f"apportion-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["apportion"],
        "schemaVersion": 41,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), *(_variable(*each) for each in dashboard.variables)]},
        "panels": list(_panels(dashboard)),
    }
    return json.dumps(page, indent=1, ensure_ascii=False) + "\n"


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(name: str, query: str) -> dict[str, Any]:
    chosen = {"text": "All", "value": "$__all"}
    return {"name": name, "type": "query", "datasource": SOURCE, "query": query, "refresh": 2, "sort": 1, "multi": True, "includeAll": True, "allValue": ".*", "current": chosen}  # fmt: skip


def _panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    number = 0
    for at, row in enumerate(dashboard.rows):
        width = WIDTH // len(row)
        for place, panel in enumerate(row):
            number += 1
            grid = {"x": place * width, "y": at * HEIGHT, "w": width, "h": HEIGHT}
            yield {"id": number, "gridPos": grid, **_panel(panel)}


def _panel(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.bad is not None:
        steps.append({"color": "red", "value": panel.bad})
    drawn = {"fillOpacity": 20, "showPoints": "never", "stacking": {"mode": "normal" if panel.stacked else "none"}, "thresholdsStyle": {"mode": "line" if panel.bad is not None else "off"}}  # fmt: skip
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "timeseries":
        defaults["custom"] = drawn
    targets = [
        {"refId": chr(65 + index), "datasource": SOURCE, "expr": query.expression, "legendFormat": query.legend}
        for index, query in enumerate(panel.queries)
    ]
    return {
        "title": panel.title,
        "description": panel.about,
        "type": panel.kind,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
    }


def stale() -> Iterator[Finding]:
    """Dashboards whose files are not what is written here, and files that nobody writes."""
    for dashboard in ALL:
        path = FOLDER / f"{dashboard.name}.json"
        if not path.exists() or path.read_text() != text(dashboard):
            yield Finding(path.name, "stale: run `python -m deploy.dashboards`")
    for path in set(FOLDER.iterdir()) - {FOLDER / f"{dashboard.name}.json" for dashboard in ALL}:
        yield Finding(path.name, "nobody writes it")


def main() -> int:
    """Writes them, or with `--check` compares; returns the exit status."""
    if "--check" in sys.argv[1:]:
        found = list(stale())
        for finding in found:
            print(f"{finding.where}: {finding.what}", file=sys.stderr)
        return 1 if found else 0
    for dashboard in ALL:
        (FOLDER / f"{dashboard.name}.json").write_text(text(dashboard))
    return 0


if __name__ == "__main__":
    sys.exit(main())
