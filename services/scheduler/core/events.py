"""What happens to the scheduler, and what it wants done about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from services.scheduler.core.catalogue import Key, Model, Profile, Ref, Tenant, TrafficClass
from services.scheduler.core.reports import Hello, Report
from services.scheduler.core.requests import Counts
from services.scheduler.core.routes import RoutesChanged

# Events.


@dataclass(frozen=True, slots=True)
class CatalogueReplaced:
    """The whole catalogue, in place of whatever was known."""

    tenants: tuple[Tenant, ...] = ()
    models: tuple[Model, ...] = ()


@dataclass(frozen=True, slots=True)
class CatalogueChanged:
    """What one commit changed."""

    tenants: tuple[Tenant, ...] = ()
    models: tuple[Model, ...] = ()
    removed_tenants: tuple[str, ...] = ()
    removed_models: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class ExecutorAttached:
    """An executor's stream began. A newer hello of the same executor takes the place of the older."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class ExecutorReported:
    """An executor told what it holds now."""

    executor_id: str
    report: Report


@dataclass(frozen=True, slots=True)
class ExecutorDetached:
    """An executor's stream ended; the executor itself may well be serving still."""

    executor_id: str


@dataclass(frozen=True, slots=True)
class FrontendReported:
    """A frontend told of requests that are over. whole: of all its models, also of old requests."""

    frontend_id: str
    counts: tuple[tuple[Key, Counts], ...]
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class LayoutPinned:
    """An operator wants this layout in force; None: the one that serves demand best."""

    executor_id: str
    layout: int | None


Event: TypeAlias = (
    CatalogueReplaced
    | CatalogueChanged
    | ExecutorAttached
    | ExecutorReported
    | ExecutorDetached
    | FrontendReported
    | LayoutPinned
    | Tick
)

# Actions. Each says why it was decided.


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a replica is served. bandwidth: millidevices granted to its tenant on the replica's lane."""

    bandwidth: int
    weight: int
    objective_us: int | None
    traffic_class: TrafficClass


@dataclass(frozen=True, slots=True)
class SendLoad:
    """Load a replica. profile and signature where they are known for that kind of device."""

    executor_id: str
    replica_id: int
    ref: Ref
    lane: int
    terms: Terms
    size_bytes: int
    config: bytes
    signature: bytes | None
    profile: Profile | None
    why: str
    signers: tuple[str, ...] = ()
    artefact_signature: bytes = b""


@dataclass(frozen=True, slots=True)
class SendUnload:
    """Unload a replica; what it has may take `drain_s` to finish."""

    executor_id: str
    replica_id: int
    drain_s: float
    why: str


@dataclass(frozen=True, slots=True)
class SendUpdate:
    """A replica's terms have changed."""

    executor_id: str
    replica_id: int
    terms: Terms
    why: str


@dataclass(frozen=True, slots=True)
class SendLayout:
    """This layout is in force. Workers of lanes that are not in it may go once they hold nothing."""

    executor_id: str
    layout: int
    pinned: bool
    why: str


@dataclass(frozen=True, slots=True)
class SendFold:
    """A model is gone: an executor need not tell any more what a life of it used under a name."""

    executor_id: str
    incarnation: str
    key: Key
    life: int
    why: str


@dataclass(frozen=True, slots=True)
class Passed:
    """An artefact was loaded and ran."""

    signature: bytes
    profile: Profile | None


@dataclass(frozen=True, slots=True)
class Refused:
    """An artefact cannot be served."""

    message: str


@dataclass(frozen=True, slots=True)
class RecordInspection:
    """Tell the registry what a worker found."""

    ref: Ref
    outcome: Passed | Refused


@dataclass(frozen=True, slots=True)
class Noted:
    """Something that was decided or learnt and needs nothing done: for the log."""

    what: str
    why: str


Command: TypeAlias = SendLoad | SendUnload | SendUpdate | SendLayout | SendFold
Action: TypeAlias = Command | RoutesChanged | RecordInspection | Noted
