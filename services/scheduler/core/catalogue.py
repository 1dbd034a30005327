"""What is wanted: tenants, models and versions, as the registry has them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from gpu_sharing.partitioning.knee import Measured, smallest_batches
from services.common.objectives import Point

MILLION = 1_000_000


class Key(NamedTuple):
    """The key of a model."""

    tenant: str
    name: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


class Ref(NamedTuple):
    """One content under one number: what a replica holds. A number that is used again for other content is another Ref."""

    key: Key
    version: int
    digest: str

    def __str__(self) -> str:
        return f"{self.key} version {self.version}"


class TrafficClass(Enum):
    """The class of a model's traffic."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Inspection(Enum):
    """Where the inspection of a version stands."""

    PENDING = "pending"
    PASSED = "passed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may use; None: as much as it likes. rate: in millionths of a request a second; burst: in requests.
    device_ns: of whole devices, within device_interval_s. memory_bytes: of its replicas, over all devices."""

    rate: int | None = None
    burst: int = 1
    concurrent: int | None = None
    device_ns: int | None = None
    device_interval_s: int = 3600
    memory_bytes: int | None = None

    @property
    def leased(self) -> bool:
        """Whether any of it is held by frontends."""
        return self.rate is not None or self.concurrent is not None or self.device_ns is not None

    @property
    def limits(self) -> bool:
        """Whether anything of it is held here or by frontends."""
        return self.leased or self.memory_bytes is not None


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant's promise (in millidevices), its weight in what is unused, and what it may use at the most.

    signers: whose signature its artefacts must have, which the core only passes on; none: they need none.
    """

    name: str
    reservation: int = 0
    weight: int = 1
    quota: Quota = Quota()
    signers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Slo:
    """A model's objective; None and zeros where the registry says nothing."""

    objective_us: int | None = None
    ratio_ppm: int = 0
    window_s: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """What a version needs on one kind of device. memory_bytes: weights and the largest activations; blob: as it was sent;
    points: of the blob, what answers about objectives need."""

    device_kind: str
    memory_bytes: int
    blob: bytes = b""
    points: tuple[Point, ...] = ()

    @property
    def units(self) -> frozenset[int]:
        """The sizes of lanes, in compute units, that it was measured on."""
        return frozenset(point.compute_units for point in self.points)

    def covers(self, other: Profile) -> bool:
        """Whether it says of every size of lane something that the other says something of."""
        return self.device_kind == other.device_kind and self.units >= other.units


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable version. config and signature are serialised messages that the core only passes on, like
    artefact_signature, a bundle."""

    number: int
    digest: str
    size_bytes: int = 0
    config: bytes = b""
    inspection: Inspection = Inspection.PENDING
    inspection_message: str = ""
    signature: bytes | None = None
    profiles: tuple[Profile, ...] = ()
    artefact_signature: bytes = b""

    def measured(self, device_kind: str) -> tuple[Measured, ...]:
        """How long its smallest batch takes on such a device, ascending by compute units."""
        points = (point for profile in self.profiles if profile.device_kind == device_kind for point in profile.points)
        return smallest_batches((point.rows, point.compute_units, point.p50_ns) for point in points)


@dataclass(frozen=True, slots=True)
class Split:
    """A version's part, in parts per million, of the requests that name none."""

    version: int
    ppm: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model and how it is to be served.

    isolated: in a worker process that holds no other tenant's models. unloaded: nobody is to hold it, by request.
    revision: the catalogue's, of the model's last change; 0: not told.
    """

    key: Key
    slo: Slo = Slo()
    traffic_class: TrafficClass = TrafficClass.INTERACTIVE
    isolated: bool = False
    replicas: int = 1
    versions: tuple[Version, ...] = ()
    traffic: tuple[Split, ...] = ()
    unloaded: bool = False
    revision: int = 0

    def version(self, number: int) -> Version | None:
        """The version of that number, if there is one."""
        return next((each for each in self.versions if each.number == number), None)

    def ref(self, version: Version) -> Ref:
        """The version's name in the whole fleet."""
        return Ref(self.key, version.number, version.digest)
