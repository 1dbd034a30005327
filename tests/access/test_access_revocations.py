"""Certificates that are taken back: nobody who bears one gets anything more, whatever else it shows, within about a second."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from access_world import bearing, running
from cryptography import x509

from services._proto.apportion.v1 import registry_pb2 as pb
from services._proto.apportion.v1.registry_pb2_grpc import RegistryServiceStub
from services.cli.certs import issuing
from services.cli.errors import CommandError
from services.cli.main import run
from services.common.access.callers import Role
from services.common.access.certificates import Tls
from services.common.access.revocations import LOOK_S, PEM, Revocations
from services.common.channel import Credentials, connect
from services.common.errors import Reason, Refusal
from services.common.process import StartupError
from services.common.status import from_rpc_error
from services.registry.serve import serve
from services.registry.settings import RegistrySettings


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    folder = tmp_path / "certs"
    assert run(["certs", "init", str(folder)]) == 0
    for name in ("alice", "bob"):
        assert run(["certs", "issue", str(folder), "tenant-admin", name]) == 0
    issuing.opened(folder).issue(Role.OPERATOR, "other", days=1)
    assert run(["certs", "revoke", str(folder), str(folder / "operator-other.pem")]) == 0
    return folder


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def shows(certs: Path, name: str) -> dict[str, Any]:
    return {PEM: [(certs / f"{name}.pem").read_bytes()]}


def revoke(certs: Path, name: str) -> None:
    assert run(["certs", "revoke", str(certs), str(certs / f"{name}.pem")]) == 0


def test_a_list_is_read_again_once_it_has_changed_and_no_more_often_than_it_is_looked_at(certs: Path) -> None:
    clock = Clock()
    revoked = Revocations(certs / "crl.pem", certs / "ca.pem", clock_s=clock)
    revoked.check(shows(certs, "tenant-admin-alice"))
    revoked.check({})
    with pytest.raises(Refusal, match="has been revoked") as caught:
        revoked.check(shows(certs, "operator-other"))
    assert caught.value.reason is Reason.KEY_UNKNOWN
    revoke(certs, "tenant-admin-alice")
    revoked.check(shows(certs, "tenant-admin-alice"))
    clock.now_s += LOOK_S
    for name in ("tenant-admin-alice", "operator-other"):
        with pytest.raises(Refusal):
            revoked.check(shows(certs, name))
    revoked.check(shows(certs, "tenant-admin-bob"))
    assert revoked.generation == 2


def test_a_list_that_cannot_be_read_or_is_somebody_elses_changes_nothing(certs: Path, tmp_path: Path) -> None:
    clock = Clock()
    revoked = Revocations(certs / "crl.pem", certs / "ca.pem", clock_s=clock)
    other = issuing.begin(tmp_path / "other", days=1)
    theirs = other.revoke(other.issue(Role.OPERATOR, "x", days=1)).read_bytes()
    assert theirs.startswith(b"-----BEGIN X509 CRL")
    for spoilt in (theirs, b"", (certs / "ca.pem").read_bytes(), None):
        (certs / "crl.pem").unlink()
        if spoilt is not None:
            (certs / "crl.pem").write_bytes(spoilt)
        clock.now_s += LOOK_S
        revoked.check(shows(certs, "tenant-admin-alice"))
        with pytest.raises(Refusal):
            revoked.check(shows(certs, "operator-other"))
        with pytest.raises((OSError, ValueError)):
            Revocations(certs / "crl.pem", certs / "ca.pem")


def test_a_list_keeps_what_was_on_it_and_names_each_once(certs: Path) -> None:
    for _ in range(2):
        revoke(certs, "tenant-admin-bob")
    listed = x509.load_pem_x509_crl((certs / "crl.pem").read_bytes())
    numbers = [x509.load_pem_x509_certificate((certs / f"{name}.pem").read_bytes()).serial_number for name in GONE]
    assert [each.serial_number for each in listed] == numbers
    with pytest.raises(CommandError, match="no certificate of the authority"):
        issuing.opened(certs).revoke(certs / "bob.key" if (certs / "bob.key").exists() else certs / "ca.key")


GONE = ("operator-other", "tenant-admin-bob")


async def test_a_service_does_not_start_without_the_list_that_it_is_told_of(certs: Path, tmp_path: Path) -> None:
    own = secured(certs, "registry") | {"tls_crl": tmp_path / "nothing.pem"}
    settings = RegistrySettings(listen="127.0.0.1:0", data=tmp_path / "data", **own)
    with pytest.raises(StartupError, match=r"tls_crl: .*nothing\.pem"):
        await serve(settings, asyncio.Event())


async def to_its_end(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


def secured(folder: Path, name: str) -> dict[str, Any]:
    return {
        "tls_certificate": folder / f"{name}.pem",
        "tls_key": folder / f"{name}.key",
        "tls_ca": folder / "ca.pem",
        "tls_crl": folder / "crl.pem",
    }


def tls(folder: Path, name: str) -> Tls:
    return Tls(folder / f"{name}.pem", folder / f"{name}.key", folder / "ca.pem")


async def test_a_revoked_bearer_gets_nothing_more_not_even_with_a_key_or_on_a_stream_that_is_open(
    certs: Path, tmp_path: Path
) -> None:
    operator = Credentials(tls=tls(certs, "operator-admin"))
    own = {"registry": {**secured(certs, "registry"), "bookmark_s": 0.1}}
    async with running(tmp_path, only=(), mesh_token=None, each=own, credentials=operator) as mesh:
        made = RegistryServiceStub(mesh.channels["registry"])
        key = (await made.CreateTenant(pb.CreateTenantRequest(name="alice"))).api_key
        theirs = Credentials(tls=tls(certs, "tenant-admin-alice"))
        service = Credentials(tls=tls(certs, "scheduler"))
        address = mesh.addresses["registry"]
        async with (
            connect(address, to="registry", credentials=theirs) as alice,
            connect(address, to="registry", credentials=service) as scheduler,
        ):
            asked = pb.GetTenantRequest(name="alice")
            await RegistryServiceStub(alice).GetTenant(asked)
            stream = RegistryServiceStub(scheduler).WatchCatalogue(pb.WatchCatalogueRequest())
            await stream.read()
            revoke(certs, "tenant-admin-alice")
            revoke(certs, "scheduler")
            os.utime(certs / "crl.pem")
            await asyncio.sleep(LOOK_S + 0.1)
            for metadata in ((), bearing(key)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await RegistryServiceStub(alice).GetTenant(asked, metadata=metadata)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert "has been revoked" in (caught.value.details() or "")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(to_its_end(stream), 5)
            refusal = from_rpc_error(caught.value)
            assert refusal is not None
            assert refusal.reason is Reason.KEY_UNKNOWN
        await made.GetTenant(asked)
