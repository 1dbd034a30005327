"""Profiles of what is loaded: known from before, measured, or measured for another replica of the same artefact."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpu_sharing.measurements import Profile
from gpu_sharing.runtimes.base import LoadConfig, LoadedModel
from gpu_sharing.units import SECOND, Bytes, ComputeUnits, Nanoseconds
from gpu_sharing.worker.background import Background
from gpu_sharing.worker.messages import Load
from gpu_sharing.worker.shelf import Measured, Shelved, variant

if TYPE_CHECKING:
    from gpu_sharing.runtimes.stopwatch import Stopwatch

MOST_PRETENDED_NS: Nanoseconds = 60 * SECOND
"""A stage of a load whose model is there already takes no longer."""

PRETENDED_SPREAD = (0.97, 1.05)
"""Two loads of one artefact never take equally long."""


class Profiling:
    """For the loader's thread."""

    def __init__(
        self,
        *,
        device_kind: str,
        compute_units: ComputeUnits,
        threads: int | None,
        clock: Callable[[], Nanoseconds],
        sleep: Callable[[float], None],
        settle: Callable[[], None] | None,
        background: Background,
        tell: Callable[[Load, str], None],
    ) -> None:
        """See `Loader`. background: where models run while they are measured. tell: that a stage has begun."""
        self._device_kind, self._compute_units, self._threads = device_kind, compute_units, threads
        self._clock, self._sleep, self._settle = clock, sleep, settle
        self._background, self._tell = background, tell

    def config(self, load: Load, memory_bytes: Bytes | None) -> LoadConfig:
        """How a load is to be carried out. memory_bytes: see LoadConfig."""
        known = self._known(load)
        return LoadConfig(
            threads=self._compute_units if self._threads is None else self._threads,
            compute_units=self._compute_units,
            max_batch_size=load.max_batch_size,
            batch_axes=load.batch_axes,
            warmup=load.warmup,
            signature=load.signature,
            segments=tuple(segment.name for segment in known.segments) or None if known is not None else None,
            tenant=load.tenant,
            memory_bytes=memory_bytes,
        )

    def _known(self, load: Load) -> Profile | None:
        """The profile that was given along, if it was measured on this artefact and on such a device."""
        known = load.profile
        return known if known and (known.digest, known.device_kind) == (load.digest, self._device_kind) else None

    def profile(self, load: Load, model: LoadedModel, shelved: Shelved, config: LoadConfig) -> tuple[Profile, Bytes]:
        """The replica's profile, and the largest activations: as they are known, as they were measured for another replica of the
        artefact, which takes as long as that took, or measured now."""
        known = self._known(load)
        same_cut = known is not None and config.segments in (None, model.segments)
        if known is not None and same_cut and (known.on(self._compute_units) or not known.points):
            return known, max((point.activation_bytes for point in known.points), default=0)
        measured = shelved.measured.get(variant(config))
        if measured is None:
            measured = shelved.measured[variant(config)] = self._measure(load, model, config)
        else:
            for stage, took in measured.stages:
                self._tell(load, stage)
                self.pretend(took)
        # What was measured on lanes of another size is kept beside it.
        profile = known.joined(measured.profile) if known is not None and same_cut else measured.profile
        return profile, measured.activation_bytes

    def _measure(self, load: Load, model: LoadedModel, config: LoadConfig) -> Measured:
        from gpu_sharing.runtimes.profile import measure

        moments: list[tuple[str, Nanoseconds]] = []

        def on_stage(stage: str) -> None:
            moments.append((stage, self._clock()))
            self._tell(load, stage)

        profile, activation_bytes = self._background.call(
            lambda: measure(
                model,
                config,
                digest=load.digest,
                device_kind=self._device_kind,
                stopwatch=self._stopwatch(config),
                on_stage=on_stage,
            )
        )
        ends = [moment for _, moment in moments[1:]] + [self._clock()]
        stages = tuple((stage, end - began) for (stage, began), end in zip(moments, ends, strict=True))
        return Measured(profile, activation_bytes, stages)

    def _stopwatch(self, config: LoadConfig) -> Stopwatch:
        from gpu_sharing.runtimes.stopwatch import Stopwatch

        settle, clock = self._settle, self._clock
        if settle is None:
            return Stopwatch.of_this_thread(clock, threads=config.threads)

        def ended() -> Nanoseconds:
            settle()
            return clock()

        # The thread waits for the device, whose time it is.
        return Stopwatch(ended)

    def pretend(self, rest_ns: Nanoseconds) -> None:
        """Lets so much time pass, about."""
        self._sleep(max(0, min(rest_ns, MOST_PRETENDED_NS)) * random.uniform(*PRETENDED_SPREAD) / SECOND)
