"""The services as the chart starts them with TLS, with certificates that bear what the chart's own objects ask cert-manager for.

Needs the extra deploy-lint; run by `make lint-deploy`.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from deploy.lint import chart
from services.cli.certs import issuing
from tests.deploy.processes import Container, Machine, of_manifest
from tests.deploy.serving import MODEL, TENANT, ask, served
from tests.deploy.test_chart import of_kind, pods

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(300)]

TOKEN = "a-token-of-the-mesh"
ORDER = ("registry", "scheduler", "executor", "frontend")
VALUES: Mapping[str, Any] = chart.sets()["tls-cert-manager"]
USAGES = {"server auth": ExtendedKeyUsageOID.SERVER_AUTH, "client auth": ExtendedKeyUsageOID.CLIENT_AUTH}
NAME = "apportion-frontend.serving.svc"
"""What callers in the cluster know the frontends by."""


@pytest.fixture
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="deploy-tls-") as folder:
        machine = Machine(Path(folder))
        yield machine
        machine.end()


def signed(manifests: list[chart.Manifest], folder: Path) -> None:
    """What cert-manager does with the objects: a secret for each Certificate, with the names that it asks for and no others."""
    authority = issuing.begin(folder / "authority", days=1)
    for each in of_kind(manifests, "Certificate").values():
        if not each["spec"].get("isCA"):
            sign(authority, each["spec"], folder / each["spec"]["secretName"])


def sign(authority: issuing.Authority, spec: Mapping[str, Any], secret: Path) -> None:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    names = [*map(x509.UniformResourceIdentifier, spec["uris"]), *map(x509.DNSName, spec.get("dnsNames", []))]
    usages = [USAGES[name] for name in spec["usages"] if name in USAGES]
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - issuing.SKEW)
        .not_valid_after(now + issuing.DAY / 2)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    secret.mkdir(exist_ok=True)
    pem = serialization.Encoding.PEM
    (secret / "tls.crt").write_bytes(made.public_bytes(pem))
    (secret / "tls.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (secret / "ca.crt").write_bytes((authority.folder / "ca.pem").read_bytes())


def containers(manifests: list[chart.Manifest]) -> dict[str, Container]:
    """The workloads by component. PostgreSQL and S3 have tests of their own: the registry keeps its data in its folder."""
    secrets = {("mesh", "token"): TOKEN, ("apportion-database", "url"): ""}
    found = {each["metadata"]["labels"]["app.kubernetes.io/component"]: of_manifest(each, secrets) for each in manifests if each["kind"] in ("Deployment", "StatefulSet")}  # fmt: skip
    registry = dict(found["registry"].environment)
    del registry["APPORTION_REGISTRY_DATABASE_URL"], registry["APPORTION_REGISTRY_ARTEFACTS_URL"]
    found["registry"].environment = registry
    for each in found.values():
        # No collector listens here.
        each.environment = {name: value for name, value in each.environment.items() if name != "APPORTION_OTLP_ENDPOINT"}  # fmt: skip
    return found


def test_a_mesh_with_the_certificates_that_the_chart_asks_for_serves(machine: Machine) -> None:
    values = {**VALUES, "meshToken": {"existingSecret": "mesh"}, "executor": {"cores": "0"}}
    manifests = chart.rendered(values)
    signed(manifests, machine.folder)
    found = containers(manifests)
    machine.know(*(each.host for each in found.values()), "apportion-executor-0")
    machine.hosts["apportion-executor-0"] = machine.hosts["apportion-executor"]
    for name in ORDER:
        machine.start(found[name])
    for name in ORDER:
        machine.until_ready(name)

    operator = machine.folder / "apportion-operator-tls"
    mesh = {
        "APPORTION_REGISTRY": machine.address("registry"),
        "APPORTION_SCHEDULER": machine.address("scheduler"),
        "APPORTION_TLS_CERTIFICATE": str(operator / "tls.crt"),
        "APPORTION_TLS_KEY": str(operator / "tls.key"),
        "APPORTION_TLS_CA": str(operator / "ca.crt"),
    }
    authority = grpc.ssl_channel_credentials((operator / "ca.crt").read_bytes())

    def named(address: str) -> grpc.Channel:
        return grpc.secure_channel(address, authority, [("grpc.ssl_target_name_override", NAME)])

    key = served(mesh, machine.address("frontend"), machine.folder, open_channel=named)
    for name in ORDER:
        # Without a certificate nothing is answered, with the probe's port as the only exception.
        with grpc.insecure_channel(machine.address(name)) as plain, pytest.raises(grpc.RpcError) as told:
            plain.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
        assert told.value.code() is grpc.StatusCode.UNAVAILABLE, name
    for name in ("registry", "scheduler"):
        with named_like(machine, name, authority) as nobody, pytest.raises(grpc.RpcError):
            nobody.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
    ask(machine.address("frontend"), key, open_channel=named)
    assert f'model="{MODEL}",outcome="ok",tenant="{TENANT}"' in machine.scrape("frontend")
    for name in reversed(ORDER):
        assert machine.stop(name) == 0, machine.log(name)


def named_like(machine: Machine, name: str, authority: grpc.ChannelCredentials) -> grpc.Channel:
    """A channel of somebody who trusts the authority and has no certificate."""
    override = [("grpc.ssl_target_name_override", f"{name}.apportion.internal")]
    return grpc.secure_channel(machine.address(name), authority, override)


@pytest.mark.parametrize("name", ["tls-cert-manager", "tls-secrets"])
def test_with_tls_every_pod_has_its_certificate_and_probes_ask_where_there_is_none(name: str) -> None:
    manifests = chart.rendered(chart.sets()[name])
    made = {each["spec"]["secretName"] for each in of_kind(manifests, "Certificate").values()}
    seen = set()
    for workload, template in pods(manifests):
        if workload == "Job/apportion-migration":
            continue
        (container,) = template["spec"]["containers"]
        (volume,) = [each for each in template["spec"]["volumes"] if each["name"] == "tls"]
        (mount,) = [each for each in container["volumeMounts"] if each["name"] == "tls"]
        assert volume["secret"]["defaultMode"] == 0o440, workload
        assert mount["readOnly"] is True, workload
        told = {each["name"]: each["value"] for each in container["env"] if "TLS" in each["name"]}
        assert {path.removeprefix(mount["mountPath"]) for path in told.values()} == {"/tls.crt", "/tls.key", "/ca.crt"}
        (grpc_port,) = [port["containerPort"] for port in container["ports"] if port["name"] == "grpc"]
        assert {container[f"{kind}Probe"]["grpc"]["port"] for kind in ("readiness", "liveness")} == {8090} != {grpc_port}  # fmt: skip
        seen.add(volume["secret"]["secretName"])
    assert len(seen) == 4, "a certificate says which service it is: no two share one"
    assert not made or seen < made
    for service in of_kind(manifests, "Service").values():
        assert {port.get("appProtocol") for port in service["spec"]["ports"]} == {"https"}, service["metadata"]["name"]


def test_certificates_are_signed_by_an_authority_of_ones_own_where_one_is_named() -> None:
    issuer = {"name": "mesh", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    manifests = chart.rendered({"tls": {"mode": "certManager", "certManager": {"issuerRef": issuer, "operator": ""}}})
    certificates = of_kind(manifests, "Certificate")
    assert of_kind(manifests, "Issuer") == {}
    assert {each["spec"]["issuerRef"]["name"] for each in certificates.values()} == {"mesh"}
    assert set(certificates) == {f"apportion-{name}" for name in ORDER}


def test_without_tls_nothing_of_it_is_rendered() -> None:
    manifests = chart.rendered({})
    assert not of_kind(manifests, "Certificate")
    assert not of_kind(manifests, "Issuer")
    assert "8090" not in str(manifests)
    assert "/etc/apportion/tls" not in str(manifests)


@pytest.mark.parametrize(
    ("telemetry", "told"),
    [("none", "http://collector:4317"), ("public", "https://collector:4317"), ("mesh", "collector:4317")],
)
def test_a_mesh_with_tls_speaks_to_its_collector_as_it_is_told(telemetry: str, told: str) -> None:
    values = {"tls": {"mode": "certManager"}, "telemetry": {"otlpEndpoint": "collector:4317", "tls": telemetry}}
    for name, template in pods(chart.rendered(values)):
        found = {each["name"]: each.get("value") for each in template["spec"]["containers"][0]["env"]}
        assert name == "Job/apportion-migration" or found["APPORTION_OTLP_ENDPOINT"] == told
