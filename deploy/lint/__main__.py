"""`python -m deploy.lint`: checks all of it, prints what was checked, what was not and why, and a last line of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict

from deploy import dashboards, schema
from deploy.lint import chart, compose, dockerfiles, objects, rules

NOT_RUN = (
    ("the images' build", "docker compose --env-file deploy/compose/.env.example -f deploy/compose/compose.yaml build"),
    ("Compose brought up", "cd deploy/compose && cp .env.example .env && docker compose up --build --detach --wait"),
    ("an install", "helm install apportion deploy/helm/apportion --namespace serving --create-namespace --wait"),
    ("the collector's configuration, by itself", "docker run --rm -v $PWD/deploy/observability/otel-collector:/c otel/opentelemetry-collector-contrib:0.136.0 validate --config /c/config.yaml"),
    ("Jaeger's configuration, by itself", "docker run --rm -v $PWD/deploy/observability/jaeger:/c jaegertracing/jaeger:2.11.0 validate --config /c/config.yaml"),
)  # fmt: skip
"""What needs a container engine or a cluster, and the command that does it where there is one."""


def main() -> int:
    """Runs every check; returns the exit status."""
    started, found = time.monotonic(), list[chart.Finding]()

    def show(what: str, findings: Iterable[chart.Finding]) -> None:
        new = list(findings)
        found.extend(new)
        print(f"{'FAILED' if new else 'ok':<8}{what}", flush=True)
        for finding in new:
            print(f"        {finding.where}: {finding.what}")

    show(
        "values.schema.json says what the settings are",
        _stale(schema.TARGET.read_text(), schema.text(), "deploy.schema"),
    )
    show("dashboards are what their generator writes", dashboards.stale())
    for name, values in chart.sets().items():
        manifests = chart.rendered(values)
        show(f"chart, {name}: linted for Kubernetes {', '.join(chart.KUBERNETES)}", chart.linted(name, values))
        show(f"chart, {name}: {len(manifests)} objects, strictly valid for each", objects.validated(name, manifests))
    show("Compose: parsed, images pinned, mounted files exist", compose.checked())
    show(f"Dockerfiles: hadolint, and {len(dockerfiles.files())} images as they must be", dockerfiles.checked())
    tool = rules.promtool()
    show(f"rules: {'promtool, ' if tool else ''}every alert has a severity, a summary and a runbook", rules.checked())
    missing = [] if tool else [("promtool: it is not installed", "apt-get install prometheus")]
    for what, command in (*missing, *NOT_RUN):
        print(f"not run {what}: {command}")
    print(json.dumps({"findings": [asdict(one) for one in found], "promtool": bool(tool), "seconds": round(time.monotonic() - started, 1)}))  # fmt: skip
    return 1 if found else 0


def _stale(written: str, made: str, module: str) -> Iterable[chart.Finding]:
    return [] if written == made else [chart.Finding(module, f"stale: run `python -m {module}`")]


if __name__ == "__main__":
    sys.exit(main())
