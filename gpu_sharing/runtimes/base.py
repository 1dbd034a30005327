"""What a runtime is: it checks an artefact, loads it, and runs it as a sequence of segments."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec
import numpy as np

from gpu_sharing.tensors import Signature, WarmupTensor
from gpu_sharing.units import Bytes, ComputeUnits

Tensors: TypeAlias = Mapping[str, np.ndarray]
"""Tensors by name. BYTES are object arrays of `bytes`; BF16 is carried as uint16."""

Run: TypeAlias = Generator[None, None, dict[str, np.ndarray]]
"""A batch in flight: each `next` runs one segment and stops at a boundary; the outputs are the generator's return value."""


class ArtefactRefused(Exception):
    """The artefact is hostile, broken or not supported. The message names the member and what is wrong with it."""


class Interrupted(BaseException):
    """A run was stopped from outside, since it did not return in time. Not the kind of error that a run is tried again for."""


class LoadConfig(msgspec.Struct, frozen=True):
    """How to load an artefact. threads: processor threads that one segment may use.

    signature, segments: as an earlier load of the same artefact on the same kind of device settled them; then nothing is
    tried or measured again, as long as they fit what the artefact holds. None: not known.
    tenant: on whose pool of the device's memory it draws, where tenants have such. memory_bytes: what is reserved for the model and
    what it computes with, as far as it draws on no such pool; None: not said.
    """

    threads: int
    compute_units: ComputeUnits
    max_batch_size: int | None = None
    batch_axes: dict[str, int] = {}
    warmup: tuple[WarmupTensor, ...] = ()
    signature: Signature | None = None
    segments: tuple[str, ...] | None = None
    tenant: str = ""
    memory_bytes: Bytes | None = None


class LoadedModel(Protocol):
    """A model ready to run on one lane; used by one thread at a time.

    What a batch needs lives in its own generator, so that several may be in flight, also for different tenants.
    segments: what each `next` of a run goes through, in order, as `cutting.segment_name` calls it.
    """

    signature: Signature
    weight_bytes: Bytes
    segments: tuple[str, ...]

    def run(self, inputs: Tensors) -> Run:
        """Starts a batch. `inputs` hold every input of the signature that is not optional, joined along the batch axes."""
        ...

    def activation_bytes(self, inputs: Tensors) -> Bytes:
        """About the most memory that a batch of these inputs holds at once, its weights not counted. May run it, slowly."""
        ...

    def again(self, config: LoadConfig) -> LoadedModel:
        """The same model once more, over the same weights: its own signature, to be closed for itself. Tries its batch axes.

        The weights go with the last that is closed. Raises ArtefactRefused where it cannot be served so.
        """
        ...

    def close(self) -> None:
        """Lets go of everything it holds; a run in flight still ends."""
        ...


@runtime_checkable
class Interruptible(Protocol):
    """Something whose runs can be stopped while they compute."""

    def interrupt(self) -> None:
        """Ends the segment that runs now, if one does: it raises Interrupted. Any thread."""
        ...


class Runtime(Protocol):
    """One kind of artefact.

    starts_threads: loading starts threads that compute later on, if `LoadConfig.threads` is above one: they keep the
    priority of the thread that loads.
    """

    name: str
    starts_threads: bool

    def check(self, path: Path) -> None:
        """Raises ArtefactRefused unless the artefact is safe to deserialise. Deserialises nothing itself."""
        ...

    def load(self, path: Path, config: LoadConfig) -> LoadedModel:
        """Loads a checked artefact. Raises ArtefactRefused where it cannot be served."""
        ...
