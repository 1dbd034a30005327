"""Who signs a tenant's artefacts: set by an operator, asked at every push, kept with the version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from registry_world import World, key, refusal, served

from services._proto.apportion.v1 import registry_pb2 as pb
from services.common.errors import Reason
from services.common.signing import MOST_BUNDLE_BYTES, MOST_SIGNERS, Signer
from services.registry.settings import RegistrySettings
from tests.access.signing_samples import DATA, OTHER, Authority, Keys, digest_of, keys, wrong

CODE = grpc.StatusCode


@pytest.fixture
async def world(world: World) -> World:
    await world.tenant()
    return world


@pytest.fixture
def good(tmp_path: Path) -> Keys:
    return keys(tmp_path, "good")


async def signed_by(world: World, *signers: Signer) -> pb.Tenant:
    told = pb.Signers(signers=[pb.Signer(pem=each.pem) for each in signers])
    answer = await world.call.UpdateTenant(pb.UpdateTenantRequest(name="acme", signers=told))
    return answer.tenant


async def versions(world: World) -> Any:
    return (await world.call.GetModel(pb.GetModelRequest(key=key()))).model.versions


async def test_a_tenant_that_nobody_signs_for_pushes_as_before_and_a_signature_is_kept(
    world: World, good: Keys
) -> None:
    bundle = good.sign(OTHER)
    await world.push(data=DATA)
    await world.push(data=OTHER, artefact_signature=bundle)
    assert [each.artefact_signature for each in await versions(world)] == [b"", bundle]


async def test_what_is_signed_is_taken_and_what_is_not_is_refused_with_what_is_missing(
    world: World, good: Keys
) -> None:
    tenant = await signed_by(world, good.signer)
    assert [(each.id, each.pem) for each in tenant.signers] == [(good.signer.id, good.signer.pem)]
    await world.upload(DATA)
    refused = await refusal(world.version(data=DATA), Reason.SIGNATURE_MISSING, CODE.FAILED_PRECONDITION)
    assert refused.facts == {"digest": digest_of(DATA), "signers": good.signer.id}
    assert f"{digest_of(DATA)} has no signature; it must be signed by {good.signer.id}" in refused.message
    other = world.version(data=DATA, artefact_signature=good.sign(OTHER))
    await refusal(other, Reason.SIGNATURE_REFUSED, CODE.FAILED_PRECONDITION)
    bundle = good.sign()
    made = await world.version(data=DATA, artefact_signature=bundle)
    assert made.model.versions[0].artefact_signature == bundle


async def test_no_wrong_signature_makes_a_version(world: World, good: Keys, tmp_path: Path) -> None:
    authority = Authority()
    await signed_by(world, good.signer, authority.signer)
    await world.upload(DATA)
    for what, bundle in wrong(tmp_path, good, authority):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.version(data=DATA, artefact_signature=bundle)
        large = len(bundle) > MOST_BUNDLE_BYTES
        assert caught.value.code() is (CODE.INVALID_ARGUMENT if large else CODE.FAILED_PRECONDITION), what
    models = await world.call.ListModels(pb.ListModelsRequest(tenant="acme"))
    assert not models.models


async def test_a_version_that_was_there_takes_a_signature_and_stays_the_same_version(world: World, good: Keys) -> None:
    await world.push(data=DATA)
    await signed_by(world, good.signer)
    again = {"data": DATA, "version": 1}
    await refusal(world.version(**again), Reason.SIGNATURE_MISSING, CODE.FAILED_PRECONDITION)
    bundle = good.sign()
    made = await world.version(**again, artefact_signature=bundle)
    assert (made.existed, made.version, len(made.model.versions)) == (True, 1, 1)
    catalogue = await world.snapshot()
    assert catalogue.models["acme", "m"].versions[0].artefact_signature == bundle
    assert [each.id for each in catalogue.tenants["acme"].signers] == [good.signer.id]
    await signed_by(world)
    await world.version(**again)
    assert (await versions(world))[0].artefact_signature == bundle, "a push without one takes none away"


async def test_signers_are_kept_when_other_things_change_and_are_replaced_as_a_whole(
    world: World, good: Keys, tmp_path: Path
) -> None:
    other = keys(tmp_path, "other").signer
    await signed_by(world, good.signer, other, good.signer)
    changed = await world.call.UpdateTenant(pb.UpdateTenantRequest(name="acme", weight=7))
    assert [each.id for each in changed.tenant.signers] == sorted([good.signer.id, other.id])
    assert [each.id for each in (await signed_by(world, other)).signers] == [other.id]
    entries = (await world.call.ListAudit(pb.ListAuditRequest(tenant="acme"))).entries
    assert entries[0].action == "UpdateTenant"
    assert entries[0].object == f"signers {other.id}"
    assert not (await signed_by(world)).signers


async def test_signers_that_are_none_are_refused_with_which_and_why(world: World, good: Keys) -> None:
    private = Signer("", good.private.read_text())
    refused = await refusal(signed_by(world, good.signer, private), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)
    assert refused.field == "signers[1].pem"
    assert "PRIVATE" not in refused.message
    many = [good.signer] * (MOST_SIGNERS + 1)
    refused = await refusal(signed_by(world, *many), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)
    assert refused.field == "signers"
    assert not (await world.call.GetTenant(pb.GetTenantRequest(name="acme"))).tenant.signers


async def test_signers_and_signatures_outlast_the_registry_and_go_with_their_tenant(
    settings: RegistrySettings, good: Keys
) -> None:
    async with served(settings) as world:
        await world.tenant()
        await signed_by(world, good.signer)
        await world.push(data=DATA, artefact_signature=good.sign())
    async with served(settings) as world:
        assert (await versions(world))[0].artefact_signature
        await refusal(world.push(data=OTHER), Reason.SIGNATURE_MISSING, CODE.FAILED_PRECONDITION)
        await world.call.DeleteModel(pb.DeleteModelRequest(key=key()))
        await world.call.DeleteTenant(pb.DeleteTenantRequest(name="acme"))
        await world.tenant()
        await world.push(data=OTHER)
