"""Every method that reflection shows, on every service, called in every role: denied unless its contract gives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import issuer
import pytest
import pytest_asyncio
from access_world import TOKEN, Mesh, bearing, running
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services._proto.apportion.v1 import common_pb2
from services.common.access import permissions
from services.common.access.callers import RIGHTS, Role

ONE_LOOP = pytest.mark.asyncio(loop_scope="module")
P = common_pb2
SERVICES = ("registry", "collector", "query", "scheduler", "executor", "frontend")
CALL_S = 1.5
UNSPOKEN = {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.health.v1.Health/List"}
"""Named so that they are decided where a version of gRPC serves them."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Mesh, issuer.Issuer]]:
    folder = tmp_path_factory.mktemp("mesh")
    signs = issuer.Issuer()
    async with running(folder, **issuer.settings(issuer.written(folder / "jwks", signs))) as mesh:
        await mesh.tenant("alice")
        await mesh.known("alice/user")
        yield mesh, signs


async def shown(mesh: Mesh, service: str) -> list[tuple[str, int | None]]:
    """Every method that a service's reflection shows, with the permission that its contract names: None, none."""
    stub = reflection_pb2_grpc.ServerReflectionStub(mesh.channels[service])
    ask = reflection_pb2.ServerReflectionRequest
    # Nobody but tenants and their keys may look into a frontend, and the trace store's collector takes no tenants.
    credential = mesh.keys["alice"] if service == "frontend" else TOKEN

    async def one(request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        async for answer in stub.ServerReflectionInfo(iter([request]), metadata=bearing(credential), timeout=10):
            return answer
        raise AssertionError("no answer")

    found: list[tuple[str, int | None]] = []
    for listed in (await one(ask(list_services=""))).list_services_response.service:
        answer = await one(ask(file_containing_symbol=listed.name))
        for content in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(content)
            for each in file.service:
                if f"{file.package}.{each.name}" == listed.name:
                    found += [(f"/{listed.name}/{method.name}", named(method)) for method in each.method]
    return sorted(set(found))


def named(method: descriptor_pb2.MethodDescriptorProto) -> int | None:
    return method.options.Extensions[P.permission] or None


@ONE_LOOP
@pytest.mark.parametrize("service", SERVICES)
async def test_every_method_that_reflection_shows_has_a_permission_and_the_contracts_is_the_one(
    mesh: tuple[Mesh, issuer.Issuer], service: str
) -> None:
    methods = await shown(mesh[0], service)
    assert len(methods) > 3, methods
    for method, permission in methods:
        assert method in permissions.named(), f"{method} is denied to everybody: name its permission"
        if permission is not None:
            assert permissions.named()[method] == permission
        else:
            assert not method.startswith("/apportion."), f"{method} names no permission"


@ONE_LOOP
async def test_reflection_shows_every_method_that_anything_speaks_so_none_goes_untried(
    mesh: tuple[Mesh, issuer.Issuer],
) -> None:
    found = {method for service in SERVICES for method, _ in await shown(mesh[0], service)}
    assert found == set(permissions.named()) - UNSPOKEN


async def outcome(mesh: Mesh, service: str, method: str, metadata: tuple[tuple[str, str], ...]) -> str:
    """The status of a call with an empty message; OK where an answer comes or none within the time."""
    call = mesh.channels[service].stream_stream(method)(iter([b""]), metadata=metadata, timeout=CALL_S)
    try:
        await call.read()
        code = await asyncio.wait_for(call.code(), 0.05)
    except grpc.aio.AioRpcError as error:
        code = error.code()
    except TimeoutError:
        code = grpc.StatusCode.OK
    finally:
        call.cancel()
    return code.name


@ONE_LOOP
@pytest.mark.parametrize("service", SERVICES)
async def test_every_method_is_open_to_the_roles_that_have_its_permission_and_to_no_other(
    mesh: tuple[Mesh, issuer.Issuer], service: str
) -> None:
    world, signs = mesh
    # The collector and executors know no tenants: a key of one is no credential there.
    tenants = service not in ("collector", "executor")
    callers = {
        "nobody": (None, ()),
        "a bad key": (None, bearing("ap_" + "0" * 32)),
        "a bad token": (None, bearing(issuer.Issuer().token(tenant="alice"))),
        "a user": (Role.TENANT if tenants else None, bearing(world.keys["alice/user"])),
        "an administrator": (Role.TENANT_ADMIN if tenants else None, bearing(world.keys["alice"])),
        "an operator": (Role.OPERATOR, bearing(signs.token(role="operator"))),
        "the mesh": (Role.MESH if service != "frontend" else None, bearing(TOKEN)),
    }
    asked = [
        (method, name, role, outcome(world, service, method, metadata))
        for method, _ in await shown(world, service)
        for name, (role, metadata) in callers.items()
    ]
    statuses = await asyncio.gather(*(call for *_, call in asked))
    wrong = []
    for (method, name, role, _), status in zip(asked, statuses, strict=True):
        needed = permissions.named()[method]
        if needed == P.PERMISSION_PUBLIC:
            expected = status not in ("UNAUTHENTICATED", "PERMISSION_DENIED")
        elif role is None:
            expected = status == "UNAUTHENTICATED"
        elif RIGHTS[role] >> needed & 1:
            expected = status not in ("UNAUTHENTICATED", "PERMISSION_DENIED")
        else:
            expected = status == "PERMISSION_DENIED"
        if not expected:
            wrong.append((method, name, status))
    assert not wrong
    assert len(set(statuses)) > 2, "a test in which everything is alike tells nothing"


@ONE_LOOP
async def test_a_method_that_no_contract_names_is_denied_and_one_that_is_not_there_is_unimplemented(
    mesh: tuple[Mesh, issuer.Issuer],
) -> None:
    assert (
        await outcome(mesh[0], "registry", "/apportion.v1.RegistryService/DropAll", bearing(TOKEN)) == "UNIMPLEMENTED"
    )


def test_no_role_has_the_permission_that_stands_for_none() -> None:
    assert not any(rights >> P.PERMISSION_UNSPECIFIED & 1 for rights in RIGHTS.values())
    assert P.PERMISSION_UNSPECIFIED not in permissions.named().values()


def test_a_tenant_has_no_right_that_its_administrator_has_not_and_neither_has_an_operators() -> None:
    assert RIGHTS[Role.TENANT] & ~RIGHTS[Role.TENANT_ADMIN] == 0
    for role in (Role.TENANT, Role.TENANT_ADMIN):
        for permission in (P.PERMISSION_OPERATOR, P.PERMISSION_MESH):
            assert not RIGHTS[role] >> permission & 1
    assert not RIGHTS[Role.OPERATOR] >> P.PERMISSION_MESH & 1
    assert not RIGHTS[Role.SERVICE] >> P.PERMISSION_OPERATOR & 1
