"""The loader: one thread that checks, loads, measures and unloads models, so that the lane need not."""

from __future__ import annotations

import importlib
import os
import queue
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from gpu_sharing.arbiter.switching import IN_FLIGHT_PER_REPLICA
from gpu_sharing.measurements import Profile
from gpu_sharing.memory.ledger import Ledger, LedgerFull
from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, LoadedModel, Runtime
from gpu_sharing.units import Bytes, ComputeUnits, Nanoseconds
from gpu_sharing.worker.background import in_background
from gpu_sharing.worker.hosted import Hosted
from gpu_sharing.worker.messages import Load, Loaded, LoadFailed, Stage, Unload, Unloaded
from gpu_sharing.worker.outbox import Outbox
from gpu_sharing.worker.requests import Requests

RuntimeFor = Callable[[str], Runtime]
Opened = TypeVar("Opened")

_MESSAGE_CHARACTERS = 500


class Loader:
    """Runs jobs in order on the thread that calls `run`. Other threads only queue them."""

    def __init__(
        self,
        outbox: Outbox,
        ledger: Ledger,
        *,
        device_kind: str,
        compute_units: ComputeUnits,
        clock: Callable[[], Nanoseconds],
        runtime_for: RuntimeFor | None = None,
        yields: bool = False,
    ) -> None:
        """runtime_for: finds a runtime by its name; None: gpu_sharing.runtimes.registry. yields: to import and open models
        at low priority, so that lanes and services on the same cores are not starved."""
        self._outbox = outbox
        self._ledger = ledger
        self._device_kind = device_kind
        self._compute_units = compute_units
        self._clock = clock
        self._runtime_for = runtime_for or _registered
        self._yields = yields
        self._jobs: queue.SimpleQueue[Load | int] = queue.SimpleQueue()
        self._models: dict[int, LoadedModel] = {}
        self._present: set[int] = set()

    @property
    def is_empty(self) -> bool:
        """Every replica that was Loaded has been Unloaded, and its executor told so."""
        return not self._present

    def load(self, load: Load) -> None:
        """Queues a load. Answered by Stage (several), then Loaded or LoadFailed."""
        self._jobs.put(load)

    def unload(self, replica: int) -> None:
        """Queues the unloading of a replica that the arbiter has let go of. Answered by Unloaded."""
        self._jobs.put(replica)

    def run(self, requests: Requests, prewarm: Sequence[str]) -> None:
        """For ever. prewarm: runtimes whose libraries are imported first."""
        for name in prewarm:
            self._prewarm(name)
        while True:
            job = self._jobs.get()
            if isinstance(job, Load):
                self._load(job, requests)
            else:
                self._unload(job, requests)

    def _prewarm(self, name: str) -> None:
        try:
            self._gently(lambda: self._runtime_for(name))
            importlib.import_module("gpu_sharing.runtimes.profile")
        except Exception:  # the load that needs it will say so to somebody who asked
            traceback.print_exc()

    def _load(self, load: Load, requests: Requests) -> None:
        try:
            hosted, memory_bytes = self._open(load)
            self._present.add(load.replica)
            requests.host(hosted)
        except BaseException as error:  # an artefact may raise anything, and its share may not fit
            self._forget(load.replica)
            self._present.discard(load.replica)
            refused = isinstance(error, ArtefactRefused)
            self._outbox.send([LoadFailed(load.replica, refused, _describe(load, error))])
            return
        self._outbox.send([Loaded(load.replica, hosted.model.signature, hosted.profile, memory_bytes)])

    def _open(self, load: Load) -> tuple[Hosted, Bytes]:
        if load.replica in self._models:
            raise ValueError(f"replica {load.replica} is loaded already")
        path = Path(load.path)
        self._tell(load, "checking")
        runtime = self._runtime_for(load.format)
        runtime.check(path)
        expected_bytes = load.profile.weight_bytes if load.profile is not None else os.stat(path).st_size
        self._ledger.reserve(load.replica, expected_bytes)
        self._tell(load, "loading")
        config = self._config(load)
        model = self._models[load.replica] = self._gently(lambda: runtime.load(path, config))
        profile, activation_bytes = self._profile(load, model, config)
        # Batches of a replica may be suspended while another of it runs: each keeps its activations.
        memory_bytes = model.weight_bytes + IN_FLIGHT_PER_REPLICA * activation_bytes
        self._ledger.reserve(load.replica, memory_bytes)
        return Hosted(load, model, profile), memory_bytes

    def _gently(self, work: Callable[[], Opened]) -> Opened:
        # What is measured afterwards is measured at the usual priority, as it will run.
        return in_background(work, makes_threads=self._compute_units > 1) if self._yields else work()

    def _config(self, load: Load) -> LoadConfig:
        known = self._known(load)
        return LoadConfig(
            threads=self._compute_units,
            compute_units=self._compute_units,
            max_batch_size=load.max_batch_size,
            batch_axes=load.batch_axes,
            warmup=load.warmup,
            signature=load.signature,
            segments=tuple(segment.name for segment in known.segments) or None if known is not None else None,
        )

    def _known(self, load: Load) -> Profile | None:
        """The profile that was given along, if it was measured on this artefact and on such a device."""
        known = load.profile
        return known if known and (known.digest, known.device_kind) == (load.digest, self._device_kind) else None

    def _profile(self, load: Load, model: LoadedModel, config: LoadConfig) -> tuple[Profile, Bytes]:
        known = self._known(load)
        if known is not None and config.segments in (None, model.segments):
            return known, max((point.activation_bytes for point in known.points), default=0)
        from gpu_sharing.runtimes.profile import measure
        from gpu_sharing.runtimes.stopwatch import Stopwatch

        return measure(
            model,
            config,
            digest=load.digest,
            device_kind=self._device_kind,
            stopwatch=Stopwatch.of_this_thread(self._clock, threads=config.threads),
            on_stage=lambda stage: self._tell(load, stage),
        )

    def _unload(self, replica: int, requests: Requests) -> None:
        if requests.hosts(replica):
            # It was still loading when it was to go.
            requests.take([Unload(replica, drain_ns=0)])
            return
        self._forget(replica)
        self._outbox.send([Unloaded(replica)])
        self._present.discard(replica)

    def _forget(self, replica: int) -> None:
        model = self._models.pop(replica, None)
        self._ledger.release(replica)
        if model is None:
            return
        try:
            model.close()
        except Exception:  # the model's own clean-up
            traceback.print_exc()

    def _tell(self, load: Load, stage: str) -> None:
        self._outbox.send([Stage(load.replica, stage)])


def _registered(name: str) -> Runtime:
    from gpu_sharing.runtimes.registry import runtime_for

    return runtime_for(name)


def _describe(load: Load, error: BaseException) -> str:
    words = " ".join(str(error).split())[:_MESSAGE_CHARACTERS]
    label = f"model {load.model!r} version {load.version}"
    if isinstance(error, LedgerFull):
        return f"{label}: no room on the device: {words}"
    return f"{label}: {words}" if isinstance(error, ArtefactRefused) else f"{label}: {type(error).__name__}: {words}"
