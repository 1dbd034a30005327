"""A worker's main loop: reads commands, keeps time, starts the lane and the loader."""

from __future__ import annotations

import functools
import os
import select
import socket
import threading
import time
from collections.abc import Callable

from gpu_sharing.arbiter.events import ArbiterStatistics
from gpu_sharing.arbiter.policies import arbiter_of
from gpu_sharing.devices.base import Device
from gpu_sharing.devices.host_regions import HostRegions
from gpu_sharing.memory.arena import Arena, ArenaView
from gpu_sharing.memory.berths import HostSpace
from gpu_sharing.memory.ledger import Ledger
from gpu_sharing.runtimes.base import Runtime
from gpu_sharing.units import MS, Nanoseconds
from gpu_sharing.worker import wire
from gpu_sharing.worker.ahead import AheadLane
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.lane import Lane
from gpu_sharing.worker.loader import Loader, RuntimeFor
from gpu_sharing.worker.messages import (
    Account,
    CloseRegion,
    Command,
    Load,
    OpenRegion,
    Ready,
    RegionFailed,
    Settled,
    Statistics,
    Stop,
    Unload,
    Used,
)
from gpu_sharing.worker.meter import Meter
from gpu_sharing.worker.mover import Mover
from gpu_sharing.worker.outbox import Outbox
from gpu_sharing.worker.reading import Reading
from gpu_sharing.worker.regions import Regions
from gpu_sharing.worker.requests import RequestCommand, Requests
from gpu_sharing.worker.residency import Residency
from gpu_sharing.worker.scatter import Outputs
from gpu_sharing.worker.seat import Seat
from gpu_sharing.worker.watch import Watch

STATISTICS_EVERY: Nanoseconds = 500 * MS
_LAST_ANSWERS: Nanoseconds = 250 * MS
"""After the grace: for the answers to what has not finished within it."""

HUNG_STATUS = 3
"""A worker's exit status where something in it did not return."""

_READ_BYTES = 1 << 18
_LANE_ENDS_S = 5.0
_OWN = (Load, Stop, Settled, OpenRegion, CloseRegion)
"""Commands that are the loop's own; the others are about requests."""


class WorkerLoop:
    """Reads commands on the thread that calls `run`, and on the lane's while that has nothing long to run; the loader has its own."""

    def __init__(
        self,
        config: WorkerConfig,
        device: Device,
        sock: socket.socket,
        inputs: ArenaView,
        outputs: Arena,
        *,
        runtime_for: RuntimeFor | None = None,
        meter: Meter | None = None,
        end_worker: Callable[[], None] = lambda: os._exit(HUNG_STATUS),
        seat: Seat | None = None,
    ) -> None:
        """runtime_for: finds a runtime by its name; None: the registered ones. meter: where its executor reads what was used.

        end_worker: where a thread cannot be freed, or the device is lost. seat: where the lane is on a device that computes by
        itself; None: on the processor.
        """
        clock = time.monotonic_ns
        units = len(config.cores) or device.compute_units
        self._config = config
        self._device = device
        self._seat, self._end_worker = seat, end_worker
        self._units = units
        self._socket = sock
        self._outbox = Outbox(sock)
        self._ledger = Ledger(device.memory_bytes if config.memory_bytes is None else config.memory_bytes)
        meter = Meter() if meter is None else meter
        self._meter = meter
        self._mover = self._mover_on(seat)
        self._decoder, self._readable = wire.commands(), select.poll()
        # What a mover or a device does by itself would not wake a lane that reads.
        self._reading = Reading(self._read, clock=clock, shared=seat is None and self._mover is None)
        self._watch = Watch(clock=clock, end_worker=end_worker, beat=self._beat)
        self._loader = Loader(
            self._outbox,
            self._ledger,
            device_kind=device.device_kind,
            compute_units=units,
            clock=clock,
            runtime_for=runtime_for or self._runtime_for,
            watch=self._watch,
            load_limit_ns=config.load_limit_ns,
            threads=None if seat is None else seat.threads,
            enter=seat.enter_loader if seat is not None else lambda: None,
            settle=None if seat is None else seat.settle,
            mover=self._mover,
            accounts=None if seat is None else seat.accounts,
        )
        arbiter = arbiter_of(
            config.policy,
            lane=config.lane,
            queue_limit=config.queue_limit,
            capacity=config.capacity,
            quantum_ns=config.quantum_ns,
            ahead=1 if seat is None else seat.stream.ahead,
        )
        self._requests = Requests(
            arbiter,
            Outputs(outputs),
            self._outbox,
            clock=clock,
            on_gone=self._loader.unload,
            residency=self._mover.residency if self._mover is not None else None,
            on_moves=self._mover.wake if self._mover is not None else lambda: None,
            reading=self._reading,
        )
        if self._mover is not None:
            self._mover.attach(self._requests)
        self._regions = self._regions_on(seat)
        self._lane = self._lane_on(seat, inputs.view, meter, clock, end_worker)
        self._clock = clock
        # As long as nothing has happened there is nothing to tell.
        self._told: tuple[ArbiterStatistics, int] = (arbiter.statistics(), self._ledger.used_bytes)
        self._tell_at: Nanoseconds = 0
        self._exit_at: Nanoseconds | None = None

    def _runtime_for(self, name: str) -> Runtime:
        """The runtime of that name, where this worker's models live. Python code is the operators' alone, wherever that is."""
        seat, config = self._seat, self._config
        if name != "python" and seat is not None and seat.runtime_for is not None:
            return seat.runtime_for(name)
        from gpu_sharing.runtimes.registry import runtime_for

        place_for = seat.place_for if seat is not None else None
        if place_for is None:
            from gpu_sharing.runtimes.python_place import Place

            limit_bytes = self._device.memory_bytes if config.memory_bytes is None else config.memory_bytes
            place_for = functools.partial(Place, limit_bytes=limit_bytes)
        return runtime_for(name, approved=config.python_artefacts, place_for=place_for)

    def _mover_on(self, seat: Seat | None) -> Mover | None:
        """None where weights stay on the device."""
        host_bytes = self._config.host_bytes
        if not host_bytes or (seat is not None and seat.space is None):
            return None
        space = HostSpace(host_bytes) if seat is None or seat.space is None else seat.space(host_bytes)
        residency = Residency(self._ledger.capacity_bytes)
        return Mover(residency, self._ledger, space, self._outbox, clock=time.monotonic_ns)

    def _regions_on(self, seat: Seat | None) -> Regions | None:
        """None where tensors come through the arenas alone."""
        match self._config.device_regions:
            case "on" if seat is not None and seat.regions is not None:
                return Regions(seat.regions, self._outbox.send)
            case "host":
                return Regions(HostRegions(), self._outbox.send)
            case _:
                return None

    def _lane_on(
        self,
        seat: Seat | None,
        inputs: memoryview,
        meter: Meter,
        clock: Callable[[], Nanoseconds],
        end_worker: Callable[[], None],
    ) -> Lane | AheadLane:
        hang_after_ns = self._config.hang_after_ns
        if seat is None:
            return Lane(
                self._requests,
                inputs,
                clock=clock,
                watch=self._watch,
                hang_after_ns=hang_after_ns,
                reading=self._reading,
                meter=meter,
                copies={(tenant, model): delay for tenant, model, delay in self._config.slow_copies},
                regions=self._regions,
            )
        return AheadLane(
            self._requests,
            inputs,
            seat.stream,
            clock=clock,
            watch=self._watch,
            hang_after_ns=hang_after_ns,
            end_worker=end_worker,
            enter=seat.enter_lane,
            meter=meter,
            regions=self._regions,
        )

    def run(self, pid: int) -> None:
        """Until Stop has been obeyed or the executor has closed the socket. wire.WireError where it talks rubbish."""
        self._outbox.send([self._ready(pid)])
        lane = threading.Thread(target=self._lane.run, name="lane", daemon=True)
        lane.start()
        prewarm = self._config.prewarm
        threading.Thread(target=self._loader.run, args=(self._requests, prewarm), name="loader", daemon=True).start()
        if self._mover is not None:
            threading.Thread(target=self._mover.run, name="mover", daemon=True).start()
        if self._config.spare_cores:  # of the processor: no lane elsewhere has any
            os.sched_setaffinity(0, {*self._config.cores, *self._config.spare_cores})
        threading.Thread(target=self._watch.run, name="watch", daemon=True).start()
        self._readable.register(self._socket, select.POLLIN)
        self._reading.run()
        self._watch.stop()
        self._requests.stop()
        self._tell_statistics()
        if self._seat is not None:
            # Another loop may be opened on the lane: its thread must have let go of the stream.
            lane.join(timeout=_LANE_ENDS_S)
            if lane.is_alive():
                self._end_worker()
            self._loader.stop()
            if self._mover is not None:
                self._mover.stop()
            if self._regions is not None:
                self._regions.stop()
            self._seat.close()

    def _ready(self, pid: int) -> Ready:
        device = self._device
        return Ready(pid, device.device_kind, device.backend, self._units, device.reason)

    def _read(self, wait: bool) -> bool:
        """Takes the commands that have come, then does what is due. False once there is nothing more to read."""
        due = self._requests.wake_at()
        if self._readable.poll(self._patience_ms(due) if wait else 0):
            data = self._socket.recv(_READ_BYTES)
            if not data:
                return False
            for commands in self._decoder.feed(data):
                self._take(commands)
        self._keep_time(due)
        return not self._is_over()

    def _beat(self, now: Nanoseconds) -> None:
        self._meter.beat(now)
        self._reading.beat()

    def _take(self, commands: list[Command]) -> None:
        """Runs of request commands are taken together, in the order in which everything came."""
        together: list[RequestCommand] = []
        for command in commands:
            if isinstance(command, _OWN):
                self._requests.take(together)
                together = []
                self._obey(command)
            else:
                together.append(command)
        if together:
            self._requests.take(together)

    def _obey(self, command: Load | Stop | Settled | OpenRegion | CloseRegion) -> None:
        if isinstance(command, Load):
            self._loader.load(command)
            return
        if isinstance(command, OpenRegion | CloseRegion):
            if self._regions is not None:
                self._regions.obey(command)
            elif isinstance(command, OpenRegion):
                self._outbox.send([RegionFailed(command.region, "UNSUPPORTED", "regions are switched off here")])
            return
        if isinstance(command, Settled):
            self._meter.free(command.replica)
            return
        self._exit_at = self._clock() + command.grace_ns + _LAST_ANSWERS
        self._reading.keep()
        self._requests.take([Unload(replica, command.grace_ns) for replica in self._requests.replicas()])

    def _is_over(self) -> bool:
        return self._exit_at is not None and (self._clock() >= self._exit_at or self._loader.is_empty)

    def _patience_ms(self, wake_at: Nanoseconds | None) -> float:
        """How long to wait for commands before something else is due."""
        moments = [wake_at, self._exit_at, self._tell_at]
        due = min(moment for moment in moments if moment is not None)
        # While it drains, nothing wakes this thread when the last request is answered.
        most_ms = STATISTICS_EVERY / MS if self._exit_at is None else 10.0
        return min(most_ms, max(0.0, (due - self._clock()) / MS))

    def _keep_time(self, wake_at: Nanoseconds | None) -> None:
        now = self._clock()
        if wake_at is not None and wake_at <= now:
            self._requests.pass_time()
        if now >= self._tell_at:
            self._tell_at = now + STATISTICS_EVERY
            self._tell_statistics()

    def _tell_statistics(self) -> None:
        statistics, memory_bytes = self._requests.statistics(), self._ledger.used_bytes
        if self._mover is not None:
            memory_bytes += self._mover.residency.residence.used_bytes
        if (statistics, memory_bytes) == self._told:
            return
        self._told = (statistics, memory_bytes)
        used = tuple(
            Used(replica.replica, replica.device_ns, replica.requests, replica.batches, replica.waiting)
            for replica in statistics.replicas
        )
        accounts = tuple(
            Account(
                each.tenant, each.guaranteed_ns, each.surplus_ns, each.gap_ns, each.guaranteed, each.surplus, each.gap,
                each.refused, each.revoked,
            )
            for each in statistics.tenants
        )  # fmt: skip
        self._outbox.send([Statistics(statistics.busy_ns, statistics.waiting, used, memory_bytes, accounts)])
