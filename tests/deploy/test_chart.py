"""The chart, rendered without a cluster. Needs the extra deploy-lint; run by `make lint-deploy`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from deploy import schema
from deploy.lint import chart, objects

pytestmark = pytest.mark.deploy

SETS = chart.sets()


@pytest.fixture(scope="module", params=sorted(SETS))
def rendered(request: pytest.FixtureRequest) -> list[chart.Manifest]:
    return chart.rendered(SETS[request.param])


def pods(manifests: list[chart.Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    for manifest in manifests:
        if "template" in manifest.get("spec", {}) and "containers" in manifest["spec"]["template"].get("spec", {}):
            yield chart.named(manifest), manifest["spec"]["template"]


def of_kind(manifests: list[chart.Manifest], kind: str) -> dict[str, chart.Manifest]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def test_there_are_the_sets_that_are_promised() -> None:
    devices = {"default", "gpu-plugin", "gpu-mig", "gpu-mps", "gpu-dra"}
    assert set(SETS) == {*devices, "high-availability", "tls-cert-manager", "tls-secrets"}


@pytest.mark.parametrize("name", sorted(SETS))
def test_the_chart_is_linted_and_every_object_is_valid_for_three_versions_of_kubernetes(name: str) -> None:
    assert list(chart.linted(name, SETS[name])) == []
    assert list(objects.validated(name, chart.rendered(SETS[name]))) == []


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"spec": {"replicas": "three"}}, "replicas"),
        ({"spec": {"replcias": 3}}, "replcias"),
    ],
)
def test_an_object_with_a_wrong_or_an_unknown_field_is_found(broken: dict[str, Any], told: str) -> None:
    deployment = of_kind(chart.rendered({}), "Deployment")["apportion-frontend"]
    deployment["spec"].update(broken["spec"])
    found = list(objects.validated("default", [deployment]))
    assert len(found) == len(chart.KUBERNETES)
    assert all(told in f"{one.where} {one.what}" for one in found)


def test_a_custom_resource_with_an_unknown_field_is_found() -> None:
    scaled = of_kind(chart.rendered(SETS["high-availability"]), "ScaledObject")["apportion-executor"]
    scaled["spec"]["minReplicas"] = 1
    assert [one.what for one in objects.validated("high-availability", [scaled])] == [
        "spec: Additional properties are not allowed ('minReplicas' was unexpected)"
    ]


@pytest.mark.parametrize(
    "broken",
    [
        {"dnsNames": ["not a name"]},
        {"uris": ["frontend"]},
        {"usages": ["tls client auth"]},
        {"duration": "90d"},
        {"renewBeforePercent": 20},
        {"privateKey": {"algorithm": "ECDSA", "size": 2048}},
    ],
    ids=str,
)
def test_a_certificate_that_cert_manager_would_not_take_is_found(broken: dict[str, Any]) -> None:
    certificate = of_kind(chart.rendered(SETS["tls-cert-manager"]), "Certificate")["apportion-frontend"]
    assert list(objects.validated("tls", [certificate])) == []
    certificate["spec"].update(broken)
    (found,) = objects.validated("tls", [certificate])
    assert next(iter(broken)) in found.what


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"frontend": {"replicas": "three"}}, "at '/frontend/replicas': got string, want integer"),
        ({"frontend": {"replcias": 3}}, "at '/frontend': additional properties 'replcias' not allowed"),
        ({"frontend": {"settings": {"max_mesage_bytes": 1}}}, "additional properties 'max_mesage_bytes' not allowed"),
        ({"frontend": {"settings": {"retry_ratio": 2}}}, "at '/frontend/settings/retry_ratio': maximum: got 2, want 1"),
        ({"executor": {"settings": {"policy": "random"}}}, "at '/executor/settings/policy'"),
        ({"executor": {"kind": "Deployment"}}, "value must be one of 'StatefulSet', 'DaemonSet'"),
        ({"executor": {"gpu": {"allocation": "mig"}}}, "at '/executor/gpu/resourceName'"),
        ({"telemetry": {"otlpEndpoint": "http://collector:4317"}}, "at '/telemetry/otlpEndpoint'"),
        ({"images": {"services": {"digest": "latest"}}}, "at '/images/services/digest'"),
        ({"artefacts": {"url": "bucket"}}, "at '/artefacts/url'"),
        ({"tls": {"mode": "existingSecrets", "existingSecrets": {"frontend": "a"}}}, "at '/tls/existingSecrets/executor'"),
        ({"tls": {"mode": "certManager", "certManager": {"duration": "90d"}}}, "at '/tls/certManager/duration'"),
        ({"frontend": {"settings": {"tls_key": "/x"}}}, "additional properties 'tls_key' not allowed"),
        ({"telemetry": {"otlpEndpoint": "collector:4317", "tls": "mesh"}}, "telemetry.tls=mesh needs certificates"),
        ({"executor": {"kind": "DaemonSet", "autoscaling": {"kind": "keda"}}}, "executor.autoscaling needs executor.kind"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_a_message_that_names_it(values: dict[str, Any], told: str) -> None:
    refused = chart.refusal(values)
    assert refused is not None
    assert told in refused


def test_the_schema_is_what_the_services_settings_make_it() -> None:
    import json

    assert json.loads(schema.TARGET.read_text()) == schema.schema(), "run `python -m deploy.schema`"


def test_every_default_value_has_a_place_in_the_schema_and_every_place_a_default() -> None:
    import yaml

    def paths(values: Any, known: dict[str, Any], at: str) -> Iterator[str]:
        properties = known.get("properties")
        if properties is None or at.endswith(("/settings", "/resources")):
            return
        yield from (f"{at}/{name}: only in the schema" for name in properties.keys() - values.keys() - {"global"})
        yield from (f"{at}/{name}: only in the values" for name in values.keys() - properties.keys())
        for name in values.keys() & properties.keys():
            yield from paths(values[name], properties[name], f"{at}/{name}")

    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    assert sorted(paths(values, schema.schema(), "")) == []


def test_nothing_runs_as_root_or_writes_to_its_root_file_system(rendered: list[chart.Manifest]) -> None:
    for name, template in pods(rendered):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name


def test_liveness_asks_for_nothing_but_an_answer_and_readiness_for_the_service(rendered: list[chart.Manifest]) -> None:
    for name, template in pods(rendered):
        for container in template["spec"]["containers"]:
            if name == "Job/apportion-migration":
                continue
            found = {port["name"]: port["containerPort"] for port in container["ports"]}
            # Kubernetes' probes speak no TLS: where there is some, health has a port of its own.
            ports = {found.get("health", found["grpc"])}
            live, ready = container["livenessProbe"]["grpc"], container["readinessProbe"]["grpc"]
            assert {live["port"]} == {ready["port"]} == ports, name
            assert live["service"] == "grpc.health.v1.Health", name
            assert ready.get("service", "") == ("apportion.v1.ExecutorService" if "executor" in name else ""), name


def test_selectors_find_the_pods_of_their_component_and_no_others(rendered: list[chart.Manifest]) -> None:
    labels = {name: template["metadata"]["labels"] for name, template in pods(rendered)}

    def chosen(selector: dict[str, str]) -> set[str]:
        return {name.split("-", 1)[1] for name, found in labels.items() if selector.items() <= found.items()}

    for manifest in rendered:
        name, spec = chart.named(manifest), manifest.get("spec", {})
        component = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
        selector = spec.get("podSelector", spec.get("selector"))
        if manifest["kind"] == "ServiceMonitor" or not selector:
            continue
        found = chosen(selector.get("matchLabels", selector))
        assert found == (set(component.split()) if component != "mesh" else {n.split("-", 1)[1] for n in labels}), name


def test_every_pod_is_under_default_deny_and_every_call_of_the_mesh_is_let_out_and_in(
    rendered: list[chart.Manifest],
) -> None:
    policies = of_kind(rendered, "NetworkPolicy")
    assert policies["apportion-deny"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policies["apportion-deny"]["spec"]
    calls = {("frontend", "registry"): 8101, ("frontend", "scheduler"): 8102, ("frontend", "executor"): 8110, ("scheduler", "registry"): 8101, ("executor", "registry"): 8101, ("executor", "scheduler"): 8102}  # fmt: skip

    def peers(rules: list[dict[str, Any]], key: str) -> set[tuple[str, int]]:
        return {
            (peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"], port["port"])
            for rule in rules
            for peer in rule.get(key, [])
            if "app.kubernetes.io/component" in peer.get("podSelector", {}).get("matchLabels", {})
            for port in rule["ports"]
        }

    for (caller, called), port in calls.items():
        assert (called, port) in peers(policies[f"apportion-{caller}"]["spec"]["egress"], "to")
        assert (caller, port) in peers(policies[f"apportion-{called}"]["spec"]["ingress"], "from")
    everything = {
        (name.removeprefix("apportion-"), *call)
        for name, policy in policies.items()
        for call in peers(policy["spec"].get("egress", []), "to")
    }
    assert everything == {(caller, called, port) for (caller, called), port in calls.items()}


def test_devices_are_asked_for_in_the_way_that_the_values_name() -> None:
    def executor(name: str) -> Any:
        manifests = chart.rendered(SETS[name])
        return {**of_kind(manifests, "StatefulSet"), **of_kind(manifests, "DaemonSet")}["apportion-executor"]["spec"]["template"]["spec"]  # fmt: skip

    def limits(name: str) -> Any:
        return executor(name)["containers"][0]["resources"]["limits"]

    assert limits("default") == {"memory": "8Gi"}
    assert limits("gpu-plugin") == {"memory": "8Gi", "nvidia.com/gpu": 1}
    assert limits("gpu-mig") == {"memory": "8Gi", "nvidia.com/mig-1g.18gb": 1}
    mps = executor("gpu-mps")
    assert mps["hostIPC"] is True
    assert {"name": "mps", "hostPath": {"path": "/run/nvidia/mps", "type": "Directory"}} in mps["volumes"]
    dra = executor("gpu-dra")
    claimed = of_kind(chart.rendered(SETS["gpu-dra"]), "ResourceClaimTemplate")
    assert dra["resourceClaims"] == [{"name": "device", "resourceClaimTemplateName": "apportion-device"}]
    assert dra["containers"][0]["resources"]["claims"] == [{"name": "device"}]
    assert list(claimed) == ["apportion-device"]


def test_the_mesh_token_is_made_once_or_is_a_secret_of_ones_own() -> None:
    own = chart.rendered({"meshToken": {"existingSecret": "mesh", "key": "secret"}})
    assert of_kind(own, "Secret") == {}
    for name, template in pods(own):
        found = [one for one in template["spec"]["containers"][0]["env"] if one["name"] == "APPORTION_MESH_TOKEN"]
        assert name == "Job/apportion-migration" or found[0]["valueFrom"]["secretKeyRef"] == {"name": "mesh", "key": "secret"}  # fmt: skip
    (made,) = of_kind(chart.rendered({}), "Secret").values()
    assert made["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


@pytest.mark.parametrize(
    ("values", "secret"),
    [
        ({}, {"name": "apportion-mesh", "key": "metrics-token"}),
        ({"metrics": {"token": {"existingSecret": "watch", "key": "word"}}}, {"name": "watch", "key": "word"}),
        ({"meshToken": {"existingSecret": "mesh", "key": "secret"}}, {"name": "mesh", "key": "secret"}),
    ],
)
def test_what_prometheus_shows_is_what_every_service_asks_for(values: dict[str, Any], secret: dict[str, str]) -> None:
    metrics = {**values.get("metrics", {}), "serviceMonitor": {"enabled": True}}
    manifests = chart.rendered({**values, "metrics": metrics})
    (endpoint,) = of_kind(manifests, "ServiceMonitor")["apportion"]["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == secret
    asked = 0
    for name, template in pods(manifests):
        found = [one for one in template["spec"]["containers"][0]["env"] if one["name"] == "APPORTION_METRICS_TOKEN"]
        if name != "Job/apportion-migration":
            assert found[0]["valueFrom"]["secretKeyRef"] == secret, name
            asked += 1
    assert asked == 4
    made = of_kind(manifests, "Secret").get(secret["name"])
    assert made is None or secret["key"] in made["data"]
    assert (made is None) == bool(secret["name"] != "apportion-mesh")


def test_a_pod_outlives_its_drain(rendered: list[chart.Manifest]) -> None:
    for name, template in pods(rendered):
        if name == "Job/apportion-migration":
            continue
        told = {one["name"].split("_", 2)[2]: float(one["value"]) for one in template["spec"]["containers"][0]["env"] if "DRAIN" in one["name"]}  # fmt: skip
        assert template["spec"]["terminationGracePeriodSeconds"] > sum(told.values()), name
