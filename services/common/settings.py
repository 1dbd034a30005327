"""Settings: every one has a flag, an APPORTION_ variable and a documented default. Frozen; they read nothing themselves later."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from services.common.access.certificates import Tls
from services.common.access.token_rules import TokenRules
from services.common.channel import Credentials

_PORT = re.compile(r"[0-9]{1,5}")


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT with a port of 0 to 65535")
    return text


Address = Annotated[str, AfterValidator(_address)]
"""HOST:PORT; port 0 takes a free one."""


class ServiceSettings(BaseSettings):
    """What every service has.

    With the prefix APPORTION_REGISTRY_, the field `listen` is read from APPORTION_REGISTRY_LISTEN, else from
    APPORTION_LISTEN: what all services share, like APPORTION_MESH_TOKEN, is written once.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the service's own variables, then the ones all share."""
        return init_settings, env_settings, EnvSettingsSource(settings_cls, env_prefix="APPORTION_")

    ready_file: str | None = None
    """Written, once the service is ready, with a JSON object that names the addresses it got."""
    log_format: str = "auto"
    """json, text, or auto: text on a terminal."""
    log_level: str = "info"
    """debug, info, warning or error."""
    mesh_token: str | None = None
    """Shared secret of the services; needed wherever one listens beyond loopback."""
    tls_certificate: Path | None = None
    """PEM file of this process's certificate; with it, everything that it listens on and connects to is TLS, and services ask
    callers for theirs. `apportion certs init` makes some for development."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key."""
    tls_ca: Path | None = None
    """PEM file of the authority whose certificates are trusted, clients' and servers'."""
    tls_crl: Path | None = None
    """PEM file of the authority's list of revoked certificates (a CRL); callers with one of these are refused. Read again within a
    second of a change."""
    jwt_jwks: str | None = None
    """File or https URL of the keys that sign JSON Web Tokens (a JWKS); none: tokens are not taken."""
    jwt_issuer: str = ""
    """What a token's `iss` must be."""
    jwt_audience: str = ""
    """What a token's `aud` must hold."""
    jwt_algorithm: str = "RS256"
    """The one algorithm that tokens are signed with: RS, PS or ES with 256, 384 or 512, or EdDSA."""
    jwt_tenant_claim: str = "tenant"
    """The claim that names the tenant of a token's bearer."""
    jwt_role_claim: str = "role"
    """The claim that says tenant, tenant-admin or operator; absent: tenant."""
    jwt_leeway_s: float = Field(default=30.0, ge=0, le=300)
    """How far the clocks of a token's issuer and ours may be apart."""
    keys_max_age_s: float = Field(default=3600.0, ge=10)
    """How long API keys are taken as they were known while the registry is not heard of; after that nobody's is, since any may
    have been revoked."""
    reflection: bool = False
    """Whether the service describes itself to tools like grpcurl, whose callers need a credential. It tells of methods, not of
    tenants."""
    health_listen: Address | None = None
    """HOST:PORT where health is told without TLS, and nothing else is: for probes that speak none, like Kubernetes'; none: only
    where calls are taken."""
    otlp_endpoint: str | None = None
    """HOST:PORT of an OTLP/gRPC collector for traces; none, or empty: spans are not exported."""
    metrics_listen: str | None = None
    """HOST:PORT for Prometheus metrics over HTTP; none: not exposed."""
    metrics_token: str | None = None
    """What whoever reads metrics shows as `authorization: Bearer TOKEN`; beyond loopback, where it is not set, the mesh token."""
    reuse_port: Literal["off", "on"] = "off"
    """Whether other processes may listen on the same address, connections being spread over them (SO_REUSEPORT)."""
    max_connection_streams: int = Field(default=1024, ge=1)
    """Calls that one connection may have in progress; the caller's own gRPC holds further ones back until one ends."""
    max_header_bytes: int = Field(default=16_384, ge=1024, le=1 << 20)
    """Largest metadata of a call, by HTTP/2's count; beyond it the caller gets RESOURCE_EXHAUSTED."""
    max_connections: int = Field(default=4096, ge=1)
    """Connections that may be open; a further one is closed at once."""
    handshake_s: float = Field(default=20.0, gt=0)
    """How long a connection may take until it speaks HTTP/2; then it is closed."""
    keepalive_s: float = Field(default=60.0, ge=1)
    """How long nothing may come over a connection before it is asked for a sign of life, which the caller's gRPC gives."""
    keepalive_timeout_s: float = Field(default=20.0, ge=1)
    """How long that sign may take; then the connection is closed, and what was held for it is let go of."""
    drain_notice_s: float = 0.0
    """How long health checks say NOT_SERVING before a service that is told to stop sends its callers away: as long as a load
    balancer takes to notice."""
    drain_s: float = 5.0
    """How long calls in flight may take to finish when the service is told to stop."""

    @property
    def tls(self) -> Tls | None:
        """The certificate's files; None: no TLS. Raises ValueError where some are set and others not."""
        given = (self.tls_certificate, self.tls_key, self.tls_ca)
        if all(path is None for path in given):
            return None
        if self.tls_certificate is None or self.tls_key is None or self.tls_ca is None:
            raise ValueError("tls_certificate, tls_key, tls_ca: set all three, or none")
        return Tls(self.tls_certificate.expanduser(), self.tls_key.expanduser(), self.tls_ca.expanduser())

    @property
    def credentials(self) -> Credentials:
        """What this process shows to other services."""
        return Credentials(self.mesh_token, self.tls)

    @property
    def token_rules(self) -> TokenRules | None:
        """What a JSON Web Token must be; None: none is taken. Raises ValueError where the settings do not go together."""
        if self.jwt_jwks is None:
            return None
        return TokenRules(
            self.jwt_jwks,
            self.jwt_issuer,
            self.jwt_audience,
            self.jwt_algorithm,
            self.jwt_tenant_claim,
            self.jwt_role_claim,
            self.jwt_leeway_s,
        )


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT is reachable from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    if host in ("localhost", ""):
        return host == "localhost"
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
