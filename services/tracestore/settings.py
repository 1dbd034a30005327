"""The trace store's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import Address, ServiceSettings


class TraceStoreSettings(ServiceSettings):
    """Read from flags, APPORTION_TRACESTORE_… and APPORTION_…, in this order."""

    model_config = SettingsConfigDict(
        env_prefix="APPORTION_TRACESTORE_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    listen: Address = "127.0.0.1:4317"
    """HOST:PORT that takes spans over OTLP/gRPC."""
    query_listen: Address = "127.0.0.1:16685"
    """HOST:PORT that answers Jaeger's query API (gRPC, jaeger.api_v3)."""
    registry: Address | None = None
    """HOST:PORT of the registry, by whose keys tenants read their own traces; none: only operators and services read any."""
    data: Path = Path("~/.local/share/apportion")
    """The folder that holds traces.db."""
    retention_s: int = Field(default=7 * 24 * 3600, ge=1)
    """Age, counted from arrival, past which spans are deleted."""
    retention_bytes: int = Field(default=1 << 30, ge=1 << 20)
    """Size past which the oldest spans are deleted; at least 1 MiB."""
    rollup_retention_s: int = Field(default=400 * 24 * 3600, ge=3600)
    """Age past which counts, by minute and hour, are deleted; they outlive the spans."""
    rollup_bytes: int = Field(default=256 << 20, ge=1 << 20)
    """Size past which the oldest counts are deleted; at least 1 MiB."""
    queue_spans: int = Field(default=32_768, ge=1)
    """Spans that may wait to be written; further ones are refused."""
    query_timeout_s: float = Field(default=10.0, gt=0)
    """How long one query may read."""

    @property
    def database(self) -> Path:
        """The file that holds the spans."""
        return self.data.expanduser() / "traces.db"

    @property
    def rollups(self) -> Path:
        """The file that holds what is known of requests when their spans are gone."""
        return self.data.expanduser() / "rollups.db"
