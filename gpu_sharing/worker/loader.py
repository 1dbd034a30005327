"""The loader: one thread that has models checked, loaded, measured and unloaded, so that the lane need not."""

from __future__ import annotations

import gc
import importlib
import os
import queue
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from gpu_sharing.memory.accounts import Accounts
from gpu_sharing.memory.ledger import Ledger, LedgerFull
from gpu_sharing.memory.limits import data_bytes, trim
from gpu_sharing.runtimes.base import ArtefactRefused, Interrupted, Interruptible, LoadConfig, LoadedModel, Runtime
from gpu_sharing.units import SECOND, Bytes, ComputeUnits, MiB, Nanoseconds
from gpu_sharing.worker.background import Background
from gpu_sharing.worker.charges import Charges
from gpu_sharing.worker.faults import OUT_OF_MEMORY, reason_of
from gpu_sharing.worker.hosted import Hosted
from gpu_sharing.worker.messages import Load, Loaded, LoadFailed, Stage, Unload, Unloaded
from gpu_sharing.worker.mover import Mover
from gpu_sharing.worker.outbox import Outbox
from gpu_sharing.worker.profiling import Profiling
from gpu_sharing.worker.requests import Requests
from gpu_sharing.worker.shelf import Shelf, Shelved
from gpu_sharing.worker.watch import Watch, Watched

RuntimeFor = Callable[[str], Runtime]

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
        accounts: Accounts | None = None,
    ) -> None:
        """runtime_for: finds a runtime by its name; None: gpu_sharing.runtimes.registry. watch: notices loads that
        have not ended after load_limit_ns. threads: of the processor, for one segment; None: as many as compute units.
        enter: called first on each thread that touches models, so that what they do on a device goes where it should.
        settle: waits for what such a thread has launched there; None: models compute on the processor.
        mover: takes care of weights that may leave the device; None: all stay. accounts: tenants' pools there; None: none.
        """
        self._outbox = outbox
        self._charges = Charges(ledger, mover, accounts)
        self._compute_units = compute_units
        self._clock = clock
        self._runtime_for = runtime_for or _registered
        self._watch = watch
        self._load_limit_ns = load_limit_ns
        self._enter = enter
        self._settle = settle
        self._mover = mover
        self._background = Background(enter=enter)
        self._profiling = Profiling(
            device_kind=device_kind,
            compute_units=compute_units,
            threads=threads,
            clock=clock,
            sleep=sleep,
            settle=settle,
            background=self._background,
            tell=self._tell,
        )
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
            _let_go_of_frames(error)
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
        memory_bytes = self._charges.expect(load, expected_bytes)
        self._tell(load, "loading")
        config = self._profiling.config(load, memory_bytes)
        shelved = self._shelf.find(load.digest, load.format)
        if shelved is None:
            shelved = self._read(load, runtime, path, config)
            shelved.moves = self._charges.adopt(load, shelved.origin)
        else:
            self._have_again(load, shelved, config)
        profile, activation_bytes = self._profiling.profile(load, self._models[load.replica], shelved, config)
        charged = self._charges.settle(load, shelved, activation_bytes)
        return Hosted(load, self._models[load.replica], profile, self._compute_units), charged

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
            self._profiling.pretend(shelved.loading_ns - (self._clock() - began))

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
        for each in self._shelf.leave(replica, model) if model is not None else ():
            try:
                each.close()
            except Exception:  # the model's own clean-up
                traceback.print_exc()
            del each
        if model is not None:
            del model
            # Programs are full of circles, which hold their weights.
            gc.collect()
            trim()
        self._charges.release(replica)
        if self._mover is not None:
            self._mover.leave(replica)

    def _tell(self, load: Load, stage: str) -> None:
        self._outbox.send([Stage(load.replica, stage)])


def _let_go_of_frames(error: BaseException | None) -> None:
    """What they still hold lies in memory that is to be given back."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


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
