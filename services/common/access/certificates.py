"""TLS between services: who is at the other end is told by a name in its certificate's SAN.

A certificate of ours bears one URI, `apportion://service/registry`, `apportion://tenant/acme`, `apportion://tenant-admin/acme`
or `apportion://operator/ops`, which is what it is as a client; and a service's bears `registry.apportion.internal`, which is
what its callers ask for, wherever it listens, so that no other service's certificate does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from services._proto.apportion.v1 import common_pb2
from services.common.access.callers import RIGHTS, Caller, Role, caller_of
from services.common.errors import Reason, Refusal

SCHEME = "apportion://"
ROLES = {role.value: role for role in (Role.TENANT, Role.TENANT_ADMIN, Role.OPERATOR, Role.SERVICE)}
SAN = "x509_subject_alternative_name"
# Only frontends note what tenants wish; the others write nothing of theirs.
_RIGHTS_OF = {"frontend": RIGHTS[Role.SERVICE]}
_FEWER = RIGHTS[Role.SERVICE] & ~(1 << common_pb2.PERMISSION_TENANT_WRITE)


@dataclass(frozen=True, slots=True)
class Tls:
    """A process's certificate, its key, and the authority that it trusts: paths of PEM files."""

    certificate: Path
    key: Path
    authority: Path

    def check(self) -> None:
        """Raises OSError where a file cannot be read."""
        for path in (self.certificate, self.key, self.authority):
            path.read_bytes()

    def server(self, *, clients: bool) -> grpc.ServerCredentials:
        """What a server listens with; clients: whether callers must show a certificate. New files are taken up by themselves."""
        reader = _Reader(self, clients=clients)
        return grpc.dynamic_ssl_server_credentials(reader.read(), reader, require_client_authentication=clients)

    def channel(self) -> grpc.ChannelCredentials:
        """What a client connects with."""
        return grpc.ssl_channel_credentials(
            self.authority.read_bytes(), self.key.read_bytes(), self.certificate.read_bytes()
        )


class _Reader:
    """Reads the files again once they have changed; called by gRPC at each handshake."""

    def __init__(self, tls: Tls, *, clients: bool) -> None:
        self._tls, self._clients = tls, clients
        self._stamp: tuple[int, ...] = ()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """The files' content."""
        tls = self._tls
        self._stamp = self._stamps()
        pairs = [(tls.key.read_bytes(), tls.certificate.read_bytes())]
        return grpc.ssl_server_certificate_configuration(pairs, tls.authority.read_bytes() if self._clients else None)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            # A certificate without its key yet would end all handshakes: what cannot be read leaves things as they are.
            return None if self._stamps() == self._stamp else self.read()
        except OSError:
            return None

    def _stamps(self) -> tuple[int, ...]:
        tls = self._tls
        return tuple(path.stat().st_mtime_ns for path in (tls.certificate, tls.key, tls.authority))


def server_name(service: str) -> str:
    """The DNS name in the certificate of a service of this kind."""
    return f"{service}.apportion.internal"


def uri(role: Role, name: str) -> str:
    """What a certificate says that its bearer is."""
    return f"{SCHEME}{role.value}/{name}"


def caller_at(context: Mapping[str, Iterable[bytes]]) -> Caller | None:
    """Who the certificate in a call's authentication context says is there; None: it says nothing of the kind.

    Raises Refusal (KEY_UNKNOWN) where it says more than one thing, or nothing that can be.
    """
    named = [name for name in _texts(context.get(SAN, ())) if name.startswith(SCHEME)]
    if not named:
        return None
    role, _, name = named[0].removeprefix(SCHEME).partition("/")
    if len(named) > 1 or role not in ROLES or not name or "/" in name:
        raise Refusal(Reason.KEY_UNKNOWN, "the client's certificate: its SAN must bear one apportion://ROLE/NAME")
    kind = ROLES[role]
    caller = caller_of(kind, name if kind in (Role.TENANT, Role.TENANT_ADMIN) else "", f"certificate {name}")
    return caller if kind is not Role.SERVICE else replace(caller, name=name, rights=_RIGHTS_OF.get(name, _FEWER))


def _texts(values: Iterable[bytes]) -> list[str]:
    return [value.decode(errors="replace") for value in values]
