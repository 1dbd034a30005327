"""The frontend's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.process import StartupError
from services.common.settings import Address, ServiceSettings, is_loopback


class FrontendSettings(ServiceSettings):
    """Flag, APPORTION_FRONTEND_… variable and default of everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix="APPORTION_FRONTEND_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    listen: Address = "127.0.0.1:8001"
    """HOST:PORT where clients of the Open Inference Protocol are served."""
    metrics_listen: str | None = "127.0.0.1:8002"
    """HOST:PORT for Prometheus metrics over HTTP; none: not exposed."""
    scheduler: Address = "127.0.0.1:8102"
    """HOST:PORT of the scheduler, whose routes are followed."""
    registry: Address = "127.0.0.1:8101"
    """HOST:PORT of the registry, whose tenants and API keys are followed."""
    anonymous: Literal["auto", "on", "off"] = "auto"
    """Whether a caller without a credential is the tenant `default`. auto: only where `listen` is a loopback address;
    `on` is refused elsewhere."""
    max_message_bytes: int = Field(default=64 << 20, ge=1 << 16, le=1 << 30)
    """Largest request and answer in bytes; beyond it the caller gets RESOURCE_EXHAUSTED, MESSAGE_TOO_LARGE."""
    max_fields: int = Field(default=4096, ge=16)
    """Most fields of a request's top level: tensors, their contents and parameters together."""
    max_parameters: int = Field(default=128, ge=8)
    """Most entries in a request's `parameters`."""
    max_tensors: int = Field(default=1024, ge=1)
    """Most inputs and requested outputs of a request together."""
    max_name_bytes: int = Field(default=256, ge=64)
    """Longest model name, version and request id."""
    stream_requests: int = Field(default=64, ge=1, le=4096)
    """Requests of one ModelStreamInfer that may be in hand: asked and not answered, or answered and not read. The next one is
    not read before one of them is. A stream begins with 8, and may have one more for each answer that is read."""
    stream_bytes: int = Field(default=64 << 20, ge=1 << 16)
    """Bytes of requests and answers that one ModelStreamInfer may have in hand before the next request is read."""
    streams: int = Field(default=256, ge=1)
    """ModelStreamInfer calls that one tenant may have open at one frontend, and models whose health it may watch; a further one
    gets QUOTA_EXCEEDED."""
    tenant_request_bytes: int = Field(default=1 << 30, ge=1 << 16)
    """Bytes of a tenant's requests that one frontend holds until they are answered; a further one gets QUOTA_EXCEEDED."""
    tenant_unread_bytes: int = Field(default=64 << 20, ge=1 << 16)
    """Bytes of a tenant's answers that one frontend holds while its callers do not read them, those in chunks apart, which draw
    on `tenant_credit_bytes`; beyond it, requests and answers become QUOTA_EXCEEDED."""
    shared_memory: bool = True
    """Whether callers on this machine may register shared memory: system memory, and a GPU's where an executor opens it."""
    shared_memory_folder: Path | None = None
    """Folder that all frontends of one port know regions of shared memory by; none: this is the port's only frontend."""
    cuda_shared_memory_bytes: int = Field(default=16 << 30, ge=0)
    """Bytes of a GPU's memory that one tenant may have registered, where an executor opens any; a further region gets
    QUOTA_EXCEEDED."""
    model_control: bool = True
    """Whether callers may load and unload their tenant's models (RepositoryModelLoad, RepositoryModelUnload)."""
    load_wait_s: float = Field(default=300.0, gt=0)
    """How long a load or an unload waits, in seconds, where its caller gives no deadline."""
    client_certificates: bool = False
    """Whether callers must show a certificate of `tls_ca`; one of a tenant's speaks for its bearer as a key does."""
    default_deadline_s: float = Field(default=60.0, gt=0, le=86_400)
    """Deadline in seconds of a request whose caller gives none."""
    retry_ratio: float = Field(default=0.1, ge=0, le=1)
    """Attempts that failed for no fault of the request and are tried on another replica, as a part of a tenant's requests."""
    retry_burst: float = Field(default=100.0, ge=0)
    """How many of them a tenant may have at once: as many requests as may be with an executor when it dies."""
    trace_sample: float = Field(default=0.05, ge=0, le=1)
    """Share of requests whose trace is kept though they broke no promise; violators are always kept."""
    metrics_export_s: float = Field(default=10.0, gt=0)
    """How often counts and histograms go to `otlp_endpoint`, in seconds; the trace store answers for SLOs from them."""
    trace_samples: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """The same for single tenants, as a JSON object: {"acme": 1.0}. No caller can have a trace kept or not."""
    quota_unleased: float = Field(default=0.1, ge=0, le=1)
    """The part of each tenant's quota that this frontend admits while no scheduler has ever given it a lease; 0: nothing."""
    tenant_credit_bytes: int = Field(default=64 << 20, ge=1 << 20)
    """Bytes of large results that each tenant may have on their way from one executor."""

    @property
    def lets_in_anonymous(self) -> bool:
        """Whether callers without a credential are served. Raises StartupError where that would be open to a network."""
        loopback = is_loopback(self.listen)
        if self.anonymous == "on" and not loopback:
            raise StartupError(
                f"frontend: refusing to serve callers without credentials on {self.listen}; "
                "set APPORTION_FRONTEND_ANONYMOUS=off or listen on 127.0.0.1"
            )
        return loopback and self.anonymous != "off"
