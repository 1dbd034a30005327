"""What happens to replicas, and what has to be done about it: the words of core/replicas.py."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from gpu_sharing.measurements import Profile
from gpu_sharing.tensors import Signature, WarmupTensor
from gpu_sharing.units import Bytes, Millidevices, Nanoseconds
from gpu_sharing.worker.messages import Load, Loaded, LoadFailed, Stage, Unload, Unloaded, Update


class Queueing(msgspec.Struct, frozen=True):
    """How a model's requests wait, as whoever pushed it wants it. Zeros: not said.

    max_waiting: so many may. deadline_ns: of requests whose callers allow more, from arrival. Priorities as in Execute, where
    higher goes first: below least_priority they count as default_priority.
    """

    max_waiting: int = 0
    deadline_ns: Nanoseconds = 0
    least_priority: int = 0
    default_priority: int = 0

    def deadline(self, arrived: Nanoseconds, asked: Nanoseconds | None) -> Nanoseconds | None:
        """The moment past which a request is dropped. asked: the caller's."""
        if not self.deadline_ns:
            return asked
        own = arrived + self.deadline_ns
        return own if asked is None or own < asked else asked

    def priority(self, asked: int) -> int:
        """The priority that counts."""
        return self.default_priority if asked < self.least_priority or not asked else asked


class Wanted(msgspec.Struct, frozen=True):
    """A replica that shall be here. The fields are those of the worker's Load; format None: told by the artefact.

    declared: what its artefact has to agree with. labels: class names by output, which the worker needs not know.
    queueing: how its requests wait. signers: whose signature its artefact must have, as PEM; artefact_signature: what it has.
    """

    replica: int
    tenant: str
    model: str
    version: int
    digest: str
    size_bytes: Bytes
    lane: int
    bandwidth: Millidevices
    weight: int
    format: str | None = None
    max_batch_size: int | None = None
    batch_axes: dict[str, int] = {}
    warmup: tuple[WarmupTensor, ...] = ()
    objective_ns: Nanoseconds | None = None
    signature: Signature | None = None
    profile: Profile | None = None
    declared: Signature | None = None
    labels: dict[str, tuple[str, ...]] = {}
    queueing: Queueing = Queueing()
    signers: tuple[str, ...] = ()
    artefact_signature: bytes = b""


class Unwanted(msgspec.Struct, frozen=True):
    """A replica that shall go, after at most `drain_ns` for what it has."""

    replica: int
    drain_ns: Nanoseconds


class Changed(msgspec.Struct, frozen=True):
    """A replica's share or objective is another."""

    replica: int
    bandwidth: Millidevices
    weight: int
    objective_ns: Nanoseconds | None = None


class Fetching(msgspec.Struct, frozen=True):
    """What the fetch of a replica's artefact is doing, for people."""

    replica: int
    stage: str


class Fetched(msgspec.Struct, frozen=True):
    """The artefact is here, verified, at `path`; format: what it is."""

    replica: int
    path: str
    format: str


class NotFetched(msgspec.Struct, frozen=True):
    """The artefact cannot be had. refused: trying again cannot help."""

    replica: int
    message: str
    refused: bool = False


class WorkerUp(msgspec.Struct, frozen=True):
    """The lane's worker runs and holds nothing."""

    lane: int


class WorkerDown(msgspec.Struct, frozen=True):
    """The lane's worker is gone, or could not be started."""

    lane: int
    reason: str


class LayoutSet(msgspec.Struct, frozen=True):
    """These lanes are in force."""

    lanes: tuple[int, ...]


OfReplica: TypeAlias = Unwanted | Changed | Fetching | Fetched | NotFetched | Stage | Loaded | LoadFailed | Unloaded
"""What happens to one replica that is known."""
Happened: TypeAlias = Wanted | LayoutSet | WorkerUp | WorkerDown | OfReplica


class Fetch(msgspec.Struct, frozen=True):
    """Get the artefact; answered by Fetched or NotFetched."""

    wanted: Wanted


class LetGo(msgspec.Struct, frozen=True):
    """The replica needs its artefact no more; a fetch that runs is pointless."""

    replica: int


class Send(msgspec.Struct, frozen=True):
    """Send the lane's worker a command."""

    lane: int
    command: Load | Update | Unload


class Serve(msgspec.Struct, frozen=True):
    """Requests for this replica may come."""

    replica: int


class Withdraw(msgspec.Struct, frozen=True):
    """Nothing new for this replica."""

    replica: int


class StartWorker(msgspec.Struct, frozen=True):
    """Start the lane's worker, so long from now; answered by WorkerUp or WorkerDown."""

    lane: int
    after_ns: Nanoseconds


class StopWorker(msgspec.Struct, frozen=True):
    """The lane's worker holds nothing and is not needed: stop it; answered by WorkerDown."""

    lane: int


class Tell(msgspec.Struct, frozen=True):
    """What the scheduler knows is out of date."""


Action: TypeAlias = Fetch | LetGo | Send | Serve | Withdraw | StartWorker | StopWorker | Tell
