"""Every metric, label and value that dashboards and rules ask for exists in what a live mesh exposes."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml

from deploy import dashboards
from deploy.lint import queries, rules
from services._proto.inference import grpc_service_pb2 as pb
from services._proto.inference import grpc_service_pb2_grpc as stubs
from services.common import attributes
from services.common.errors import Reason
from tests.deploy.serving import ask
from tests.mesh.running import running, wait_until
from tests.mesh.tiny import echo, slow

OBSERVABILITY = Path(dashboards.__file__).parent / "observability"
OF_TARGETS = {"instance", "job"}
"""Labels that a scrape gives every sample; `up` it makes itself."""
RECORDED = {rule["record"]: rule["expr"] for rule in rules.rules() if "record" in rule}

Exposed = dict[str, dict[str, set[str]]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Exposed:
    """Values by metric and label, of all services, after some requests: kept, late, refused; and with a model without a place."""
    folder = tmp_path_factory.mktemp("observed")
    others = {name: f"127.0.0.1:{free_port()}" for name in ("SCHEDULER", "REGISTRY")}
    environment = {f"APPORTION_{name}_METRICS_LISTEN": address for name, address in others.items()}
    found: Exposed = defaultdict(lambda: defaultdict(set))
    with running(folder / "data", environment=environment) as mesh:
        key = mesh.create_tenant("search", reserve=0.25)
        model = echo(folder / "echo.onnx", "float32")
        mesh.push("echo", model, tenant="search", options=("--slo-ms", "500"))
        ask(mesh.addresses["frontend"], key)
        mesh.apportion("model", "push", "wide", str(model), "--tenant", "search", "--replicas", "3", "--no-wait")
        wait_until(lambda: mesh.total("apportion_scheduler_unplaced_versions", others["SCHEDULER"]), what="a model without a place")  # fmt: skip
        mesh.push("slow", slow(folder / "slow.onnx"), tenant="search")
        with ThreadPoolExecutor(1) as pool:
            # Bytes are held while a request waits for its answer.
            held = pool.submit(ask_slowly, mesh.addresses["frontend"], key)
            wait_until(lambda: mesh.total("apportion_frontend_held_bytes"), what="a request in hand")
            for address in (mesh.addresses["metrics"], mesh.addresses["executor_metrics"], *others.values()):
                for name, labels, _ in mesh.metrics(address):
                    found[name].update({label: found[name][label] | {value} for label, value in labels.items()})
            held.result(60)
    return found


def ask_slowly(frontend: str, key: str) -> None:
    """One request that takes some seconds."""
    request = pb.ModelInferRequest(model_name="slow", raw_input_contents=[np.array([30_000], np.int64).tobytes()])
    request.inputs.add(name="turns", datatype="INT64", shape=[1])
    with grpc.insecure_channel(frontend) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        stub.ModelInfer(request, timeout=60, metadata=(("authorization", f"Bearer {key}"),))


def labels_of(metric: str, exposed: Exposed) -> set[str]:
    """The labels of a metric, recorded or exposed."""
    if metric in RECORDED:
        given = queries.result_labels(RECORDED[metric])
        assert given is not None, metric
        return set(given)
    assert metric in exposed, f"nobody exposes {metric}"
    return set(exposed[metric]) | OF_TARGETS


def wrong(expression: str, legend: str, exposed: Exposed) -> Iterator[str]:
    """What a query asks for and would not get."""
    given: set[str] = set()
    for use in queries.uses(expression):
        if use.metric == "up":
            given |= OF_TARGETS
            continue
        if use.metric not in RECORDED and use.metric not in exposed:
            yield f"nobody exposes {use.metric}"
            continue
        known = labels_of(use.metric, exposed)
        given |= use.grouped or known
        asked = {label for label, _ in use.matched} | use.grouped
        yield from (f"{use.metric} has no label {label}" for label in sorted(asked - known))
        for label, values in use.matched:
            possible = exposed[use.metric][label] if use.metric in exposed else set(values)
            possible = possible | set(Reason) if label == "outcome" else possible
            yield from (f"{use.metric} never has {label}={value!r}" for value in values if value not in possible)
    yield from (f"{label} is shown, and not among {sorted(given)}" for label in queries.shown(legend) - given)


@pytest.mark.slow
def test_every_panel_asks_for_what_is_exposed(exposed: Exposed) -> None:
    found = [
        f"{dashboard.title}, {panel.title}: {problem}"
        for dashboard in dashboards.ALL
        for row in dashboard.rows
        for panel in row
        for query in panel.queries
        for problem in wrong(query.expression, query.legend, exposed)
    ]
    assert found == []


@pytest.mark.slow
def test_every_rule_asks_for_what_is_exposed(exposed: Exposed) -> None:
    found = [
        f"{rule.get('alert', rule.get('record'))}: {problem}"
        for rule in rules.rules()
        for problem in wrong(rule["expr"], rule.get("annotations", {}).get("summary", ""), exposed)
    ]
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expression", "legend", "told"),
    [
        ("rate(apportion_frontend_request_total[1m])", "", "nobody exposes apportion_frontend_request_total"),
        ("sum by (tenent) (rate(apportion_frontend_requests_total[1m]))", "", "has no label tenent"),
        ('apportion_frontend_requests_total{outcome="TIMEOUT"}', "", "never has outcome='TIMEOUT'"),
        ('apportion_scheduler_executors{state="lost"}', "", "never has state='lost'"),
        ("sum by (tenant) (apportion_frontend_requests_total)", "{{model}}", "model is shown"),
        ('apportion:lane_busy:ratio1m{tenant="a"}', "", "has no label tenant"),
    ],
)
def test_a_query_for_what_is_not_there_is_found(expression: str, legend: str, told: str, exposed: Exposed) -> None:
    assert any(told in problem for problem in wrong(expression, legend, exposed))


def test_dashboards_are_what_their_generator_writes() -> None:
    assert list(dashboards.stale()) == []


def test_every_alert_has_a_severity_a_summary_and_a_runbook() -> None:
    assert list(rules.checked()) == []


@pytest.mark.parametrize("name", ["otel-collector", "jaeger"])
def test_pipelines_name_only_components_that_are_configured_and_all_of_them(name: str) -> None:
    config = yaml.safe_load((OBSERVABILITY / name / "config.yaml").read_text())
    used = {kind: {each for line in config["service"]["pipelines"].values() for each in line[kind]} for kind in ("receivers", "processors", "exporters")}  # fmt: skip
    used["extensions"] = set(config["service"]["extensions"])
    assert used == {kind: set(config.get(kind, {})) for kind in used}


def test_the_collector_keeps_violators_by_the_attribute_that_says_so() -> None:
    config = yaml.safe_load((OBSERVABILITY / "otel-collector" / "config.yaml").read_text())
    policies = {policy["name"]: policy for policy in config["processors"]["tail_sampling"]["policies"]}
    assert policies["violated"]["boolean_attribute"] == {"key": attributes.SLO_VIOLATED, "value": True}
    assert policies["batches"]["ottl_condition"]["span"] == [f'name == "{attributes.SPAN_BATCH}"']
    assert attributes.SPAN_BATCH not in attributes.STAGES, "the spans of requests are sampled"


def test_prometheus_has_the_jobs_that_the_rules_tell_services_apart_by() -> None:
    config = yaml.safe_load((OBSERVABILITY / "prometheus" / "prometheus.yaml").read_text())
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    assert jobs >= {f"apportion-{service}" for service in ("frontend", "registry", "scheduler", "executor")}
