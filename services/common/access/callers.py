"""Who calls, and what a role may do."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

from services._proto.apportion.v1 import common_pb2
from services.common.errors import Reason, Refusal

ANONYMOUS = "default"
"""The tenant of callers without a credential, where these are let in."""


class Role(StrEnum):
    """What a credential makes of its bearer."""

    TENANT = "tenant"
    """Runs and reads its tenant's models, and those shared with it."""
    TENANT_ADMIN = "tenant-admin"
    """Changes them, too, and its tenant's keys."""
    OPERATOR = "operator"
    """Changes tenants and what is theirs, and reads everything. It runs no models: nobody's requests are its own."""
    SERVICE = "service"
    """A service of the mesh, which also notes what tenants wish."""
    MESH = "mesh"
    """Bears the mesh token, or calls over loopback where there is none: an operator and a service in one."""


def _bits(*permissions: int) -> int:
    return sum(1 << permission for permission in permissions)


_READ = _bits(common_pb2.PERMISSION_PUBLIC, common_pb2.PERMISSION_TENANT_READ)
_WRITE = _bits(common_pb2.PERMISSION_TENANT_WRITE)
RIGHTS: dict[Role, int] = {
    Role.TENANT: _READ | _bits(common_pb2.PERMISSION_TENANT_INFER),
    Role.TENANT_ADMIN: _READ | _WRITE | _bits(common_pb2.PERMISSION_TENANT_INFER),
    Role.OPERATOR: _READ | _WRITE | _bits(common_pb2.PERMISSION_OPERATOR),
    Role.SERVICE: _READ | _WRITE | _bits(common_pb2.PERMISSION_MESH),
    Role.MESH: _READ | _WRITE | _bits(common_pb2.PERMISSION_OPERATOR, common_pb2.PERMISSION_MESH),
}
"""The permissions that a role has, a bit each: 1 << apportion.v1.Permission. PERMISSION_UNSPECIFIED is nobody's."""
PUBLIC = _bits(common_pb2.PERMISSION_PUBLIC)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever makes a call.

    tenant: whose it is; "" for operators and services, who are nobody's. name: for the audit log: a key's id, a token's
    subject, a certificate's name. rights: see RIGHTS.
    """

    role: Role
    tenant: str = ""
    name: str = ""
    rights: int = 0

    @property
    def everybodys(self) -> bool:
        """Whether it may see what belongs to any tenant."""
        return not self.tenant

    def sees(self, tenant: str) -> bool:
        """Whether what is this tenant's is there for the caller. An absent tenant and a foreign one answer alike: False."""
        return not self.tenant or self.tenant == tenant

    def __str__(self) -> str:
        return f"{self.role} {self.name}".rstrip()


def caller_of(role: Role, tenant: str = "", name: str = "") -> Caller:
    """A caller with what its role may do. Raises ValueError for a tenant's role without a tenant, or one too many."""
    if (role in (Role.TENANT, Role.TENANT_ADMIN)) != bool(tenant):
        raise ValueError(f"role {role} with tenant {tenant!r}")
    return Caller(role, tenant, name, RIGHTS[role])


LOCAL = caller_of(Role.MESH, name="local")
"""Whoever calls a service that listens on loopback and has no mesh token."""
CALLING: ContextVar[Caller | Refusal] = ContextVar("calling", default=LOCAL)
"""Who makes the call that is being served, or why that is not known. Each call has a context of its own.

Outside of any server, in a test or a task of the service itself, it is the service."""

CALLED: ContextVar[str] = ContextVar("called", default="")
"""The path of the method that is being served, where the server is not public: for the audit log."""


def calling() -> Caller:
    """Who makes the call that is being served. Raises Refusal where nobody is known, which public methods allow."""
    found = CALLING.get()
    if isinstance(found, Refusal):
        # A new one: what is raised collects the frames that it came through.
        raise Refusal(found.reason, found.message, facts=found.facts, retry_after_s=found.retry_after_s)
    return found


def missing(public: bool) -> Refusal:
    """The refusal of a call without any credential. public: of a frontend's."""
    if public:
        return Refusal(Reason.KEY_MISSING, "authorization: this frontend needs an API key, as `Bearer KEY`")
    return Refusal(Reason.KEY_MISSING, "authorization: this service needs the mesh token or another credential")
