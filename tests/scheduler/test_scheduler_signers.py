"""Who signs a tenant's artefacts, and the signature of each, on their way from the catalogue to whoever loads."""

from __future__ import annotations

from services._proto.apportion.v1 import common_pb2, registry_pb2
from services.scheduler import convert, encode
from services.scheduler.core.catalogue import TrafficClass
from services.scheduler.core.events import SendLoad, Terms


def test_a_tenants_signers_and_a_versions_signature_are_read_from_the_catalogue() -> None:
    tenant = convert.tenant(
        registry_pb2.Tenant(
            name="acme", signers=[registry_pb2.Signer(id="key:1", pem="one"), registry_pb2.Signer(pem="two")]
        )
    )
    assert tenant.signers == ("one", "two")
    key = common_pb2.ModelKey(tenant="acme", name="m")
    versions = [registry_pb2.ModelVersion(version=1, digest="sha256:1", artefact_signature=b"{}")]
    model = convert.model(registry_pb2.Model(key=key, versions=versions))
    assert model.versions[0].artefact_signature == b"{}"


def test_a_load_tells_both() -> None:
    key = common_pb2.ModelKey(tenant="acme", name="m")
    version = registry_pb2.ModelVersion(version=1, digest="sha256:1")
    model = convert.model(registry_pb2.Model(key=key, versions=[version]))
    terms = Terms(100, 1, None, TrafficClass.INTERACTIVE)
    plain = SendLoad("e", 1, model.ref(model.versions[0]), 0, terms, 7, b"", None, None, "why")
    load = encode.command(plain).load
    assert (list(load.signers), load.artefact_signature) == ([], b"")
    signed = SendLoad("e", 1, model.ref(model.versions[0]), 0, terms, 7, b"", None, None, "why", ("one", "two"), b"{}")
    load = encode.command(signed).load
    assert (list(load.signers), load.artefact_signature) == (["one", "two"], b"{}")
