"""What an executor and its worker say to each other: msgpack over a socket pair, tensors by reference into shared memory.

A worker may run hostile artefacts, so nothing it sends is ever unpickled: every message is decoded against these types.
All times are of the monotonic clock, which both processes share. Inputs lie in an arena that the executor allocates,
outputs in one that the worker allocates; each side only reads the other's.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from gpu_sharing.measurements import Batch, Profile
from gpu_sharing.tensors import Signature, WarmupTensor
from gpu_sharing.units import Bytes, ComputeUnits, Millidevices, Nanoseconds


class TensorRef(msgspec.Struct, array_like=True, frozen=True):
    """A tensor's bytes in an arena: row-major, little-endian. `index` is its place in the signature."""

    index: int
    shape: tuple[int, ...]
    offset: int
    length_bytes: int


class RegionPart(msgspec.Struct, array_like=True, frozen=True):
    """A tensor's part of a region: `place` counts a Submit's inputs or its outputs. For an output, length_bytes is what there is
    room for."""

    place: int
    region: str
    offset: int
    length_bytes: int


# From the executor.


class Load(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Load a replica from a local file whose digest has been verified. Answered by Stage (several), then Loaded or LoadFailed.

    format: the runtime's name, "onnx", "torch_export" or "python".
    batch_axes: by tensor name where the artefact does not tell; -1: none.
    profile: known from before; then nothing is measured again.
    queue_limit: requests that may wait for it, where the worker's limit is higher; 0: not said.
    """

    replica: int
    tenant: str
    model: str
    version: int
    digest: str
    path: str
    format: str
    bandwidth: Millidevices
    weight: int
    max_batch_size: int | None = None
    batch_axes: dict[str, int] = {}
    warmup: tuple[WarmupTensor, ...] = ()
    objective_ns: Nanoseconds | None = None
    signature: Signature | None = None
    profile: Profile | None = None
    queue_limit: int = 0


class Update(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The replica's share or objective has changed."""

    replica: int
    bandwidth: Millidevices
    weight: int
    objective_ns: Nanoseconds | None = None


class Unload(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Finish what the replica has for at most `drain_ns`, then let go. Answered by Unloaded."""

    replica: int
    drain_ns: Nanoseconds


class Settled(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """What the meter page says of a replica that is gone has been counted for good: its record may be another's. No answer."""

    replica: int


class Submit(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """One request, already checked against the signature. Answered by exactly one Done or Failed.

    rows: extent at the batch axis; 1 where there is none.
    shape_key: requests with equal keys may share a batch: shapes without the batch axis, and the bytes of inputs that
        have none.
    outputs: indices of the outputs wanted, in the order wanted.
    deadline: drop it past this moment. objective: None: class `batch`.
    sources: inputs that lie in regions; their TensorRefs have no bytes. sinks: outputs that go there.
    """

    call: int
    replica: int
    rows: int
    shape_key: bytes
    inputs: tuple[TensorRef, ...]
    outputs: tuple[int, ...]
    arrived: Nanoseconds
    deadline: Nanoseconds | None = None
    objective: Nanoseconds | None = None
    priority: int = 0
    sources: tuple[RegionPart, ...] = ()
    sinks: tuple[RegionPart, ...] = ()


class Cancel(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Nobody waits for this call any more: dequeue it. Answered all the same by Done or Failed (CANCELLED)."""

    call: int


class Release(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The outputs of this call have been read: their memory may be used again."""

    call: int


class OpenRegion(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Open memory of another process for requests to name. Answered by RegionOpened or RegionFailed. What is open stays so."""

    region: str
    tenant: str
    handle: bytes
    size_bytes: Bytes


class CloseRegion(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Let go of a region, once batches that use it have ended. No answer."""

    region: str


class Stop(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Finish within `grace_ns` and exit."""

    grace_ns: Nanoseconds


Command: TypeAlias = Load | Update | Unload | Settled | Submit | Cancel | Release | OpenRegion | CloseRegion | Stop


# From the worker.


class Ready(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The worker's loop runs."""

    pid: int
    device_kind: str
    backend: str
    compute_units: ComputeUnits
    reason: str


class Stage(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """What a load is doing, for people: "checking", "loading", "warming up", "profiling"."""

    replica: int
    stage: str


class Loaded(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The replica serves. memory_bytes: weights and the largest activations."""

    replica: int
    signature: Signature
    profile: Profile
    memory_bytes: Bytes


class LoadFailed(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The replica cannot serve. refused: the artefact itself is at fault, and trying again cannot help."""

    replica: int
    refused: bool
    message: str


class Unloaded(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The replica is gone and its memory is free."""

    replica: int


class Done(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The call's outputs, in the order wanted. Its input memory may be used again; its output memory is held until Release.

    Outputs that went to a region lie there; their TensorRefs have no bytes.
    gathered: when the batch's inputs had been put together, within its first slice. copied: when the outputs lay in the arena.
    0: not told.
    """

    call: int
    outputs: tuple[TensorRef, ...]
    received: Nanoseconds
    batch: Batch
    gathered: Nanoseconds = 0
    copied: Nanoseconds = 0


class Failed(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The call was refused, dropped or broken. Its input memory may be used again.

    reason: DEADLINE_EXCEEDED, CANCELLED, OVERLOADED, OUT_OF_MEMORY, MODEL_FAILED, MODEL_NOT_READY; of regions REGION_NOT_FOUND,
        FIELD_INVALID.
    facts: the numbers that led here. decided: when it was refused or dropped; 0: not told.
    """

    call: int
    reason: str
    message: str
    facts: dict[str, str] = {}
    received: Nanoseconds = 0
    batch: Batch | None = None
    decided: Nanoseconds = 0


class Used(msgspec.Struct, array_like=True, frozen=True):
    """Device time of one replica since the worker started."""

    replica: int
    device_ns: Nanoseconds
    requests: int
    batches: int
    waiting: int


class Account(msgspec.Struct, array_like=True, frozen=True):
    """What one tenant has used of the lane since the worker started: within its reservation, from the surplus by its weight, in
    gaps; requests admitted on these terms, and those that were refused or revoked."""

    tenant: str
    guaranteed_ns: Nanoseconds = 0
    surplus_ns: Nanoseconds = 0
    gap_ns: Nanoseconds = 0
    guaranteed: int = 0
    surplus: int = 0
    gap: int = 0
    refused: int = 0
    revoked: int = 0


class Statistics(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Sent at least every second while anything changes. busy_ns: of the lane, since the worker started."""

    busy_ns: Nanoseconds
    waiting: int
    used: tuple[Used, ...]
    memory_used_bytes: Bytes
    accounts: tuple[Account, ...] = ()


class Moved(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Weights of these replicas have come to the device, or gone from it. why: for people. took_ns: of the copy, or of letting go."""

    replicas: tuple[int, ...]
    is_in: bool
    size_bytes: Bytes
    took_ns: Nanoseconds
    why: str


class RegionOpened(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """memory_bytes: of all that the handle is of."""

    region: str
    memory_bytes: Bytes


class RegionFailed(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """reason: FIELD_INVALID, UNSUPPORTED, OUT_OF_MEMORY. message: for the caller, and tells nothing of other tenants."""

    region: str
    reason: str
    message: str


Event: TypeAlias = (
    Ready | Stage | Loaded | LoadFailed | Unloaded | Done | Failed | Statistics | Moved | RegionOpened | RegionFailed
)


# What a worker's meter page says (gpu_sharing.worker.meter).


class Running(NamedTuple):
    """A slice that has begun and not ended. alive: when its worker last showed a sign of life, at most 0.2 s ago while it
    lives and is not starved of its processor."""

    replica: int
    began: Nanoseconds
    alive: Nanoseconds


class Reading(NamedTuple):
    """What a page says. used: by replica, since the worker started, in whole slices; their `waiting` is not known."""

    used: tuple[Used, ...] = ()
    running: Running | None = None
