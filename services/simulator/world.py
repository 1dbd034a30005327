"""A whole fleet in virtual time: the scheduler's core places, the frontend's core routes, simulated lanes run. PURE."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import msgspec
import numpy as np

from gpu_sharing.partitioning.partitions import parse_layouts
from gpu_sharing.simulation.calls import Answer, SimulatedRequest
from gpu_sharing.simulation.kernel import Kernel, Trace
from gpu_sharing.simulation.models import SimulatedModel
from gpu_sharing.simulation.run import is_met
from gpu_sharing.units import MS, SECOND, US, Bytes, GiB, Nanoseconds
from services.common.errors import Refusal
from services.frontend.core import routes as told
from services.frontend.core.retries import Retries
from services.frontend.core.routing import RoutingTable
from services.frontend.core.verdict import RETRYABLE
from services.scheduler.core.catalogue import Key, Model, Slo, Tenant, TrafficClass, Version
from services.scheduler.core.events import (
    CatalogueChanged,
    CatalogueReplaced,
    Event,
    ExecutorAttached,
    ExecutorReported,
    SendLayout,
    SendLoad,
    SendUnload,
    SendUpdate,
    Tick,
)
from services.scheduler.core.reports import Report
from services.scheduler.core.routes import Route, RoutesChanged
from services.scheduler.core.scheduler import Scheduler
from services.simulator.executor import SimulatedExecutor

HOP_NS: Nanoseconds = 300 * US
"""From a frontend to an executor."""

TICK_NS: Nanoseconds = 500 * MS


@dataclass(frozen=True, slots=True)
class Load:
    """One tenant's model and its requests. arrivals: moments, ascending. objective_ns: None: class `batch`.

    pushed: when it comes. unloaded, loaded: moments at which somebody asks for that.
    """

    tenant: Tenant
    name: str
    model: SimulatedModel
    arrivals: tuple[Nanoseconds, ...]
    objective_ns: Nanoseconds | None = None
    replicas: int = 1
    pushed: Nanoseconds = 0
    unloaded: tuple[Nanoseconds, ...] = ()
    loaded: tuple[Nanoseconds, ...] = ()

    @property
    def key(self) -> Key:
        """Of the model."""
        return Key(self.tenant.name, self.name)


@dataclass(slots=True)
class Fared:
    """What became of one model's requests: outcomes counted by reason, those met, and the times to answers."""

    outcomes: Counter[str] = field(default_factory=Counter)
    met: int = 0
    took_ns: list[Nanoseconds] = field(default_factory=list)

    @property
    def attainment(self) -> float:
        """The part that was answered within its objective; 1.0 of none."""
        return self.met / self.outcomes.total() if self.outcomes else 1.0


class World:
    """Executors by name, one scheduler, one frontend, and the loads of `loads`."""

    def __init__(
        self,
        loads: Iterable[Load],
        chance: np.random.Generator,
        *,
        executors: int = 1,
        lanes: int = 1,
        layouts: str = "",
        memory_bytes: Bytes = 16 * GiB,
    ) -> None:
        """lanes, memory_bytes: of each executor. layouts: that its device is prepared for, as "0-3|0-1;2-3", in place of `lanes`."""
        self.kernel = Kernel()
        self.trace = Trace()
        self.loads = {load.key: load for load in loads}
        self.fared = {key: Fared() for key in self.loads}
        self.scheduler = Scheduler(epoch=1, now=0.0)
        self.routes = RoutingTable(lambda _: told.Link.UP)
        self._outstanding: dict[int, told.Replica] = {}
        self._calls: dict[int, Key] = {}
        self._answered = 0
        self._retries = Retries()
        self._routed: dict[int, tuple[told.Route, told.Version]] = {}
        self.retried = 0
        units = 1 + max(map(int, re.findall(r"\d+", layouts)), default=lanes - 1)
        partitions = parse_layouts(layouts or ";".join(map(str, range(lanes))), range(units))
        models = {key: load.model for key, load in self.loads.items()}
        self.executors = {
            name: SimulatedExecutor(
                self.kernel,
                name,
                models,
                chance=chance,
                on_answer=self._answer,
                on_report=self._report,
                trace=self.trace,
                partitions=partitions,
                memory_bytes=memory_bytes,
            )
            for name in (f"executor-{number}" for number in range(executors))
        }

    def run(self, until: Nanoseconds) -> dict[Key, Fared]:
        """Runs until then and on until every request is answered; audits; what became of each load."""
        first = tuple(_model(load) for load in self.loads.values() if not load.pushed)
        self._tell(CatalogueReplaced(self._tenants(), first))
        for load in self.loads.values():
            if load.pushed:
                self.kernel.at(load.pushed, partial(self._tell, CatalogueChanged(models=(_model(load),))))
        for executor in self.executors.values():
            self._tell(ExecutorAttached(executor.hello()))
        for moment in range(0, until, TICK_NS):
            self.kernel.at(moment, self._tick)
        for key, load in self.loads.items():
            for moment in load.arrivals:
                self.kernel.at(moment, partial(self._arrive, key))
            for moments, unloaded in ((load.unloaded, True), (load.loaded, False)):
                changed = CatalogueChanged(models=(_model(load, unloaded=unloaded),))
                for moment in moments:
                    self.kernel.at(moment, partial(self._tell, changed))
        self.kernel.run()
        self.check_invariants()
        return self.fared

    def check_invariants(self) -> None:
        """Raises AssertionError unless every request has been answered once and every lane's books agree."""
        for executor in self.executors.values():
            executor.check_invariants()
        asked = sum(len(load.arrivals) for load in self.loads.values())
        answered = sum(fared.outcomes.total() for fared in self.fared.values())
        if self._calls or asked != answered:
            raise AssertionError(f"{asked} requests, {answered} answered, {len(self._calls)} open")

    # The scheduler's side.

    def _tell(self, event: Event) -> None:
        for action in self.scheduler.handle(event, self.kernel.now / SECOND):
            match action:
                case SendLoad() | SendUnload() | SendUpdate() | SendLayout():
                    about = action.layout if isinstance(action, SendLayout) else action.replica_id
                    self.trace.write(self.kernel.now, type(action).__name__, action.executor_id, about)
                    self.kernel.after(0, partial(self.executors[action.executor_id].obey, action))
                case RoutesChanged():
                    removed = [(key.tenant, key.name) for key in action.removals]
                    self.routes.change(map(_route, action.upserts), removed)

    def _tick(self) -> None:
        """As often as executors report when nothing changes."""
        for name, executor in self.executors.items():
            self._report(name, executor.report())
        self._tell(Tick())

    def _report(self, executor: str, report: Report) -> None:
        self._tell(ExecutorReported(executor, report))

    def _tenants(self) -> tuple[Tenant, ...]:
        return tuple({load.tenant.name: load.tenant for load in self.loads.values()}.values())

    # The frontend's side.

    def _arrive(self, key: Key) -> None:
        load, now = self.loads[key], self.kernel.now
        try:
            route = self.routes.route(key.tenant, key.name)
            version = self.routes.version(route, "")
            replica = self.routes.replica(route, version)
        except Refusal as refusal:
            self.fared[key].outcomes[refusal.reason.name] += 1
            return
        self._retries.requested(key.tenant)
        call = self._answered + len(self._calls)
        objective = None if load.objective_ns is None else now + load.objective_ns
        request = SimulatedRequest(call, replica.replica_id, now, objective=objective)
        self._calls[call], self._routed[call] = key, (route, version)
        self._send(request, replica)

    def _send(self, request: SimulatedRequest, replica: told.Replica) -> None:
        self._outstanding[request.call] = replica
        replica.outstanding += 1
        self.kernel.after(HOP_NS, partial(self._deliver, replica.executor_id, request))

    def _sent_again(self, answer: Answer) -> bool:
        """Whether a request that found no replica goes to another one, once, as the frontend has it."""
        call, first = answer.request.call, self._routed.pop(answer.request.call, None)
        if first is None or answer.reason not in {reason.name for reason in RETRYABLE}:
            return False
        try:
            other = self.routes.replica(*first, excluded=(answer.request.replica,))
        except Refusal:
            return False
        if not self._retries.take(self._calls[call].tenant):
            return False
        self.retried += 1
        self._send(msgspec.structs.replace(answer.request, replica=other.replica_id), other)
        return True

    def _deliver(self, executor: str, request: SimulatedRequest) -> None:
        if not self.executors[executor].submit(request):
            self._answer(Answer(request, self.kernel.now, "MODEL_NOT_READY"))

    def _answer(self, answer: Answer) -> None:
        call = answer.request.call
        self._outstanding.pop(call).outstanding -= 1
        if self._sent_again(answer):
            return
        key = self._calls.pop(call)
        self._answered += 1
        fared = self.fared[key]
        fared.outcomes[answer.reason] += 1
        fared.met += is_met(answer)
        fared.took_ns.append(answer.moment - answer.request.arrived)


def _model(load: Load, *, unloaded: bool = False) -> Model:
    objective_us = None if load.objective_ns is None else load.objective_ns // US
    traffic = TrafficClass.BATCH if load.objective_ns is None else TrafficClass.INTERACTIVE
    version = Version(1, f"{load.key}", size_bytes=load.model.weight_bytes)
    return Model(load.key, Slo(objective_us), traffic, replicas=load.replicas, versions=(version,), unloaded=unloaded)


def _route(route: Route) -> told.Route:
    """The scheduler's word as the frontend keeps it."""
    versions = {
        each.version: told.Version(
            each.version,
            told.State(each.state.value),
            each.message,
            None,
            tuple(told.Replica(one.replica_id, one.executor_id, one.address) for one in each.replicas),
        )
        for each in route.versions
    }
    objective_us = route.slo.objective_us
    objective_ns = None if objective_us is None else objective_us * US
    splits = tuple((split.version, split.ppm) for split in route.splits)
    return told.Route(route.key.tenant, route.key.name, objective_ns, versions, splits)
