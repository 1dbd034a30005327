"""RegistryService: decode, ask, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace
from typing import Any, TypeVar

from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from services._proto.apportion.v1 import common_pb2, registry_pb2_grpc
from services._proto.apportion.v1 import registry_pb2 as pb
from services.common.access.callers import CALLING, calling
from services.common.errors import invalid
from services.registry import auditing, rows
from services.registry.catalogue import Models, Tenants
from services.registry.core import names, pages, rules, versions
from services.registry.core.records import KeyRole
from services.registry.store import Store, found
from services.registry.uploads import Uploads
from services.registry.usage import Usage
from services.registry.usage_methods import UsageMethods
from services.registry.watch import Watches
from services.registry.wire import (
    header_of,
    key_message,
    key_of,
    model_message,
    named_slo_of,
    outcome_of,
    push_of,
    quota_of,
    signers_of,
    splits_of,
    tenant_message,
    wish_of,
)

ON_BEHALF = "apportion-for"
Record = TypeVar("Record")
Item = TypeVar("Item", bound=Message)


class TenantMethods:
    """Tenants and keys."""

    store: Store
    tenants: Tenants

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: Any) -> pb.CreateTenantResponse:  # noqa: ARG002
        """See registry.proto."""
        name = names.name("name", request.name)
        reservation = rules.reservation(request.reservation.millidevices)
        quota = quota_of(request.quota)
        tenant, text = await self.tenants.create(name, reservation, rules.weight(request.weight), quota)
        return pb.CreateTenantResponse(tenant=tenant_message(tenant), api_key=text)

    async def GetTenant(self, request: pb.GetTenantRequest, context: Any) -> pb.GetTenantResponse:  # noqa: ARG002
        """See registry.proto."""
        tenant = await self.tenants.get(own("name", request.name))
        stored_bytes = await self.tenants.stored_bytes(tenant.name)
        return pb.GetTenantResponse(tenant=tenant_message(tenant), stored_bytes=stored_bytes)

    async def ListTenants(self, request: pb.ListTenantsRequest, context: Any) -> pb.ListTenantsResponse:  # noqa: ARG002
        """See registry.proto."""
        after = pages.after("tenants", request.page_token, 1)

        async def operation(connection: AsyncConnection) -> tuple[list[pb.Tenant], bool]:
            records = rows.tenants_after(connection, after[0] if after else None)
            return await page(records, tenant_message, pages.page_size(request.page_size))

        tenants, more = await self.store.read(operation)
        token = pages.token("tenants", [tenants[-1].name]) if more else ""
        return pb.ListTenantsResponse(tenants=tenants, next_page_token=token)

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, context: Any) -> pb.UpdateTenantResponse:  # noqa: ARG002
        """See registry.proto."""
        share = rules.reservation(request.reservation.millidevices) if request.HasField("reservation") else None
        weight = rules.weight(request.weight) if request.HasField("weight") else None
        quota = quota_of(request.quota) if request.HasField("quota") else None
        signers = signers_of(request.signers.signers) if request.HasField("signers") else None
        tenant = await self.tenants.update(names.name("name", request.name), share, weight, quota, signers)
        return pb.UpdateTenantResponse(tenant=tenant_message(tenant))

    async def DeleteTenant(self, request: pb.DeleteTenantRequest, context: Any) -> pb.DeleteTenantResponse:  # noqa: ARG002
        """See registry.proto."""
        await self.tenants.delete(names.name("name", request.name))
        return pb.DeleteTenantResponse()

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Any) -> pb.CreateApiKeyResponse:  # noqa: ARG002
        """See registry.proto."""
        role = rules.choice("role", KeyRole, request.role) or KeyRole.TENANT
        lifetime_s = rules.within("lifetime_s", request.lifetime_s, 0, rules.MOST_LIFETIME_S)
        key, text = await self.tenants.add_key(own("tenant", request.tenant), role, lifetime_s)
        return pb.CreateApiKeyResponse(key=key_message(key), api_key=text)

    async def RotateApiKey(self, request: pb.RotateApiKeyRequest, context: Any) -> pb.RotateApiKeyResponse:  # noqa: ARG002
        """See registry.proto."""
        overlap_s = rules.within("overlap_s", request.overlap_s, 0, rules.MOST_OVERLAP_S)
        key, text = await self.tenants.rotate_key(own("tenant", request.tenant), request.key_id, overlap_s)
        return pb.RotateApiKeyResponse(key=key_message(key), api_key=text)

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, context: Any) -> pb.RevokeApiKeyResponse:  # noqa: ARG002
        """See registry.proto."""
        await self.tenants.revoke_key(own("tenant", request.tenant), request.key_id)
        return pb.RevokeApiKeyResponse()


class ModelMethods:
    """Models, versions and inspections."""

    store: Store
    models: Models
    python_artefacts: frozenset[str]

    async def CreateVersion(self, request: pb.CreateVersionRequest, context: Any) -> pb.CreateVersionResponse:  # noqa: ARG002
        """See registry.proto."""
        push = push_of(request)
        own("key.tenant", push.tenant)
        if request.config.format == pb.ARTEFACT_FORMAT_PYTHON:
            rules.approved(push.digest, self.python_artefacts)
        model, number, existed = await self.models.push(push)
        return pb.CreateVersionResponse(model=model_message(model), version=number, existed=existed)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: ARG002
        """See registry.proto."""
        tenant, name = key_of(request.key)
        caller = calling()
        # For another tenant's model, read once: whether it is there and not shared, or not there, nobody can tell.
        model = await self.models.get(tenant, name, None if caller.everybodys else caller.tenant)
        return pb.GetModelResponse(model=model_message(model, grants=caller.sees(tenant)))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: ARG002
        """See registry.proto."""
        tenant = own("tenant", request.tenant) if request.tenant else calling().tenant or None
        scope = f"models.{tenant or ''}"
        after = pages.after(scope, request.page_token, 2)

        async def operation(connection: AsyncConnection) -> tuple[list[pb.Model], bool]:
            if tenant is not None:
                found(await rows.tenant(connection, tenant), tenant)
            records = rows.models_after(connection, after, tenant)
            return await page(records, model_message, pages.page_size(request.page_size))

        models, more = await self.store.read(operation)
        token = pages.token(scope, [models[-1].key.tenant, models[-1].key.name]) if more else ""
        return pb.ListModelsResponse(models=models, next_page_token=token)

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Any) -> pb.UpdateModelResponse:
        """See registry.proto."""
        tenant, name = mine(request.key)
        splits = splits_of(request.traffic)
        on_behalf(context)
        model = await self.models.update(tenant, name, wish_of(request), splits, request.expected_revision)
        return pb.UpdateModelResponse(model=model_message(model))

    async def SetModelSlo(self, request: pb.SetModelSloRequest, context: Any) -> pb.SetModelSloResponse:  # noqa: ARG002
        """See registry.proto."""
        model = await self.models.set_slo(*mine(request.key), named_slo_of(request.slo))
        return pb.SetModelSloResponse(model=model_message(model))

    async def RemoveModelSlo(self, request: pb.RemoveModelSloRequest, context: Any) -> pb.RemoveModelSloResponse:  # noqa: ARG002
        """See registry.proto."""
        model = await self.models.remove_slo(*mine(request.key), names.name("name", request.name))
        return pb.RemoveModelSloResponse(model=model_message(model))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Any) -> pb.DeleteModelResponse:  # noqa: ARG002
        """See registry.proto."""
        number = names.version("version", request.version) if request.HasField("version") else None
        await self.models.delete(*mine(request.key), number)
        return pb.DeleteModelResponse()

    async def ShareModel(self, request: pb.ShareModelRequest, context: Any) -> pb.ShareModelResponse:  # noqa: ARG002
        """See registry.proto."""
        grantee = names.name("with_tenant", request.with_tenant)
        model = await self.models.share(*mine(request.key), grantee, revoked=request.revoked)
        return pb.ShareModelResponse(model=model_message(model))

    async def ListAudit(self, request: pb.ListAuditRequest, context: Any) -> pb.ListAuditResponse:  # noqa: ARG002
        """See registry.proto."""
        tenant = own("tenant", request.tenant) if request.tenant else calling().tenant or None
        scope = f"audit.{tenant or ''}"
        last = pages.after(scope, request.page_token, 1)
        if last and not last[0].isdecimal():
            raise invalid("page_token", "is not one that this listing gave")
        before, most = int(last[0]) if last else None, pages.page_size(request.page_size)
        found = await self.store.read(lambda connection: auditing.entries(connection, tenant, before, most + 1))
        token = pages.token(scope, [str(found[most - 1][0])]) if len(found) > most else ""
        return pb.ListAuditResponse(entries=[entry for _, entry in found[:most]], next_page_token=token)

    async def RecordInspection(self, request: pb.RecordInspectionRequest, context: Any) -> pb.RecordInspectionResponse:  # noqa: ARG002
        """See registry.proto."""
        number, outcome = names.version("version", request.version), outcome_of(request)
        await self.models.inspected(*key_of(request.key), number, outcome, request.passed.profile)
        return pb.RecordInspectionResponse()


class RegistryServicer(TenantMethods, ModelMethods, UsageMethods, registry_pb2_grpc.RegistryServiceServicer):
    """All of RegistryService, over one store."""

    def __init__(
        self, store: Store, uploads: Uploads, watches: Watches, python_artefacts: Collection[str] = ()
    ) -> None:
        """python_artefacts: digests of the Python code that an operator has approved."""
        self.python_artefacts = frozenset(python_artefacts)
        self.store, self.tenants, self.models = store, Tenants(store), Models(store, uploads)
        self.usage = Usage(store)
        self._uploads, self._watches = uploads, watches

    async def UploadArtefact(
        self,
        requests: AsyncIterator[pb.UploadArtefactRequest],
        context: Any,  # noqa: ARG002
    ) -> pb.UploadArtefactResponse:
        """See registry.proto."""
        header = header_of(await anext(requests, pb.UploadArtefactRequest()))
        own("header.tenant", header.tenant)
        existed = await self._uploads.receive(header.tenant, header.digest, header.size_bytes, _data(requests))
        return pb.UploadArtefactResponse(digest=header.digest, existed=existed)

    async def DownloadArtefact(
        self,
        request: pb.DownloadArtefactRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[pb.DownloadArtefactResponse]:
        """See registry.proto."""
        async for data in self._uploads.send(request.tenant, request.digest):
            yield pb.DownloadArtefactResponse(data=data)

    async def WatchCatalogue(
        self,
        request: pb.WatchCatalogueRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[pb.WatchCatalogueResponse]:
        """See registry.proto."""
        async for message in self._watches.follow(request.after_revision):
            yield message


def own(field: str, tenant: str) -> str:
    """The tenant's name, where it is there for the caller. Raises Refusal: TENANT_NOT_FOUND.

    For a tenant every other one takes this way out, whether it exists or not.
    """
    names.name(field, tenant)
    return tenant if calling().sees(tenant) else found(None, tenant, field).name


def mine(key: common_pb2.ModelKey) -> tuple[str, str]:
    """(tenant, name) of a model that may be the caller's. Raises Refusal: MODEL_NOT_FOUND for every other tenant's."""
    tenant, name = key_of(key)
    if not calling().sees(tenant):
        raise versions.model_missing(tenant, name)
    return tenant, name


def on_behalf(context: Any) -> None:
    """Notes for the audit log for whom a service of the mesh acts."""
    caller = calling()
    named = dict(context.invocation_metadata()).get(ON_BEHALF)
    if named and caller.rights >> common_pb2.PERMISSION_MESH & 1:
        CALLING.set(replace(caller, name=f"{caller.name} for {str(named)[:200]}"))


async def page(records: AsyncIterator[Record], encode: Callable[[Record], Item], most: int) -> tuple[list[Item], bool]:
    """The next items, at most `most` and about 2 MiB of them, and whether there are more."""
    items: list[Item] = []
    size = 0
    async for record in records:
        item = encode(record)
        size += item.ByteSize()
        if len(items) == most or (items and size > pages.MOST_PAGE_BYTES):
            return items, True
        items.append(item)
    return items, False


async def _data(requests: AsyncIterator[pb.UploadArtefactRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "data":
            raise invalid("data", "only the first message is a header")
        yield request.data
