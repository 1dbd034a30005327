"""Settings: every one has a flag, an APPORTION_ variable and a documented default. Frozen; they read nothing themselves later."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

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
    otlp_endpoint: str | None = None
    """HOST:PORT of an OTLP/gRPC collector for traces; none, or empty: spans are not exported."""
    metrics_listen: str | None = None
    """HOST:PORT for Prometheus metrics over HTTP; none: not exposed."""
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


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT is reachable from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    if host in ("localhost", ""):
        return host == "localhost"
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
