"""The registry's nouns, as values. Messages in other services' words (configuration, signature, profile) stay bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class TrafficClass(IntEnum):
    """Numbers as on the wire."""

    INTERACTIVE = 1
    BATCH = 2


class Isolation(IntEnum):
    """Numbers as on the wire."""

    SHARED = 1
    PROCESS = 2


class Inspection(IntEnum):
    """Numbers as on the wire."""

    PENDING = 1
    PASSED = 2
    REFUSED = 3


class KeyRole(IntEnum):
    """Numbers as on the wire."""

    TENANT = 1
    TENANT_ADMIN = 2


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as it is kept: its text is nowhere. expires_at_us: from then on it is refused; None: never."""

    id: str
    sha256: bytes
    created_at_us: int
    role: KeyRole = KeyRole.TENANT_ADMIN
    expires_at_us: int | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may use; None: not limited. The units are the contract's."""

    millirequests_per_s: int | None = None
    burst: int = 0
    concurrent_requests: int | None = None
    device_ms: int | None = None
    device_interval_s: int = 0
    memory_bytes: int | None = None
    stored_bytes: int | None = None

    @property
    def limits(self) -> bool:
        """Whether anything is limited."""
        return self != Quota(burst=self.burst, device_interval_s=self.device_interval_s)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant; keys in the order they were made. `revision` is that of its last change."""

    name: str
    reservation_millidevices: int
    weight: int
    created_at_us: int
    keys: tuple[Key, ...] = ()
    revision: int = 0
    quota: Quota = Quota()
    signers: tuple[tuple[str, str], ...] = ()
    """Who signs its artefacts, as (id, PEM) by id; none: they need no signature."""


@dataclass(frozen=True, slots=True)
class Slo:
    """`ratio_ppm` of requests within `objective_us` (None: no objective) over `window_s`."""

    objective_us: int | None = None
    ratio_ppm: int = 990_000
    window_s: int = 30 * 86_400


@dataclass(frozen=True, slots=True)
class NamedSlo:
    """What a model is judged by; without an objective, by what each request was promised."""

    name: str
    slo: Slo


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable version, and what inspection found.

    config, signature and the bodies of profiles are serialised messages; profiles are (device kind, body) by kind.
    artefact_signature: who made the artefact, as pushed; empty: nobody says.
    """

    version: int
    digest: str
    size_bytes: int
    config: bytes
    created_at_us: int
    inspection: Inspection = Inspection.PENDING
    inspection_message: str = ""
    signature: bytes | None = None
    profiles: tuple[tuple[str, bytes], ...] = ()
    artefact_signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Model:
    """A model; versions by number, traffic as (version, ppm) by number, slos by name.

    last_version: the highest number ever given, so that a removed version's number is never handed out again.
    unloaded: nobody is to hold it until that is taken back. shared_with: tenants that may read and run it, sorted.
    """

    tenant: str
    name: str
    slo: Slo = Slo()
    traffic_class: TrafficClass = TrafficClass.INTERACTIVE
    isolation: Isolation = Isolation.SHARED
    replicas: int = 1
    last_version: int = 0
    versions: tuple[Version, ...] = ()
    traffic: tuple[tuple[int, int], ...] = ()
    revision: int = 0
    unloaded: bool = False
    slos: tuple[NamedSlo, ...] = ()
    shared_with: tuple[str, ...] = ()

    def find(self, number: int) -> Version | None:
        """The version of that number."""
        return next((version for version in self.versions if version.version == number), None)


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit changed: one tenant (name is None) or one model; after is None: it was removed."""

    tenant: str
    name: str | None
    after: Tenant | Model | None
