"""TLS between services: names in the SAN say who is there, both ways; and what is not signed gets nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from access_world import Mesh, bearing, running
from cryptography import x509

from services._proto.apportion.v1 import registry_pb2 as pb
from services._proto.apportion.v1.registry_pb2_grpc import RegistryServiceStub
from services._proto.inference import grpc_service_pb2 as oip
from services._proto.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.cli.certs import issuing
from services.cli.errors import CommandError
from services.cli.main import run
from services.common.access.callers import Role
from services.common.access.certificates import Tls, caller_at
from services.common.channel import Credentials, connect
from services.common.errors import Refusal

SAN = "x509_subject_alternative_name"


def files(folder: Path, name: str, authority: Path | None = None) -> Tls:
    return Tls(folder / f"{name}.pem", folder / f"{name}.key", (authority or folder) / "ca.pem")


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs") / "mesh"
    assert run(["certs", "init", str(folder), "--host", "mesh.example"]) == 0
    for arguments in (("tenant-admin", "alice"), ("tenant", "bob"), ("tenant", "nobody")):
        assert run(["certs", "issue", str(folder), *arguments]) == 0
    return folder


def secured(folder: Path, name: str) -> dict[str, Any]:
    tls = files(folder, name)
    return {"tls_certificate": tls.certificate, "tls_key": tls.key, "tls_ca": tls.authority}


def test_certificates_bear_names_in_their_san_and_keys_are_nobody_elses_to_read(certs: Path) -> None:
    made = x509.load_pem_x509_certificate((certs / "registry.pem").read_bytes())
    san = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == ["apportion://service/registry"]
    assert set(san.get_values_for_type(x509.DNSName)) == {"registry.apportion.internal", "localhost", "mesh.example"}
    for key in certs.glob("*.key"):
        assert key.stat().st_mode & 0o077 == 0, key
    with pytest.raises(CommandError, match="already"):
        issuing.begin(certs, days=1)


def test_what_a_certificate_says_is_read_from_its_san_alone() -> None:
    said = lambda *names: caller_at({SAN: [name.encode() for name in names]})
    assert said() is None
    assert said("registry.apportion.internal", "127.0.0.1") is None
    found = said("x.example", "apportion://tenant/acme")
    assert found is not None
    assert (found.role, found.tenant) == (Role.TENANT, "acme")
    frontend, executor = said("apportion://service/frontend"), said("apportion://service/executor")
    assert frontend is not None
    assert executor is not None
    assert frontend.rights > executor.rights, "only frontends note what tenants wish"
    for bad in ("apportion://mesh/x", "apportion://tenant/", "apportion://tenant/a/b", "apportion://", "apportion://x"):
        with pytest.raises(Refusal):
            said(bad)
    with pytest.raises(Refusal):
        said("apportion://tenant/a", "apportion://operator/b")


@pytest.fixture
async def mesh(tmp_path: Path, certs: Path) -> AsyncIterator[Mesh]:
    """Registry and scheduler with certificates and no mesh token; whoever makes tenants is an operator by certificate."""
    own = {name: secured(certs, name) for name in ("registry", "scheduler", "frontend")}
    own["collector"] = secured(certs, "tracestore")
    names = ("tracestore", "scheduler", "frontend")
    operator = Credentials(tls=files(certs, "operator-admin"))
    async with running(tmp_path, only=names, mesh_token=None, each=own, credentials=operator) as mesh:
        yield mesh


async def code(address: str, service: str, tls: Tls | None, call: Any, metadata: Any = ()) -> str:
    """What comes of a call by whoever bears this certificate; CONNECT where there is no connection."""
    async with connect(address, to=service, credentials=Credentials(tls=tls)) as channel:
        try:
            await call(channel, metadata)
        except grpc.aio.AioRpcError as error:
            return "CONNECT" if error.code() is grpc.StatusCode.UNAVAILABLE else error.code().name
        return "OK"


async def get_tenant(channel: grpc.aio.Channel, metadata: Any) -> None:
    await RegistryServiceStub(channel).GetTenant(pb.GetTenantRequest(name="alice"), metadata=metadata, timeout=5)


async def list_tenants(channel: grpc.aio.Channel, metadata: Any) -> None:
    await RegistryServiceStub(channel).ListTenants(pb.ListTenantsRequest(), metadata=metadata, timeout=5)


async def test_services_know_one_another_by_certificate_and_nobody_else_gets_in(
    mesh: Mesh, certs: Path, tmp_path: Path
) -> None:
    registry = mesh.addresses["registry"]
    made = RegistryServiceStub(mesh.channels["registry"])
    key = (await made.CreateTenant(pb.CreateTenantRequest(name="alice"))).api_key
    assert await code(registry, "registry", files(certs, "operator-admin"), list_tenants) == "OK"
    assert await code(registry, "registry", files(certs, "scheduler"), list_tenants) == "PERMISSION_DENIED"
    assert await code(registry, "registry", files(certs, "tenant-admin-alice"), get_tenant) == "OK"
    assert await code(registry, "registry", files(certs, "tenant-admin-alice"), list_tenants) == "PERMISSION_DENIED"
    assert await code(registry, "registry", files(certs, "tenant-nobody"), get_tenant) == "UNAUTHENTICATED"
    # A key beside a certificate must be of the same tenant.
    assert (
        await code(registry, "registry", files(certs, "tenant-nobody"), get_tenant, bearing(key)) == "UNAUTHENTICATED"
    )
    assert await code(registry, "registry", files(certs, "tenant-admin-alice"), get_tenant, bearing(key)) == "OK"
    assert await code(registry, "registry", None, get_tenant, bearing(key)) == "CONNECT", "plain text"
    other = tmp_path / "other"
    issuing.begin(other, days=1).issue(Role.OPERATOR, "admin", days=1)
    assert await code(registry, "registry", files(other, "operator-admin", certs), list_tenants) == "CONNECT"
    # Whoever calls the registry asks for the registry: no other service's certificate does.
    assert await code(registry, "scheduler", files(certs, "operator-admin"), list_tenants) == "CONNECT"
    assert await code(registry, "registry", files(other, "operator-admin"), list_tenants) == "CONNECT"


async def test_a_frontend_with_tls_takes_keys_and_asks_for_no_certificate_unless_told_to(
    mesh: Mesh, certs: Path
) -> None:
    made = RegistryServiceStub(mesh.channels["registry"])
    mesh.keys["alice"] = (await made.CreateTenant(pb.CreateTenantRequest(name="alice"))).api_key
    authority = grpc.ssl_channel_credentials((certs / "ca.pem").read_bytes())
    async with grpc.aio.secure_channel(mesh.addresses["frontend"], authority) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert (await stub.ServerLive(oip.ServerLiveRequest())).live
        async with asyncio.timeout(10):
            while True:
                try:
                    await stub.RepositoryIndex(oip.RepositoryIndexRequest(), metadata=bearing(mesh.keys["alice"]))
                    break
                except grpc.aio.AioRpcError:
                    # Not known there yet.
                    await asyncio.sleep(0.02)
