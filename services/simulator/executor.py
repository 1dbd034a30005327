"""An executor in virtual time: obeys the scheduler's commands, runs requests on simulated lanes. PURE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.memory.ledger import LedgerFull
from gpu_sharing.partitioning.partitions import Partitions
from gpu_sharing.simulation.calls import Answer, Hosting, SimulatedRequest
from gpu_sharing.simulation.contention import overlapping
from gpu_sharing.simulation.device import SimulatedLanes
from gpu_sharing.simulation.kernel import Kernel, Trace
from gpu_sharing.simulation.lane import SimulatedLane
from gpu_sharing.simulation.models import SimulatedModel
from gpu_sharing.units import MS, Bytes, GiB, Nanoseconds
from services.common.objectives import Point
from services.scheduler.core.catalogue import Key, Profile, Ref
from services.scheduler.core.events import Command, SendLayout, SendLoad, SendUnload, SendUpdate
from services.scheduler.core.reports import Device, Hello, Lane, Layout, ReplicaReport, Report, Seen, UsageReport

LOAD_NS: Nanoseconds = 200 * MS
"""How long a model takes to load."""


@dataclass(slots=True)
class _Held:
    load: SendLoad
    state: Seen = Seen.LOADING
    message: str = ""
    memory_bytes: Bytes = 0


class SimulatedExecutor:
    """One device with its lanes, and what the scheduler has told it to hold.

    on_report: called with each new report.
    """

    def __init__(
        self,
        kernel: Kernel,
        name: str,
        models: Mapping[Key, SimulatedModel],
        *,
        chance: np.random.Generator,
        on_answer: Callable[[Answer], None],
        on_report: Callable[[str, Report], None],
        trace: Trace,
        partitions: Partitions,
        memory_bytes: Bytes = 16 * GiB,
    ) -> None:
        """models: what each model costs on one of the device's compute units. partitions: the first layout is in force."""
        self._kernel = kernel
        self._name = name
        self._models = models
        self._on_report = on_report
        self._held: dict[int, _Held] = {}
        self._memory_bytes = memory_bytes
        self._keys: dict[int, Key] = {}
        self._partitions = partitions
        self._pinned = False
        self.layout = 0
        units = tuple(map(len, partitions.lanes))
        contention = overlapping(partitions.lanes)
        self.device = SimulatedLanes(kernel, units, memory_bytes=memory_bytes, contention=contention)
        self.lanes = [
            SimulatedLane(
                kernel,
                self.device,
                partial(Arbiter, capacity=partitions.capacity(number)),
                chance=chance,
                on_answer=on_answer,
                on_gone=self._gone,
                number=number,
                trace=trace,
            )
            for number in range(len(units))
        ]

    def hello(self) -> Hello:
        """Its first words to the scheduler."""
        parts = self._partitions
        lanes = tuple(
            Lane(number, number, len(units), parts.memory_bytes(number, self._memory_bytes))
            for number, units in enumerate(parts.lanes)
        )
        layouts = tuple(map(Layout, parts.names, parts.layouts))
        device = Device("simulated:device", parts.compute_units, self._memory_bytes, lanes, layouts=layouts)
        return Hello(self._name, "1", self._name, device, self.report())

    def report(self) -> Report:
        """Everything it holds."""
        replicas = tuple(self._tell(replica, held) for replica, held in sorted(self._held.items()))
        return Report(
            replicas,
            usage=tuple(self._usage()),
            memory_used_bytes=self.device.ledger.used_bytes,
            layout=self.layout,
            layout_pinned=self._pinned,
        )

    def _usage(self) -> Iterator[UsageReport]:
        used: dict[Key, Nanoseconds] = {}
        for lane in self.lanes:
            for replica, device_ns in lane.used_ns.items():
                used[self._keys[replica]] = used.get(self._keys[replica], 0) + device_ns
        return (UsageReport(key, "1", device_ns) for key, device_ns in sorted(used.items()))

    def obey(self, command: Command) -> None:
        """Takes a command."""
        match command:
            case SendLoad():
                self._held[command.replica_id] = _Held(command)
                self._keys[command.replica_id] = command.ref.key
                self._kernel.after(LOAD_NS, lambda: self._load(command))
            case SendUnload():
                self._unload(command)
            case SendLayout():
                self.layout, self._pinned = command.layout, command.pinned
            case SendUpdate():
                held = self._held.get(command.replica_id)
                if held is not None and held.state is Seen.READY:
                    self.lanes[held.load.lane].update(command.replica_id, command.terms.bandwidth, command.terms.weight)
        self._on_report(self._name, self.report())

    def submit(self, request: SimulatedRequest) -> bool:
        """Takes a request; False where it has no such replica."""
        held = self._held.get(request.replica)
        if held is None or held.state is Seen.LOADING:
            return False
        self.lanes[held.load.lane].submit(request)
        return True

    def check_invariants(self) -> None:
        """Raises AssertionError unless every lane's books agree."""
        for lane in self.lanes:
            lane.check_invariants()

    def _load(self, load: SendLoad) -> None:
        held = self._held.get(load.replica_id)
        if held is None or held.state is not Seen.LOADING:
            return
        model = self._models[load.ref.key].on(len(self._partitions.lanes[load.lane]))
        before = self.device.ledger.used_bytes
        hosting = Hosting(load.replica_id, model, load.terms.bandwidth, load.terms.weight)
        try:
            self.lanes[load.lane].host(hosting)
        except LedgerFull as full:
            held.state, held.message = Seen.FAILED, str(full)
        else:
            held.state, held.memory_bytes = Seen.READY, self.device.ledger.used_bytes - before
        self._on_report(self._name, self.report())

    def _unload(self, unload: SendUnload) -> None:
        held = self._held.get(unload.replica_id)
        if held is None:
            return
        if held.state is not Seen.READY:
            del self._held[unload.replica_id]
            return
        held.state = Seen.DRAINING
        self.lanes[held.load.lane].unload(unload.replica_id, int(unload.drain_s * 1e9))

    def _gone(self, replica: int) -> None:
        self._held.pop(replica, None)
        self._kernel.after(0, lambda: self._on_report(self._name, self.report()))

    def _tell(self, replica: int, held: _Held) -> ReplicaReport:
        ref: Ref = held.load.ref
        ready = held.state is Seen.READY
        return ReplicaReport(
            replica,
            ref,
            held.load.lane,
            held.state,
            held.message,
            signature=b"simulated" if ready else None,
            profile=self._profile(held) if ready else None,
            memory_bytes=held.memory_bytes,
            bandwidth=held.load.terms.bandwidth,
        )

    def _profile(self, held: _Held) -> Profile:
        points = self._models[held.load.ref.key].on(len(self._partitions.lanes[held.load.lane])).points()
        told = (Point(each.rows, each.shape_bucket, each.compute_units, each.p50_ns, each.p99_ns) for each in points)
        return Profile("simulated:device", held.memory_bytes, points=tuple(told))
