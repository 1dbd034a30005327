"""Tenants and keys, over gRPC, on both databases."""

from __future__ import annotations

import asyncio
import hashlib

import grpc
from registry_world import World, key, refusal

from services._proto.apportion.v1 import common_pb2
from services._proto.apportion.v1 import registry_pb2 as pb
from services.common.errors import Reason

CODE = grpc.StatusCode


async def test_a_tenant_is_made_with_a_key_whose_text_is_shown_once(world: World) -> None:
    made = await world.tenant()
    assert made.api_key.startswith("ap_")
    assert made.tenant.reservation.millidevices == 250
    assert made.tenant.weight == 2
    assert made.tenant.created_at.seconds > 0
    got = (await world.call.GetTenant(pb.GetTenantRequest(name="acme"))).tenant
    assert got == made.tenant
    assert [kept.id for kept in got.keys] == [made.tenant.keys[0].id]


async def test_only_the_mesh_sees_hashes_of_keys(world: World) -> None:
    made = await world.tenant()
    assert made.tenant.keys[0].sha256 == b""
    watched = (await world.snapshot()).tenants["acme"]
    assert watched.keys[0].sha256 == hashlib.sha256(made.api_key.encode()).digest()
    more = await world.call.CreateApiKey(pb.CreateApiKeyRequest(tenant="acme"))
    assert more.key.sha256 == b""


async def test_the_text_of_a_key_is_nowhere_in_the_database(world: World) -> None:
    made = await world.tenant()
    for path in world.settings.data.rglob("*"):
        if path.is_file():
            assert made.api_key.encode() not in path.read_bytes()


async def test_a_name_that_is_taken_is_refused(world: World) -> None:
    await world.tenant()
    await refusal(world.tenant(), Reason.TENANT_EXISTS, CODE.ALREADY_EXISTS)


async def test_a_tenant_outside_the_limits_is_refused_by_field(world: World) -> None:
    for request, field in (
        (pb.CreateTenantRequest(name="Acme"), "name"),
        (pb.CreateTenantRequest(name=""), "name"),
        (pb.CreateTenantRequest(name="a", weight=10_001), "weight"),
        (
            pb.CreateTenantRequest(name="a", reservation=common_pb2.Share(millidevices=64_001)),
            "reservation.millidevices",
        ),
    ):
        found = await refusal(world.call.CreateTenant(request), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)
        assert found.field == field


async def test_a_tenant_that_is_not_there_is_not_found_by_any_method(world: World) -> None:
    for call in (
        world.call.GetTenant(pb.GetTenantRequest(name="no")),
        world.call.UpdateTenant(pb.UpdateTenantRequest(name="no")),
        world.call.DeleteTenant(pb.DeleteTenantRequest(name="no")),
        world.call.CreateApiKey(pb.CreateApiKeyRequest(tenant="no")),
        world.call.RevokeApiKey(pb.RevokeApiKeyRequest(tenant="no", key_id="k_x")),
        world.call.ListModels(pb.ListModelsRequest(tenant="no")),
        world.upload(b"x", "no"),
        world.version(tenant="no"),
    ):
        await refusal(call, Reason.TENANT_NOT_FOUND, CODE.NOT_FOUND)


async def test_an_update_changes_what_it_names_and_nothing_else(world: World) -> None:
    before = (await world.tenant()).tenant
    changed = await world.call.UpdateTenant(pb.UpdateTenantRequest(name="acme", weight=7))
    assert (changed.tenant.weight, changed.tenant.reservation.millidevices) == (7, 250)
    assert changed.tenant.revision == before.revision + 1
    share = common_pb2.Share(millidevices=0)
    changed = await world.call.UpdateTenant(pb.UpdateTenantRequest(name="acme", reservation=share))
    assert (changed.tenant.weight, changed.tenant.reservation.millidevices) == (7, 0)


async def test_an_update_that_changes_nothing_makes_no_revision(world: World) -> None:
    made = (await world.tenant()).tenant
    same = (await world.call.UpdateTenant(pb.UpdateTenantRequest(name="acme", weight=2))).tenant
    assert same == made
    assert (await world.snapshot()).revision == made.revision


async def test_a_key_ends_when_it_is_revoked_however_often(world: World) -> None:
    first = (await world.tenant()).tenant.keys[0]
    second = (await world.call.CreateApiKey(pb.CreateApiKeyRequest(tenant="acme"))).key
    for _ in range(2):
        await world.call.RevokeApiKey(pb.RevokeApiKeyRequest(tenant="acme", key_id=first.id))
    tenant = (await world.snapshot()).tenants["acme"]
    assert [kept.id for kept in tenant.keys] == [second.id]
    assert tenant.revision == 3


async def test_a_tenant_cannot_revoke_the_key_of_another(world: World) -> None:
    await world.tenant("eve")
    victim = (await world.tenant()).tenant.keys[0]
    await world.call.RevokeApiKey(pb.RevokeApiKeyRequest(tenant="eve", key_id=victim.id))
    assert (await world.snapshot()).tenants["acme"].keys[0].id == victim.id


async def test_a_tenant_with_models_cannot_be_removed(world: World) -> None:
    await world.tenant()
    await world.push()
    await refusal(
        world.call.DeleteTenant(pb.DeleteTenantRequest(name="acme")), Reason.TENANT_NOT_EMPTY, CODE.FAILED_PRECONDITION
    )
    await world.call.DeleteModel(pb.DeleteModelRequest(key=key()))
    await world.call.DeleteTenant(pb.DeleteTenantRequest(name="acme"))
    assert (await world.snapshot()).tenants == {}


async def test_a_tenant_made_again_inherits_neither_keys_nor_artefacts(world: World) -> None:
    old = (await world.tenant()).tenant.keys[0].id
    await world.upload(b"weights")
    await world.call.DeleteTenant(pb.DeleteTenantRequest(name="acme"))
    again = (await world.tenant()).tenant
    assert old not in {kept.id for kept in again.keys}
    await refusal(world.version(), Reason.ARTEFACT_NOT_FOUND, CODE.NOT_FOUND)


async def test_pages_tell_every_tenant_once_by_name(world: World) -> None:
    wanted = sorted(["a", "a-b", "a.b", "a0", "a_b", "b", "zz", "0"])
    await asyncio.gather(*(world.tenant(name) for name in wanted))
    told, token, calls = [], "", 0
    while calls == 0 or token:
        answer = await world.call.ListTenants(pb.ListTenantsRequest(page_size=3, page_token=token))
        assert len(answer.tenants) <= 3
        told += [tenant.name for tenant in answer.tenants]
        token, calls = answer.next_page_token, calls + 1
    assert (told, calls) == (wanted, 3)
    exact = await world.call.ListTenants(pb.ListTenantsRequest(page_size=len(wanted)))
    assert exact.next_page_token == ""
    bad = world.call.ListTenants(pb.ListTenantsRequest(page_token="nonsense"))
    await refusal(bad, Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)
