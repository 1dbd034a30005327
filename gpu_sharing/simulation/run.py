"""Runs a scenario to its end, and says what became of everyone. PURE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.simulation.calls import Answer, Hosting, SimulatedRequest, SliceRan
from gpu_sharing.simulation.contention import NONE, SharedMemory
from gpu_sharing.simulation.device import SimulatedLanes
from gpu_sharing.simulation.faults import FaultPlan
from gpu_sharing.simulation.kernel import Kernel, Trace
from gpu_sharing.simulation.lane import SimulatedLane
from gpu_sharing.simulation.scenario import Arrive, Clients, Happening, Scenario, Tenant, Unload, Update
from gpu_sharing.units import Nanoseconds

MakeArbiter = Callable[[int], Arbiter]


@dataclass
class Outcome:
    """What became of a scenario. answers: in the order in which they came. slices: by lane, in order."""

    scenario: Scenario
    answers: list[Answer] = field(default_factory=list)
    slices: list[SliceRan] = field(default_factory=list)
    used_ns: dict[int, Nanoseconds] = field(default_factory=dict)
    busy_ns: list[Nanoseconds] = field(default_factory=list)
    ended: Nanoseconds = 0
    replaced: int = 0
    overdue: int = 0
    digest: str = ""
    lines: list[str] = field(default_factory=list)

    def of(self, replica: int) -> list[Answer]:
        """Its answers."""
        return [answer for answer in self.answers if answer.request.replica == replica]

    def attainment(self, replica: int) -> float:
        """Of its requests that nobody cancelled, the part that was answered within its objective; 1.0 of none."""
        counted = [answer for answer in self.of(replica) if answer.reason != "CANCELLED"]
        return sum(map(is_met, counted)) / len(counted) if counted else 1.0


def is_met(answer: Answer) -> bool:
    """Answered well, and by its objective where it has one."""
    objective = answer.request.objective
    return answer.reason == "OK" and (objective is None or answer.moment <= objective)


class Run:
    """One run. Use `simulate`, or this to look at it on its way."""

    def __init__(
        self,
        scenario: Scenario,
        chance: np.random.Generator,
        make_arbiter: MakeArbiter | None = None,
        *,
        keep_trace: bool = False,
        audit_every: int = 16,
    ) -> None:
        """chance: where real costs and faults are drawn from. make_arbiter: of a lane's number."""
        self.kernel = Kernel()
        self.outcome = Outcome(scenario)
        self._scenario = scenario
        self._trace = Trace(keep=keep_trace)
        self._calls = 0
        self._clients: dict[int, Clients] = {}
        make = make_arbiter or (lambda lane: Arbiter(lane=lane, ahead=scenario.ahead))
        self.device = SimulatedLanes(
            self.kernel,
            (1,) * scenario.lanes,
            memory_bytes=scenario.memory_bytes,
            contention=SharedMemory() if scenario.memory_shared else NONE,
        )
        faults = FaultPlan({each.replica: each.faults for each in scenario.tenants if each.faults is not None})
        self._tenants = {tenant.replica: tenant for tenant in scenario.tenants}
        self.lanes = [
            SimulatedLane(
                self.kernel,
                self.device,
                partial(make, number),
                chance=chance,
                on_answer=self._answered,
                number=number,
                faults=faults,
                trace=self._trace,
                boundary_ns=scenario.boundary_ns,
                boundary_error=scenario.boundary_error,
                watchdog_ns=scenario.watchdog_ns,
                audit_every=audit_every,
                ahead=scenario.ahead,
            )
            for number in range(scenario.lanes)
        ]
        for tenant in scenario.tenants:
            self.kernel.at(tenant.loaded_at, partial(self._load, tenant))
        for happening in sorted(scenario.happenings, key=lambda each: each.at):
            self.kernel.at(happening.at, partial(self._happen, happening))

    def finish(self) -> Outcome:
        """Runs to the end, audits, and tells."""
        self.kernel.run()
        outcome = self.outcome
        for lane in self.lanes:
            lane.check_invariants()
            outcome.slices += lane.slices
            outcome.replaced += lane.replaced
            outcome.overdue += lane.overdue
            for replica, used in lane.used_ns.items():
                outcome.used_ns[replica] = outcome.used_ns.get(replica, 0) + used
        outcome.busy_ns = list(self.device.busy_ns)
        outcome.ended = self.kernel.now
        outcome.digest = self._trace.digest()
        outcome.lines = self._trace.lines
        self._audit()
        return outcome

    def _audit(self) -> None:
        """Raises AssertionError unless every call has been answered exactly once and no device time is lost."""
        answered = sorted(answer.request.call for answer in self.outcome.answers)
        if answered != list(range(self._calls)):
            raise AssertionError(f"{self._calls} calls, answered: {answered}")
        if sum(self.outcome.used_ns.values()) != sum(self.outcome.busy_ns):
            raise AssertionError(f"device time used {self.outcome.used_ns}, given {self.outcome.busy_ns}")
        if sum(ran.ended - ran.started for ran in self.outcome.slices) != sum(self.outcome.busy_ns):
            raise AssertionError("the slices do not add up to the time the lanes were busy")

    def _load(self, tenant: Tenant) -> None:
        hosting = Hosting(tenant.replica, tenant.model, tenant.bandwidth, tenant.weight, tenant.error)
        self.lanes[tenant.lane].host(hosting)

    def _happen(self, happening: Happening) -> None:
        tenant = self._tenants[happening.replica]
        lane = self.lanes[tenant.lane]
        match happening:
            case Arrive():
                self._arrive(tenant, lane, happening)
            case Clients():
                for _ in range(happening.count):
                    self._ask(tenant, lane, happening)
            case Unload():
                lane.unload(happening.replica, happening.drain_ns)
            case Update():
                lane.update(happening.replica, happening.bandwidth, happening.weight)

    def _ask(self, tenant: Tenant, lane: SimulatedLane, clients: Clients) -> None:
        if self.kernel.now < clients.until:
            self._clients[self._calls] = clients
            self._submit(tenant, lane, clients.rows)

    def _answered(self, answer: Answer) -> None:
        self.outcome.answers.append(answer)
        clients = self._clients.pop(answer.request.call, None)
        if clients is not None:
            tenant = self._tenants[clients.replica]
            self.kernel.after(max(1, clients.think_ns), partial(self._ask, tenant, self.lanes[tenant.lane], clients))

    def _arrive(self, tenant: Tenant, lane: SimulatedLane, arrive: Arrive) -> None:
        if arrive.cancelled_after is not None:
            self.kernel.after(arrive.cancelled_after, partial(lane.cancel, self._calls))
        self._submit(tenant, lane, arrive.rows, arrive.later_ns)

    def _submit(self, tenant: Tenant, lane: SimulatedLane, rows: int, later_ns: Nanoseconds = 0) -> None:
        now = self.kernel.now
        call = self._calls
        self._calls += 1
        due, target = (
            None if each is None else now + each + later_ns for each in (tenant.deadline_ns, tenant.objective_ns)
        )
        request = SimulatedRequest(call, tenant.replica, now, rows, due, target)
        lane.submit(request)


def simulate(
    scenario: Scenario, make_arbiter: MakeArbiter | None = None, *, keep_trace: bool = False, audit_every: int = 16
) -> Outcome:
    """Runs a scenario with the chance that its seed stands for. Raises AssertionError where an invariant breaks.

    audit_every: boundaries between two audits of the arbiter; the last one always comes.
    """
    chance = np.random.Generator(np.random.PCG64(scenario.seed))
    return Run(scenario, chance, make_arbiter, keep_trace=keep_trace, audit_every=audit_every).finish()
