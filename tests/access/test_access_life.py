"""Keys, grants and the audit log over time: made, rotated, revoked, run out; shared and taken back; told of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import issuer
import pytest
from access_world import ASKED, TOKEN, Mesh, bearing, outcome, running

from services._proto.apportion.v1 import common_pb2
from services._proto.apportion.v1 import registry_pb2 as pb
from services._proto.apportion.v1.registry_pb2_grpc import RegistryServiceStub
from services._proto.inference import grpc_service_pb2 as oip
from services._proto.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.common.errors import Reason, Refusal

EFFECT_S = 1.0
"""What is promised while the registry is reachable."""


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with running(tmp_path, only=("tracestore", "scheduler", "frontend")) as mesh:
        await mesh.tenant("alice")
        await mesh.tenant("bob")
        yield mesh


def registry(mesh: Mesh) -> Any:
    return mesh.stub("registry", RegistryServiceStub)


def frontend(mesh: Mesh) -> Any:
    return mesh.stub("frontend", GRPCInferenceServiceStub)


async def status(mesh: Mesh, service: str, key: str) -> str:
    """What the service says to a call with this key: OK unless it is not taken."""
    try:
        await mesh.channels[service].unary_unary(ASKED[service])(b"", metadata=bearing(key))
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def refused_everywhere(mesh: Mesh, key: str) -> float:
    """Waits until every service refuses the key; the seconds that took."""
    began = time.monotonic()
    async with asyncio.timeout(15):
        for service in ASKED:
            while await status(mesh, service, key) != "UNAUTHENTICATED":  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    return time.monotonic() - began


async def test_a_revoked_key_is_refused_by_every_service_within_a_second(mesh: Mesh) -> None:
    await mesh.known("alice")
    made = await registry(mesh).CreateApiKey(
        pb.CreateApiKeyRequest(tenant="alice"), metadata=bearing(mesh.keys["alice"])
    )
    mesh.keys["more"] = made.api_key
    await mesh.known("more")
    request = pb.RevokeApiKeyRequest(tenant="alice", key_id=made.key.id)
    await registry(mesh).RevokeApiKey(request, metadata=bearing(mesh.keys["alice"]))
    itself = await outcome(registry(mesh).GetTenant(pb.GetTenantRequest(name="alice"), metadata=bearing(made.api_key)))
    assert itself[0] == "UNAUTHENTICATED", "the registry goes by it once it has answered"
    assert await refused_everywhere(mesh, made.api_key) < EFFECT_S
    assert await status(mesh, "frontend", mesh.keys["alice"]) != "UNAUTHENTICATED"


async def test_a_key_made_with_a_lifetime_ends_by_itself(mesh: Mesh) -> None:
    made = await registry(mesh).CreateApiKey(
        pb.CreateApiKeyRequest(tenant="alice", lifetime_s=2), metadata=bearing(TOKEN)
    )
    mesh.keys["brief"] = made.api_key
    await mesh.known("brief")
    ends = made.key.expires_at.ToNanoseconds() / 1e9
    await refused_everywhere(mesh, made.api_key)
    assert -0.01 < time.time() - ends < EFFECT_S


async def test_a_rotated_key_is_good_beside_the_new_one_for_as_long_as_was_asked(mesh: Mesh) -> None:
    tenant = (await registry(mesh).GetTenant(pb.GetTenantRequest(name="alice"), metadata=bearing(TOKEN))).tenant
    old = tenant.keys[0]
    request = pb.RotateApiKeyRequest(tenant="alice", key_id=old.id, overlap_s=2)
    made = await registry(mesh).RotateApiKey(request, metadata=bearing(mesh.keys["alice"]))
    assert made.key.role == pb.KEY_ROLE_TENANT_ADMIN
    mesh.keys["new"] = made.api_key
    await mesh.known("new")
    assert await status(mesh, "scheduler", mesh.keys["alice"]) != "UNAUTHENTICATED"
    await refused_everywhere(mesh, mesh.keys["alice"])
    assert await status(mesh, "scheduler", made.api_key) != "UNAUTHENTICATED"
    again = await outcome(registry(mesh).RotateApiKey(request, metadata=bearing(made.api_key)))
    assert again[1].reason is Reason.KEY_NOT_FOUND


async def test_an_open_stream_is_refused_from_the_moment_its_key_is_revoked(mesh: Mesh) -> None:
    await mesh.known("alice/user")
    stream = frontend(mesh).ModelStreamInfer(metadata=bearing(mesh.keys["alice/user"]))
    await stream.write(oip.ModelInferRequest(model_name="none"))
    assert "MODEL_NOT_FOUND" in (await stream.read()).error_message
    tenant = (await registry(mesh).GetTenant(pb.GetTenantRequest(name="alice"), metadata=bearing(TOKEN))).tenant
    (user,) = [key.id for key in tenant.keys if key.role == pb.KEY_ROLE_TENANT]
    await registry(mesh).RevokeApiKey(pb.RevokeApiKeyRequest(tenant="alice", key_id=user), metadata=bearing(TOKEN))
    await refused_everywhere(mesh, mesh.keys["alice/user"])
    await stream.write(oip.ModelInferRequest(model_name="none"))
    assert "KEY_UNKNOWN" in (await stream.read()).error_message
    stream.cancel()


async def test_a_user_may_read_and_run_but_change_nothing_and_an_administrator_may(mesh: Mesh) -> None:
    asked = pb.CreateApiKeyRequest(tenant="alice")
    denied = await outcome(registry(mesh).CreateApiKey(asked, metadata=bearing(mesh.keys["alice/user"])))
    assert denied[0] == "PERMISSION_DENIED"
    assert isinstance(denied[1], Refusal)
    assert denied[1].facts == {"permission": "PERMISSION_TENANT_WRITE", "role": "tenant"}
    assert (await outcome(registry(mesh).CreateApiKey(asked, metadata=bearing(mesh.keys["alice"]))))[0] == "OK"
    read = registry(mesh).GetTenant(pb.GetTenantRequest(name="alice"), metadata=bearing(mesh.keys["alice/user"]))
    assert (await outcome(read))[0] == "OK"


async def test_a_shared_model_is_there_for_whom_it_is_shared_with_until_it_is_taken_back(mesh: Mesh) -> None:
    await mesh.model("bob", "m")
    for name in ("alice", "bob"):
        await mesh.known(name)
    key = common_pb2.ModelKey(tenant="bob", name="m")
    alice, bob = bearing(mesh.keys["alice"]), bearing(mesh.keys["bob"])

    async def seen() -> tuple[str, str]:
        got = await outcome(registry(mesh).GetModel(pb.GetModelRequest(key=key), metadata=alice))
        infer = await outcome(frontend(mesh).ModelInfer(oip.ModelInferRequest(model_name="bob/m"), metadata=alice))
        return got[0], str(getattr(infer[1], "reason", infer[0]))

    async def until(reason: str) -> None:
        async with asyncio.timeout(10):
            while (await seen())[1] != reason:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    assert await seen() == ("NOT_FOUND", "MODEL_NOT_FOUND")
    by_alice = await outcome(
        registry(mesh).ShareModel(pb.ShareModelRequest(key=key, with_tenant="alice"), metadata=alice)
    )
    assert by_alice[0] == "NOT_FOUND", "nobody helps himself"
    shared = await registry(mesh).ShareModel(pb.ShareModelRequest(key=key, with_tenant="alice"), metadata=bob)
    assert list(shared.model.shared_with) == ["alice"]
    # No executor runs here: the model is known, and placed nowhere.
    await until("MODEL_UNPLACED")
    got = await registry(mesh).GetModel(pb.GetModelRequest(key=key), metadata=alice)
    assert not got.model.shared_with, "with whom else it is shared is the owner's to know"
    changed = await outcome(registry(mesh).UpdateModel(pb.UpdateModelRequest(key=key, unloaded=True), metadata=alice))
    assert changed[0] == "NOT_FOUND", "shared to be read and run, not to be changed"
    await registry(mesh).ShareModel(pb.ShareModelRequest(key=key, with_tenant="alice", revoked=True), metadata=bob)
    await until("MODEL_NOT_FOUND")
    assert (await seen())[0] == "NOT_FOUND"


async def test_every_change_is_told_with_who_what_and_when(mesh: Mesh) -> None:
    began = time.time()
    await mesh.model("alice", "m")
    key = common_pb2.ModelKey(tenant="alice", name="m")
    admin = bearing(mesh.keys["alice"])
    await registry(mesh).ShareModel(pb.ShareModelRequest(key=key, with_tenant="bob"), metadata=admin)
    await registry(mesh).UpdateTenant(pb.UpdateTenantRequest(name="alice", weight=5), metadata=bearing(TOKEN))
    await registry(mesh).UpdateTenant(pb.UpdateTenantRequest(name="alice", weight=5), metadata=bearing(TOKEN))
    await registry(mesh).DeleteModel(pb.DeleteModelRequest(key=key), metadata=admin)
    page = await registry(mesh).ListAudit(pb.ListAuditRequest(tenant="alice", page_size=3), metadata=admin)
    rest = await registry(mesh).ListAudit(
        pb.ListAuditRequest(tenant="alice", page_token=page.next_page_token), metadata=admin
    )
    entries = [*page.entries, *rest.entries]
    told = [(entry.action, entry.actor.split()[0], entry.actor_tenant, entry.object) for entry in entries]
    assert told[:3] == [
        ("DeleteModel", "tenant-admin", "alice", "m"),
        ("UpdateTenant", "mesh", "", ""),
        ("ShareModel", "tenant-admin", "alice", "m with bob"),
    ], "what changed nothing is not told"
    assert [action for action, *_ in told[3:]] == ["CreateVersion", "UploadArtefact", "CreateApiKey", "CreateTenant"]
    tenant = (await registry(mesh).GetTenant(pb.GetTenantRequest(name="alice"), metadata=admin)).tenant
    assert entries[0].actor == f"tenant-admin {tenant.keys[0].id}", "a key is named by its id, which is not secret"
    assert began - 1 < entries[0].at.ToNanoseconds() / 1e9 < time.time() + 1
    assert entries[0].revision > entries[1].revision > 0


async def test_an_unload_asked_of_a_frontend_is_told_with_who_asked_for_it(mesh: Mesh) -> None:
    await mesh.model("alice", "m")
    await mesh.known("alice")
    alice = bearing(mesh.keys["alice"])
    request = oip.RepositoryModelUnloadRequest(model_name="m")
    await outcome(frontend(mesh).RepositoryModelUnload(request, metadata=alice, timeout=5))
    listed = await registry(mesh).ListAudit(pb.ListAuditRequest(tenant="alice", page_size=1), metadata=alice)
    assert listed.entries[0].action == "UpdateModel"
    assert " for tenant-admin k_" in listed.entries[0].actor
    forged = (*alice, ("apportion-for", "operator nobody"))
    key = common_pb2.ModelKey(tenant="alice", name="m")
    await registry(mesh).UpdateModel(pb.UpdateModelRequest(key=key, unloaded=False), metadata=forged)
    listed = await registry(mesh).ListAudit(pb.ListAuditRequest(tenant="alice", page_size=1), metadata=alice)
    assert "nobody" not in listed.entries[0].actor


async def test_a_token_does_what_its_claims_say_and_nothing_else(tmp_path: Path) -> None:
    signs = issuer.Issuer()
    given = issuer.settings(issuer.written(tmp_path / "jwks", signs))
    async with running(tmp_path, only=("tracestore", "scheduler", "frontend"), **given) as mesh:
        await mesh.tenant("alice")
        await mesh.known("alice")
        user, admin = signs.token(tenant="alice"), signs.token(tenant="alice", role="tenant-admin")
        operator = signs.token(role="operator", sub="olga")
        for service in ASKED:
            assert await status(mesh, service, user) != "UNAUTHENTICATED"
        made = pb.CreateApiKeyRequest(tenant="alice")
        assert (await outcome(registry(mesh).CreateApiKey(made, metadata=bearing(user))))[0] == "PERMISSION_DENIED"
        assert (await outcome(registry(mesh).CreateApiKey(made, metadata=bearing(admin))))[0] == "OK"
        tenant = pb.CreateTenantRequest(name="carol")
        assert (await outcome(registry(mesh).CreateTenant(tenant, metadata=bearing(admin))))[0] == "PERMISSION_DENIED"
        assert (await outcome(registry(mesh).CreateTenant(tenant, metadata=bearing(operator))))[0] == "OK"
        told = await registry(mesh).ListAudit(pb.ListAuditRequest(tenant="carol"), metadata=bearing(operator))
        assert told.entries[0].actor == "operator olga"
        gone = signs.token(tenant="nobody")
        assert await status(mesh, "frontend", gone) == "UNAUTHENTICATED", "a token makes no tenant"
