"""An executor in virtual time: obeys the scheduler's commands, runs requests on simulated lanes. PURE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.memory.ledger import LedgerFull
from gpu_sharing.simulation.calls import Answer, Hosting, SimulatedRequest
from gpu_sharing.simulation.device import SimulatedLanes
from gpu_sharing.simulation.kernel import Kernel, Trace
from gpu_sharing.simulation.lane import SimulatedLane
from gpu_sharing.simulation.models import SimulatedModel
from gpu_sharing.units import MS, Bytes, GiB, Nanoseconds
from services.scheduler.core.catalogue import Key, Profile, Ref
from services.scheduler.core.events import Command, SendLoad, SendUnload, SendUpdate
from services.scheduler.core.reports import Device, Hello, Lane, ReplicaReport, Report, Seen

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
        lanes: int = 1,
        memory_bytes: Bytes = 16 * GiB,
    ) -> None:
        """models: what each model costs on this device."""
        self._kernel = kernel
        self._name = name
        self._models = models
        self._on_report = on_report
        self._held: dict[int, _Held] = {}
        self._memory_bytes = memory_bytes
        self.device = SimulatedLanes(kernel, (1,) * lanes, memory_bytes=memory_bytes)
        self.lanes = [
            SimulatedLane(
                kernel,
                self.device,
                Arbiter,
                chance=chance,
                on_answer=on_answer,
                on_gone=self._gone,
                number=number,
                trace=trace,
            )
            for number in range(lanes)
        ]

    def hello(self) -> Hello:
        """Its first words to the scheduler."""
        lanes = tuple(Lane(number, 0, 1) for number in range(len(self.lanes)))
        device = Device("simulated:device", len(self.lanes), self._memory_bytes, lanes)
        return Hello(self._name, "1", self._name, device, self.report())

    def report(self) -> Report:
        """Everything it holds."""
        replicas = tuple(self._tell(replica, held) for replica, held in sorted(self._held.items()))
        return Report(replicas, memory_used_bytes=self.device.ledger.used_bytes)

    def obey(self, command: Command) -> None:
        """Takes a command."""
        match command:
            case SendLoad():
                self._held[command.replica_id] = _Held(command)
                self._kernel.after(LOAD_NS, lambda: self._load(command))
            case SendUnload():
                self._unload(command)
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
        model = self._models[load.ref.key]
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
            profile=Profile("simulated:device", held.memory_bytes) if ready else None,
            memory_bytes=held.memory_bytes,
            bandwidth=held.load.terms.bandwidth,
        )
