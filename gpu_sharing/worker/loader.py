"""The loader: one thread that has models checked, loaded, measured and unloaded, so that the lane need not."""

from __future__ import annotations

import gc
import importlib
import os
import queue
import random
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_sharing.arbiter.switching import IN_FLIGHT_PER_REPLICA
from gpu_sharing.measurements import Profile
from gpu_sharing.memory.ledger import Ledger, LedgerFull
from gpu_sharing.memory.limits import data_bytes, trim
from gpu_sharing.runtimes.base import ArtefactRefused, Interrupted, Interruptible, LoadConfig, LoadedModel, Runtime
from gpu_sharing.units import SECOND, Bytes, ComputeUnits, MiB, Nanoseconds
from gpu_sharing.worker.background import Background
from gpu_sharing.worker.faults import OUT_OF_MEMORY, reason_of
from gpu_sharing.worker.hosted import Hosted
from gpu_sharing.worker.messages import Load, Loaded, LoadFailed, Stage, Unload, Unloaded
from gpu_sharing.worker.mover import Mover
from gpu_sharing.worker.outbox import Outbox
from gpu_sharing.worker.requests import Requests
from gpu_sharing.worker.shelf import Measured, Shelf, Shelved, variant
from gpu_sharing.worker.watch import Watch, Watched

if TYPE_CHECKING:
    from gpu_sharing.runtimes.stopwatch import Stopwatch

RuntimeFor = Callable[[str], Runtime]

MOST_PRETENDED_NS: Nanoseconds = 60 * SECOND
"""A stage of a load whose model is there already takes no longer."""

PRETENDED_SPREAD = (0.97, 1.05)
"""Two loads of one artefact never take equally long."""

UNSEEN_BYTES: Bytes = 512 * MiB
"""A load may take so much more than twice its weights before what it took is charged: libraries are imported on the way."""

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
        watch: Watch | None = None,
        load_limit_ns: Nanoseconds = 900 * SECOND,
        sleep: Callable[[float], None] = time.sleep,
        threads: int | None = None,
        enter: Callable[[], None] = lambda: None,
        settle: Callable[[], None] | None = None,
        mover: Mover | None = None,
    ) -> None:
        """runtime_for: finds a runtime by its name; None: gpu_sharing.runtimes.registry. watch: notices loads that
        have not ended after load_limit_ns. threads: of the processor, for one segment; None: as many as compute units.
        enter: called first on each thread that touches models, so that what they do on a device goes where it should.
        settle: waits for what such a thread has launched there; None: models compute on the processor.
        mover: takes care of weights that may leave the device; None: all stay.
        """
        self._outbox = outbox
        self._ledger = ledger
        self._device_kind = device_kind
        self._compute_units = compute_units
        self._clock = clock
        self._runtime_for = runtime_for or _registered
        self._watch = watch
        self._load_limit_ns = load_limit_ns
        self._sleep = sleep
        self._threads = threads
        self._enter = enter
        self._settle = settle
        self._mover = mover
        self._background = Background(enter=enter)
        self._shelf = Shelf()
        self._jobs: queue.SimpleQueue[Load | int | None] = queue.SimpleQueue()
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

    def stop(self) -> None:
        """Lets go of every model, and ends, once what it is at is done."""
        self._jobs.put(None)

    def run(self, requests: Requests, prewarm: Sequence[str]) -> None:
        """Until `stop`. prewarm: runtimes whose libraries are imported first."""
        self._enter()
        for name in prewarm:
            self._prewarm(name)
        while True:
            job = self._jobs.get()
            if job is None:
                for replica in list(self._models):
                    self._forget(replica)
                self._background.stop()
                return
            if isinstance(job, Load):
                self._load(job, requests)
            else:
                self._unload(job, requests)

    def _prewarm(self, name: str) -> None:
        try:
            self._background.call(lambda: self._runtime_for(name))
            importlib.import_module("gpu_sharing.runtimes.profile")
        except Exception:  # the load that needs it will say so to somebody who asked
            traceback.print_exc()

    def _load(self, load: Load, requests: Requests) -> None:
        if load.replica in self._models:
            self._outbox.send([LoadFailed(load.replica, False, f"replica {load.replica} is loaded already")])
            return
        try:
            hosted, memory_bytes = self._open(load)
            self._present.add(load.replica)
            requests.host(hosted)
        except BaseException as error:  # an artefact may raise anything
            self._present.discard(load.replica)
            self._forget(load.replica)
            # Trying again would hang again.
            refused = isinstance(error, ArtefactRefused | Interrupted)
            self._outbox.send([LoadFailed(load.replica, refused, _describe(load, error))])
            return
        finally:
            if self._watch is not None:
                self._watch.end("loader")
        self._outbox.send([Loaded(load.replica, hosted.model.signature, hosted.profile, memory_bytes)])

    def _open(self, load: Load) -> tuple[Hosted, Bytes]:
        path = Path(load.path)
        self._tell(load, "checking")
        runtime = self._runtime_for(load.format)
        if not self._models:
            # What libraries have made stays: looking through it at each collection would hold up the lane.
            gc.freeze()
        self._watch_over(load, runtime)
        self._background.call(lambda: runtime.check(path))
        expected_bytes = load.profile.weight_bytes if load.profile is not None else os.stat(path).st_size
        self._reserve(load.replica, expected_bytes)
        self._tell(load, "loading")
        config = self._config(load)
        shelved = self._shelf.find(load.digest, load.format)
        if shelved is None:
            shelved = self._read(load, runtime, path, config)
            moves = self._mover is not None and self._mover.adopt(load, shelved.origin)
            shelved.moves = moves
        else:
            self._have_again(load, shelved, config)
        profile, activation_bytes = self._profile(load, shelved, config)
        # Batches of a replica may be suspended while another of it runs: each keeps its activations.
        memory_bytes = shelved.charged_bytes + IN_FLIGHT_PER_REPLICA * activation_bytes
        self._reserve(load.replica, memory_bytes - (shelved.charged_bytes if shelved.moves else 0))
        return Hosted(load, self._models[load.replica], profile, self._compute_units), memory_bytes

    def _read(self, load: Load, runtime: Runtime, path: Path, config: LoadConfig) -> Shelved:
        """Loads the artefact, for this replica and for whoever brings the same one."""
        began, before_bytes = self._clock(), data_bytes()
        # Threads that go on computing for the lane must not inherit the low priority.
        politely = not (runtime.starts_threads and config.threads > 1)
        model = self._background.call(lambda: runtime.load(path, config)) if politely else runtime.load(path, config)
        self._models[load.replica] = model
        trim()
        grown_bytes = data_bytes() - before_bytes
        # A small file may hold a model that grows as it is opened.
        unseen = self._settle is None and grown_bytes > 2 * model.weight_bytes + UNSEEN_BYTES
        charged_bytes = grown_bytes if unseen else model.weight_bytes
        shelved = Shelved(model, charged_bytes, self._clock() - began, users={load.replica})
        self._shelf.put(load.digest, load.format, shelved)
        return shelved

    def _have_again(self, load: Load, shelved: Shelved, config: LoadConfig) -> None:
        """Has a model once more that is loaded already, as slowly as if it were not."""
        began = self._clock()
        if shelved.moves and self._mover is not None:
            self._mover.join(load.replica, like=min(shelved.users))
        try:
            self._models[load.replica] = self._background.call(lambda: shelved.origin.again(config))
            shelved.users.add(load.replica)
        finally:
            self._pretend(shelved.loading_ns - (self._clock() - began))

    def _reserve(self, replica: int, asked_bytes: Bytes) -> None:
        if self._mover is None:
            self._ledger.reserve(replica, asked_bytes)
        else:
            self._mover.reserve(replica, asked_bytes)

    def _pretend(self, rest_ns: Nanoseconds) -> None:
        self._sleep(max(0, min(rest_ns, MOST_PRETENDED_NS)) * random.uniform(*PRETENDED_SPREAD) / SECOND)

    def _config(self, load: Load) -> LoadConfig:
        known = self._known(load)
        return LoadConfig(
            threads=self._compute_units if self._threads is None else self._threads,
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

    def _profile(self, load: Load, shelved: Shelved, config: LoadConfig) -> tuple[Profile, Bytes]:
        known, model = self._known(load), self._models[load.replica]
        same_cut = known is not None and config.segments in (None, model.segments)
        if known is not None and same_cut and (known.on(self._compute_units) or not known.points):
            return known, max((point.activation_bytes for point in known.points), default=0)
        measured = shelved.measured.get(variant(config))
        if measured is None:
            measured = shelved.measured[variant(config)] = self._measure(load, model, config)
        else:
            for stage, took in measured.stages:
                self._tell(load, stage)
                self._pretend(took)
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

    def _watch_over(self, load: Load, runtime: Runtime) -> None:
        if self._watch is None:
            return
        label = f"replica {load.replica}, model {load.model!r} version {load.version}: loading"
        stop = runtime.interrupt if isinstance(runtime, Interruptible) else None
        self._watch.begin(
            "loader",
            Watched(
                label,
                self._load_limit_ns,
                stop,
                # Trying again would hang again.
                lambda message: self._outbox.send([LoadFailed(load.replica, True, message)]),
            ),
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
        if self._mover is None:
            self._ledger.release(replica)
        else:
            self._mover.release(replica)
        for each in self._shelf.leave(replica, model) if model is not None else ():
            try:
                each.close()
            except Exception:  # the model's own clean-up
                traceback.print_exc()
        if self._mover is not None:
            self._mover.leave(replica)
        if model is None:
            return
        del model
        # Programs are full of circles, which hold their weights.
        gc.collect()
        trim()

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
    if reason_of(error) == OUT_OF_MEMORY:
        return f"{label}: there is not enough memory to load it: {type(error).__name__}: {words}"
    return f"{label}: {words}" if isinstance(error, ArtefactRefused) else f"{label}: {type(error).__name__}: {words}"
