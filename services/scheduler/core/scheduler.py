"""The scheduler: `handle(event, now)` takes one event in and returns what is to be done about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from services.scheduler.core import layouts, objectives, observing, reconcile, reservations
from services.scheduler.core.catalogue import Key, Ref, Tenant
from services.scheduler.core.events import (
    Action,
    CatalogueChanged,
    CatalogueReplaced,
    Event,
    ExecutorAttached,
    ExecutorDetached,
    ExecutorReported,
    FrontendReported,
    LayoutPinned,
    Noted,
    Tick,
)
from services.scheduler.core.limiting import Answer, Limiter, QuotaReport, QuotaUse
from services.scheduler.core.objectives import Found, Question, Unpromised
from services.scheduler.core.reports import Hello, Report
from services.scheduler.core.requests import Recent
from services.scheduler.core.reservations import Promise
from services.scheduler.core.routes import RouteLog
from services.scheduler.core.routing import routes
from services.scheduler.core.state import Policy, State
from services.scheduler.core.telling import Telling
from services.scheduler.core.usage import Used


@dataclass(frozen=True, slots=True)
class ExecutorView:
    """An executor for those who look."""

    hello: Hello
    report: Report
    attached: bool


@dataclass(frozen=True, slots=True)
class ModelView:
    """What a model used: so far; of a device now, in millionths; and how its requests fared lately."""

    key: Key
    used: Used
    used_ppm: int
    recent: Recent


@dataclass(frozen=True, slots=True)
class TenantView:
    """A tenant's promise in millidevices, its weight, and what it used: in all as in ModelView, and by model."""

    name: str
    reservation: int
    weight: int
    used: Used
    used_ppm: int = 0
    recent: Recent = field(default_factory=Recent)
    models: tuple[ModelView, ...] = ()


@dataclass(frozen=True, slots=True)
class UnplacedView:
    """A wanted version that lacks a replica, and why."""

    key: Key
    version: int
    message: str


@dataclass(frozen=True, slots=True)
class FleetView:
    """The fleet at one moment."""

    executors: tuple[ExecutorView, ...]
    tenants: tuple[TenantView, ...]
    unplaced: tuple[UnplacedView, ...]
    unpromised: tuple[Unpromised, ...] = ()


class Scheduler:
    """Compares what is wanted (the catalogue) with what is (executors' reports) and commands the difference.

    epoch: distinguishes this scheduler from those before it; below 2**32. Replica ids are epoch << 32 | counter.
    now: moments in seconds of a clock that never goes back; every call's is at least the one before.
    """

    def __init__(
        self,
        *,
        epoch: int,
        now: float,
        policy: Policy | None = None,
        route_changes: int = 1024,
        route_changes_bytes: int = 4 << 20,
        route_changes_s: float = 120.0,
    ) -> None:
        self.epoch = epoch
        self.routes = RouteLog(route_changes, route_changes_bytes, route_changes_s)
        self._state = State(policy or Policy(), started_at=now, limiter=Limiter(now))
        self._ids = self._replica_ids()
        self._last_id = epoch << 32
        self._decided_at = self._now = now
        self._state.requests.began = now

    def handle(self, event: Event, now: float) -> list[Action]:
        """What is to be done about an event: commands for executors, changed routes, inspections to record, notes."""
        self._now = now
        stirred, notes = self._take(event, now)
        actions: list[Action] = list(notes)
        if self._state.catalogue_known and stirred:
            actions += self._decide(now)
        return actions

    def settled(self, now: float) -> bool:
        """Whether the routes say what there is: the catalogue is known, and executors have had the time to come back."""
        return self._state.settled(now)

    @property
    def catalogue_known(self) -> bool:
        """Whether the catalogue has been heard of since the start."""
        return self._state.catalogue_known

    def report_quotas(self, told: QuotaReport, now: float) -> Answer:
        """Takes what a frontend says of tenants with a quota; what it may admit from now on."""
        return self._state.limiter.report(told, now) if self._state.catalogue_known else Answer()

    def quotas(self, now: float) -> list[QuotaUse]:
        """Every tenant with a quota, and what is used of it, by name."""
        held: dict[str, int] = {}
        for replica in self._state.fleet.replicas():
            tenant = replica.ref.key.tenant
            held[tenant] = held.get(tenant, 0) + replica.memory_bytes
        return self._state.limiter.uses(held, now)

    @property
    def telling(self) -> Telling:
        """What the registry is still to be told of use."""
        return self._state.telling

    def check_reservation(self, tenant: str, millidevices: int) -> Promise:
        """Whether a tenant could be promised so much, in place of what it has."""
        return reservations.check(self._state, tenant, millidevices)

    def pin_layout(self, executor_id: str, name: str) -> LayoutPinned:
        """The event for an operator's wish. name: of the layout; "": none. LayoutRefused where it cannot be followed."""
        return layouts.wish(self._state, executor_id, name)

    def objective(self, question: Question) -> tuple[int, list[Found]]:
        """What a model can be promised: its version's number, and an answer for each kind of lane. Refusal for nonsense."""
        return objectives.find(self._state, question)

    def fleet(self) -> FleetView:
        """What there is, for the CLI and metrics; what is said of the last minute ends with the latest event."""
        state = self._state
        executors = [each for _, each in sorted(state.fleet.executors.items())]
        tenants = [each for _, each in sorted(state.tenants.items())]
        models = self._model_views()
        return FleetView(
            tuple(ExecutorView(each.hello, each.report, each.attached) for each in executors),
            tuple(self._tenant_view(each, models.get(each.name, [])) for each in tenants),
            tuple(UnplacedView(ref.key, ref.version, why) for ref, why in sorted(self._lacking().items())),
            tuple(objectives.unpromised(state)),
        )

    def _model_views(self) -> dict[str, list[ModelView]]:
        """Every model that used or asked for anything, by tenant."""
        state, now = self._state, self._now
        recent, used, ppm = state.requests.recent(now), state.usage.models(), dict[Key, int]()
        for executor_id, executor in state.fleet.executors.items():
            rates = state.rates.used_ppm(executor_id, executor.hello.device.compute_units, now)
            for key, rate in rates.items():
                ppm[key] = ppm.get(key, 0) + rate
        views: dict[str, list[ModelView]] = {}
        for key in sorted({*recent, *used}):
            view = ModelView(key, used.get(key, Used()), ppm.get(key, 0), recent.get(key) or Recent())
            views.setdefault(key.tenant, []).append(view)
        return views

    def _tenant_view(self, tenant: Tenant, models: list[ModelView]) -> TenantView:
        used, recent = self._state.usage.of(tenant.name), Recent()
        for each in models:
            recent.add(each.recent)
        ppm = sum(each.used_ppm for each in models)
        return TenantView(tenant.name, tenant.reservation, tenant.weight, used, ppm, recent, tuple(models))

    def _lacking(self) -> dict[Ref, str]:
        """Wanted versions that lack a replica: for want of room, or until they are tried again."""
        state, held = self._state, self._state.fleet.by_ref()
        lacking = {ref: found.detail for ref, found in state.unplaced.items() if not found.waits}
        wanted = {model.ref(each) for model in state.models.values() for each in state.wanted_versions(model)}
        for ref, failures in state.failures.items():
            if ref in wanted and ref not in held:
                lacking.setdefault(
                    ref, f"failed {failures.count} times, last on {failures.executor_id}: {failures.message}"
                )
        return lacking

    @property
    def state(self) -> State:
        """What it knows; for tests and for looking at, not for changing."""
        return self._state

    def _take(self, event: Event, now: float) -> tuple[bool, list[Noted]]:
        """Takes an event in; whether anything may have to be decided, and what is worth a note."""
        state = self._state
        if isinstance(event, Tick):
            expired = list(observing.expire(state, now))
            state.requests.forget_old(now)
            self.routes.forget_old(now)
            return bool(expired) or state.due(self._decided_at, now), expired
        if isinstance(event, LayoutPinned):
            return True, list(layouts.pin(state, event.executor_id, event.layout, now))
        if isinstance(event, CatalogueReplaced | CatalogueChanged):
            self._take_catalogue(event)
            return True, []
        if isinstance(event, FrontendReported):
            state.telling.frontend(event.frontend_id, ((key, each.moved) for key, each in event.counts))
            # Frontends keep counts of models that are gone for a while.
            known = (each for each in event.counts if each[0] in state.models or not state.catalogue_known)
            state.requests.report(event.frontend_id, known, now, whole=event.whole)
            return False, []
        if isinstance(event, ExecutorAttached):
            notes = list(observing.attach(state, event.hello, now))
            self._skip_ids(event.hello.report)
            return True, notes
        executor = state.fleet.executors.get(event.executor_id)
        if executor is None or not executor.attached:
            return False, []
        if isinstance(event, ExecutorDetached):
            executor.detached_at = now
            return False, [
                Noted(
                    f"executor {event.executor_id} detached", f"its replicas count for {state.policy.grace_s:g} s more"
                )
            ]
        return self._take_report(event, now)

    def _take_report(self, event: ExecutorReported, now: float) -> tuple[bool, list[Noted]]:
        executor = self._state.fleet.executors[event.executor_id]
        same = _essence(executor.report) == _essence(event.report)
        notes = list(observing.take_report(self._state, executor, event.report, now))
        self._skip_ids(event.report)
        return not same, notes

    def _take_catalogue(self, event: CatalogueReplaced | CatalogueChanged) -> None:
        state = self._state
        if isinstance(event, CatalogueReplaced):
            state.tenants, state.models, state.catalogue_known = {}, {}, True
        else:
            for name in event.removed_tenants:
                state.tenants.pop(name, None)
            for key in event.removed_models:
                state.models.pop(key, None)
        state.tenants.update({tenant.name: tenant for tenant in event.tenants})
        state.limiter.limit(state.tenants.values(), self._now)
        state.models.update({model.key: model for model in event.models})
        state.forget_removed()

    def _decide(self, now: float) -> Iterator[Action]:
        state = self._state
        self._decided_at = now
        state.fleet.regrant(state.demand)
        reconcile.retire(state, now)
        if state.settled(now):
            yield from layouts.review(state, now)
            layouts.drain_first(state)
            yield from reconcile.place_missing(state, now, self._ids)
        yield from reconcile.shortages(state)
        # Routes first: nobody should be sent to a replica that has been told to go.
        change = self.routes.publish(routes(state), now)
        if change is not None:
            yield change
        yield from reconcile.commands(state, now)
        yield from reconcile.inspections(state)

    def _replica_ids(self) -> Iterator[int]:
        while True:
            self._last_id += 1
            yield self._last_id

    def _skip_ids(self, report: Report) -> None:
        """Two schedulers that started within one second share an epoch: ids that executors hold are not given again."""
        held = (each.replica_id for each in report.replicas if each.replica_id >> 32 == self.epoch)
        self._last_id = max(self._last_id, *held, 0)


def _essence(report: Report) -> tuple[object, ...]:
    """What of a report can lead to a decision: not how busy it is."""
    replicas = tuple(
        (each.replica_id, each.state, each.lane, each.memory_bytes, each.message, each.signature, each.profile)
        for each in report.replicas
    )
    return replicas, report.draining, report.layout, report.layout_pinned
