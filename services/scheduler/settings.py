"""The scheduler's settings."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import Address, ServiceSettings
from services.scheduler.core.state import Policy


class SchedulerSettings(ServiceSettings):
    """What the scheduler can be told."""

    model_config = SettingsConfigDict(
        env_prefix="APPORTION_SCHEDULER_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    listen: Address = "127.0.0.1:8102"
    """HOST:PORT where executors attach and frontends watch routes."""
    registry: Address = "127.0.0.1:8101"
    """HOST:PORT of the registry."""
    report_interval_s: float = Field(default=1.0, gt=0, le=60)
    """How often executors report when nothing changes."""
    tick_s: float = Field(default=0.5, gt=0, le=10)
    """How often the scheduler looks whether something is due."""
    bookmark_s: float = Field(default=5.0, gt=0, le=60)
    """How often a watcher of routes hears of the scheduler when nothing changes."""
    grace_s: float = Field(default=10.0, ge=0)
    """How long an executor whose stream ended is counted on before its replicas are placed elsewhere."""
    usage_interval_s: float = Field(default=5.0, gt=0, le=600)
    """How often the registry is told who used how much."""
    settle_s: float = Field(default=2.0, ge=0)
    """How long after its start the scheduler waits for executors to come back before it places anything; five times as long
    while none has."""
    replica_drain_s: float = Field(default=10.0, ge=0)
    """How long a replica that is unloaded may take to finish what it has."""
    retry_first_s: float = Field(default=1.0, gt=0)
    """Delay before a replica that failed is tried again; it doubles with each failure in a row."""
    retry_most_s: float = Field(default=60.0, gt=0)
    """The longest such delay."""
    layout_steady_s: float = Field(default=5.0, ge=0)
    """Another layout of a device must have served demand better for so long before it is brought into force."""
    layout_dwell_s: float = Field(default=60.0, ge=0)
    """A layout is in force for so long before another one is; an executor's first change need not wait."""
    layout_limit_s: float = Field(default=300.0, gt=0)
    """A change of layouts that has not come to its end by then is taken back."""
    fold_s: float = Field(default=60.0, ge=0)
    """What a model that was removed has used is told apart for so long; from then on it is its tenant's alone."""
    route_changes: int = Field(default=1024, ge=1)
    """Changes of routes that are kept for watchers that come back; one that is further behind takes a new snapshot."""
    route_changes_bytes: int = Field(default=4 << 20, ge=0)
    """About how much memory these may take; the latest is kept whatever it takes."""
    route_changes_s: float = Field(default=120.0, gt=0)
    """How long they are kept: a watcher that was away for longer takes a new snapshot."""

    def policy(self) -> Policy:
        """The part of the settings that decides."""
        return Policy(
            grace_s=self.grace_s,
            settle_s=self.settle_s,
            drain_s=self.replica_drain_s,
            retry_first_s=self.retry_first_s,
            retry_most_s=self.retry_most_s,
            layout_steady_s=self.layout_steady_s,
            layout_dwell_s=self.layout_dwell_s,
            layout_limit_s=self.layout_limit_s,
            fold_s=self.fold_s,
        )
