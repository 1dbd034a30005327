"""What is another's takes as long to deny as what is not there: a difference of 50 µs would be seen, and there is none.

Not by the clock on the wall but by CPU time, in pairs: see paired.py. Asked of the methods themselves, as they are served;
what gRPC adds is the same for both, and its noise would only hide a difference.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from paired import paired, spin

from services._proto.apportion.v1 import common_pb2
from services._proto.apportion.v1 import registry_pb2 as pb
from services._proto.inference import grpc_service_pb2 as oip
from services.common.access.callers import CALLING, Role, caller_of
from services.common.errors import Refusal
from services.frontend.core.routes import Link, Replica, Route, State, Version
from services.frontend.core.routing import RoutingTable
from services.frontend.servicer import Describer
from services.registry.artefacts import open_store
from services.registry.database import Database
from services.registry.servicer import RegistryServicer
from services.registry.store import Store
from services.registry.uploads import Uploads
from services.registry.watch import Watches

ONE_LOOP = pytest.mark.asyncio(loop_scope="module")
PLANTED_NS = 50_000
BOUND_NS = 25_000
"""Half of what was planted: every judgement is on one side of it or the other."""
ALICE = caller_of(Role.TENANT_ADMIN, "alice", "k_1")
DATA = b"weights"
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
Denied = Callable[[], Awaitable[None]]


class Sides:
    """Ways to ask about bob's (`foreign`) and about nobody's (`absent`), by method. Every one of them is refused."""

    def __init__(self, registry: RegistryServicer, frontend: Describer) -> None:
        self._registry, self._frontend = registry, frontend

    def ask(self, what: str, tenant: str, model: str) -> Denied:
        key = common_pb2.ModelKey(tenant=tenant, name=model)
        calls: dict[str, tuple[Any, Any]] = {
            "GetTenant": (self._registry.GetTenant, pb.GetTenantRequest(name=tenant)),
            "GetModel": (self._registry.GetModel, pb.GetModelRequest(key=key)),
            "UpdateModel": (self._registry.UpdateModel, pb.UpdateModelRequest(key=key, unloaded=True)),
            "DeleteModel": (self._registry.DeleteModel, pb.DeleteModelRequest(key=key)),
            "ListModels": (self._registry.ListModels, pb.ListModelsRequest(tenant=tenant)),
            "CreateVersion": (self._registry.CreateVersion, pb.CreateVersionRequest(key=key, digest=DIGEST)),
            "ModelMetadata": (self._frontend.ModelMetadata, oip.ModelMetadataRequest(name=f"{tenant}/{model}")),
        }
        method, request = calls[what]

        async def denied() -> None:
            try:
                await method(request, None)
            except Refusal:
                return
            raise AssertionError(f"{what} of {tenant}/{model} was answered")

        return denied


METHODS = ("GetTenant", "GetModel", "UpdateModel", "DeleteModel", "ListModels", "CreateVersion", "ModelMetadata")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sides(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sides]:
    folder = tmp_path_factory.mktemp("timing")
    store = Store(Database(f"sqlite:///{folder / 'registry.db'}"), history=100)
    files = open_store(str(folder / "artefacts"))
    await asyncio.to_thread(files.prepare, 0.0)
    await store.prepare()
    uploads = Uploads(store, files, most_bytes=1 << 20, idle_s=5)
    registry = RegistryServicer(store, uploads, Watches(store, bookmark_s=5))
    await filled(registry)
    table = RoutingTable(lambda _: Link.UP)
    replica = Replica(1, "e1", "127.0.0.1:1")
    table.replace([Route("bob", "secret", None, {1: Version(1, State.READY, replicas=(replica,))}, ((1, 1_000_000),))])
    token = CALLING.set(ALICE)
    yield Sides(registry, Describer(table, dict, lambda: True))
    CALLING.reset(token)
    await store.close()


async def filled(registry: RegistryServicer) -> None:
    """bob with twenty models, and some other tenants, whose names do not begin like nobody's."""
    for tenant in ("alice", "bob", "carol"):
        await registry.CreateTenant(pb.CreateTenantRequest(name=tenant), None)
    header = pb.ArtefactHeader(tenant="bob", digest=DIGEST, size_bytes=len(DATA))

    async def parts() -> AsyncIterator[pb.UploadArtefactRequest]:
        yield pb.UploadArtefactRequest(header=header)
        yield pb.UploadArtefactRequest(data=DATA)

    await registry.UploadArtefact(parts(), None)
    for name in ("secret", *(f"other{n}" for n in range(20))):
        key = common_pb2.ModelKey(tenant="bob", name=name)
        await registry.CreateVersion(pb.CreateVersionRequest(key=key, digest=DIGEST), None)


@ONE_LOOP
@pytest.mark.parametrize("what", METHODS)
async def test_what_is_anothers_takes_as_long_as_what_is_not_there(sides: Sides, what: str) -> None:
    CALLING.set(ALICE)
    foreign, absent = sides.ask(what, "bob", "secret"), sides.ask(what, "zed", "nowhat")
    found = await paired(absent, foreign, bound_ns=BOUND_NS)
    assert found.within(BOUND_NS), found


@ONE_LOOP
@pytest.mark.parametrize("what", ["GetTenant", "GetModel", "ModelMetadata"])
async def test_a_planted_difference_of_50_microseconds_is_seen(sides: Sides, what: str) -> None:
    CALLING.set(ALICE)
    foreign, absent = sides.ask(what, "bob", "secret"), sides.ask(what, "zed", "nowhat")

    async def slower() -> None:
        await foreign()
        spin(PLANTED_NS)

    found = await paired(absent, slower, bound_ns=BOUND_NS)
    assert found.low_ns > BOUND_NS, found
    assert not found.within(BOUND_NS)


@ONE_LOOP
async def test_a_model_that_is_read_before_it_is_denied_would_be_seen(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake that this guards against, made on purpose: look first, then ask whose it is."""
    from services.registry import catalogue, rows

    async def looks_first(self: Any, tenant: str, name: str, reader: str | None = None) -> Any:
        found = await self._store.read(lambda connection: rows.model(connection, tenant, name))
        if found is None or reader not in (None, tenant):
            raise catalogue.versions.model_missing(tenant, name)
        return found

    monkeypatch.setattr(catalogue.Models, "get", looks_first)
    CALLING.set(ALICE)
    foreign, absent = sides.ask("GetModel", "bob", "secret"), sides.ask("GetModel", "zed", "nowhat")
    found = await paired(absent, foreign, bound_ns=BOUND_NS)
    assert found.low_ns > BOUND_NS, found
