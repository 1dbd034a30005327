"""A fleet in memory around the scheduler's core: executors that obey, dawdle, fail, detach and crash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from services.common.objectives import Point
from services.scheduler.core.catalogue import Key, Model, Profile, Ref, Slo, Split, Tenant, Version
from services.scheduler.core.events import (
    Action,
    CatalogueReplaced,
    Event,
    ExecutorAttached,
    ExecutorDetached,
    ExecutorReported,
    RecordInspection,
    SendFold,
    SendLayout,
    SendLoad,
    SendUnload,
    SendUpdate,
    Tick,
)
from services.scheduler.core.reports import (
    Device,
    Hello,
    Lane,
    Layout,
    ReplicaReport,
    Report,
    Seen,
    TenantUsage,
    UsageReport,
)
from services.scheduler.core.routes import Route, RoutesChanged, VersionRoute, VersionState
from services.scheduler.core.scheduler import Scheduler
from services.scheduler.core.state import Policy

KIND = "simulated"


def tenant(name: str, reservation: int = 0, weight: int = 1) -> Tenant:
    """A tenant promised `reservation` millidevices."""
    return Tenant(name, reservation, weight)


def model(
    key: str,
    *numbers: int,
    replicas: int = 1,
    size_bytes: int = 100,
    traffic: dict[int, int] | None = None,
    objective_us: int | None = None,
    isolated: bool = False,
    unloaded: bool = False,
) -> Model:
    """A model "tenant/name" with versions of these numbers (1 where none is given)."""
    owner, _, name = key.partition("/")
    versions = tuple(Version(number, f"sha256:{name}{number}.{size_bytes}", size_bytes) for number in numbers or (1,))
    splits = tuple(Split(number, ppm) for number, ppm in (traffic or {}).items())
    return Model(
        Key(owner, name),
        Slo(objective_us),
        replicas=replicas,
        versions=versions,
        traffic=splits,
        isolated=isolated,
        unloaded=unloaded,
    )


def device(lanes: int = 1, memory_bytes: int = 10_000, units: int = 8, workers: int = 1, kind: str = KIND) -> Device:
    """A device whose lanes share its compute units evenly."""
    return Device(
        kind,
        units,
        memory_bytes,
        tuple(Lane(number, number % workers, units // lanes) for number in range(lanes)),
    )


def divided(*layouts: tuple[int, ...], memory_bytes: int = 10_000, kind: str = KIND) -> Device:
    """A device that is prepared for layouts, each given by its lanes' compute units; no two layouts share a lane."""
    lanes: list[Lane] = []
    made: list[Layout] = []
    for units in layouts:
        first = len(lanes)
        for each in units:
            lanes.append(Lane(len(lanes), len(lanes), each, memory_bytes // len(units)))
        made.append(Layout("+".join(map(str, units)), tuple(range(first, len(lanes)))))
    return Device(kind, max(map(sum, layouts)), memory_bytes, tuple(lanes), layouts=tuple(made))


@dataclass
class SimReplica:
    """A replica as the simulated executor has it."""

    ref: Ref
    lane: int
    state: Seen
    bandwidth: int
    memory_bytes: int
    message: str = ""


@dataclass
class SimExecutor:
    """An executor that does what it is told, when it is told to."""

    name: str
    device: Device
    incarnation: int = 1
    attached: bool = False
    draining: bool = False
    replicas: dict[int, SimReplica] = field(default_factory=dict)
    inbox: list[SendLoad | SendUnload | SendUpdate | SendLayout | SendFold] = field(default_factory=list)
    used_ns: dict[Key, int] = field(default_factory=dict)
    layout: int = 0
    pinned: bool = False
    measured: dict[Ref, dict[int, int]] = field(default_factory=dict)
    stubborn: bool = False
    folds: bool = False
    folded_ns: dict[str, int] = field(default_factory=dict)
    lives: dict[Key, int] = field(default_factory=dict)
    last_life: int = 0

    def use(self, key: Key, used_ns: int) -> None:
        """A model uses that much more."""
        if key not in self.lives:
            self.last_life += 1
            self.lives[key] = self.last_life
        self.used_ns[key] = self.used_ns.get(key, 0) + used_ns

    def obey(self, most: int | None = None) -> None:
        """Takes in commands, in order."""
        taken, self.inbox = self.inbox[:most], self.inbox[len(self.inbox[:most]) :]
        for command in taken:
            if isinstance(command, SendFold):
                self._fold(command)
                continue
            if isinstance(command, SendLayout):
                self.layout, self.pinned = command.layout, command.pinned
                continue
            held = self.replicas.get(command.replica_id)
            if isinstance(command, SendLoad) and held is None:
                self.replicas[command.replica_id] = SimReplica(
                    command.ref, command.lane, Seen.LOADING, command.terms.bandwidth, command.size_bytes * 2
                )
            elif isinstance(command, SendUnload) and held is not None:
                held.state = Seen.DRAINING
            elif isinstance(command, SendUpdate) and held is not None:
                held.bandwidth = command.terms.bandwidth

    def progress(self) -> None:
        """What loads becomes ready; what drains goes."""
        for number, replica in list(self.replicas.items()):
            if replica.state is Seen.DRAINING:
                del self.replicas[number]
            elif replica.state is Seen.LOADING and not (self.stubborn and replica.lane):
                replica.state = Seen.READY

    def put(self, number: int, state: Seen, message: str = "") -> None:
        """Makes a replica be in a state."""
        self.replicas[number].state, self.replicas[number].message = state, message

    def report(self) -> Report:
        """Everything it holds."""
        replicas = tuple(self._reported(number, each) for number, each in sorted(self.replicas.items()))
        name, lives = str(self.incarnation), self.lives
        usage = tuple(UsageReport(key, name, used, 0, 1, 0, lives.get(key, 0)) for key, used in self.used_ns.items())
        return Report(
            replicas,
            usage=usage,
            draining=self.draining,
            layout=self.layout,
            layout_pinned=self.pinned,
            tenants=tuple(self._tenants()) if self.folds else (),
        )

    def _tenants(self) -> Iterator[TenantUsage]:
        used = dict(self.folded_ns)
        for key, used_ns in self.used_ns.items():
            used[key.tenant] = used.get(key.tenant, 0) + used_ns
        return (TenantUsage(name, str(self.incarnation), ns, lives=self.last_life) for name, ns in used.items())

    def _fold(self, command: SendFold) -> None:
        held = any(each.ref.key == command.key for each in self.replicas.values())
        if self.lives.get(command.key) == command.life and command.incarnation == str(self.incarnation) and not held:
            del self.lives[command.key]
            tenant, used_ns = command.key.tenant, self.used_ns.pop(command.key)
            self.folded_ns[tenant] = self.folded_ns.get(tenant, 0) + used_ns

    def hello(self) -> Hello:
        """Its first words."""
        return Hello(self.name, str(self.incarnation), f"{self.name}:8110", self.device, self.report())

    def crash(self) -> None:
        """Its process dies and starts anew with nothing."""
        self.attached, self.incarnation = False, self.incarnation + 1
        self.replicas, self.inbox, self.used_ns, self.draining = {}, [], {}, False
        self.layout, self.pinned = 0, False
        self.folded_ns, self.lives, self.last_life = {}, {}, 0

    def _reported(self, number: int, each: SimReplica) -> ReplicaReport:
        ready = each.state is Seen.READY
        lane = self.device.lane(each.lane)
        took = self.measured.get(each.ref, {}).get(lane.compute_units if lane else 0)
        points = (Point(1, "", lane.compute_units, took, took),) if lane and took else ()
        return ReplicaReport(
            number,
            each.ref,
            each.lane,
            each.state,
            each.message,
            signature=b"signature" if ready else None,
            profile=Profile(self.device.kind, each.memory_bytes, points=points) if ready else None,
            memory_bytes=each.memory_bytes if ready else 0,
            bandwidth=each.bandwidth,
        )


class World:
    """The scheduler, a clock, and executors by name."""

    def __init__(self, policy: Policy | None = None, epoch: int = 7) -> None:
        self.now = 0.0
        self.policy = policy or Policy(settle_s=0)
        self.scheduler = Scheduler(epoch=epoch, now=self.now, policy=self.policy)
        self.executors: dict[str, SimExecutor] = {}
        self.routes: dict[Key, Route] = {}
        self.inspections: list[RecordInspection] = []
        self.story: list[Action] = []
        self.catalogue = CatalogueReplaced()

    def handle(self, event: Event) -> list[Action]:
        """Tells the scheduler, and puts its commands on their way."""
        actions = self.scheduler.handle(event, self.now)
        self.story += actions
        for action in actions:
            if isinstance(action, SendLoad | SendUnload | SendUpdate | SendLayout | SendFold):
                executor = self.executors[action.executor_id]
                assert executor.attached, f"{action} to an executor without a stream"
                executor.inbox.append(action)
            elif isinstance(action, RoutesChanged):
                self.routes.update({route.key: route for route in action.upserts})
                for key in action.removals:
                    del self.routes[key]
            elif isinstance(action, RecordInspection):
                self.inspections.append(action)
        return actions

    def replace_catalogue(self, tenants: list[Tenant], models: list[Model]) -> list[Action]:
        """The whole catalogue."""
        self.catalogue = CatalogueReplaced(tuple(tenants), tuple(models))
        return self.handle(self.catalogue)

    def add(self, name: str, of: Device | None = None) -> SimExecutor:
        """A new executor, attached."""
        self.executors[name] = SimExecutor(name, of or device())
        self.attach(name)
        return self.executors[name]

    def attach(self, name: str) -> list[Action]:
        """An executor's stream begins; what was on its way on an older one is lost."""
        executor = self.executors[name]
        executor.attached, executor.inbox = True, []
        return self.handle(ExecutorAttached(executor.hello()))

    def detach(self, name: str) -> list[Action]:
        """An executor's stream ends."""
        self.executors[name].attached, self.executors[name].inbox = False, []
        return self.handle(ExecutorDetached(name))

    def crash(self, name: str) -> list[Action]:
        """An executor's process dies."""
        self.executors[name].crash()
        return self.handle(ExecutorDetached(name))

    def report(self, name: str) -> list[Action]:
        """An executor reports."""
        return self.handle(ExecutorReported(name, self.executors[name].report()))

    def wait(self, seconds: float) -> list[Action]:
        """Time passes in one step."""
        self.now += seconds
        return self.handle(Tick())

    def round(self, seconds: float = 0.0) -> list[Action]:
        """Everybody obeys, progresses, reports; then time passes."""
        actions: list[Action] = []
        for executor in self.executors.values():
            if executor.attached:
                executor.obey()
                actions += self.report(executor.name)
                executor.progress()
                actions += self.report(executor.name)
        return actions + self.wait(seconds)

    def settle(self, rounds: int = 40, seconds: float = 0.0) -> int:
        """Rounds until nothing is decided any more; how many it took. Fails where it never ends."""
        for number in range(rounds):
            if not self.round(seconds):
                return number
        raise AssertionError(f"no rest after {rounds} rounds: {self.story[-6:]}")

    def restart(self, epoch: int) -> None:
        """The scheduler dies and starts anew; every stream ends."""
        self.scheduler = Scheduler(epoch=epoch, now=self.now, policy=self.policy)
        self.routes = {}
        for executor in self.executors.values():
            executor.attached, executor.inbox = False, []

    def version(self, key: str, number: int) -> VersionRoute | None:
        """A version's route."""
        owner, _, name = key.partition("/")
        route = self.routes.get(Key(owner, name))
        return next((each for each in route.versions if each.version == number), None) if route else None

    def splits(self, key: str) -> dict[int, int]:
        """Who gets a model's requests."""
        owner, _, name = key.partition("/")
        return {split.version: split.ppm for split in self.routes[Key(owner, name)].splits}

    def placed(self) -> dict[str, list[str]]:
        """What executors hold: "tenant/name version 1"."""
        return {
            name: sorted(str(each.ref) for each in executor.replicas.values())
            for name, executor in sorted(self.executors.items())
        }

    def check_invariants(self) -> None:
        """What must hold after every event."""
        state = self.scheduler.state
        for executor in state.fleet.executors.values():
            at = executor.hello.device
            for lane in at.lanes:
                assert executor.granted(lane.number) <= at.capacity(lane.number), f"{executor.executor_id} is oversold"
            assert not at.memory_bytes or executor.memory_taken_bytes <= at.memory_bytes, (
                f"{executor.executor_id} is full"
            )
            layouts = range(len(at.layouts) or 1)
            assert all(sum(at.capacity(lane.number) for lane in at.in_layout(each)) <= 1000 for each in layouts)
            refs = [
                replica.ref
                for replica in executor.replicas.values()
                if replica.live and executor.in_force(replica.lane)
            ]
            assert len(refs) == len(set(refs)), f"{executor.executor_id} holds one thing twice"
        if state.catalogue_known:
            self._check_routes()

    def _check_routes(self) -> None:
        _, routes = self.scheduler.routes.snapshot()
        assert {route.key: route for route in routes} == self.routes, "changes do not add up to the snapshot"
        assert self.routes.keys() == self.scheduler.state.models.keys()
        for route in routes:
            model = self.scheduler.state.models[route.key]
            known = model.versions
            told = {each.state for each in route.versions}
            if model.unloaded:
                assert told <= {VersionState.UNLOADED, VersionState.REFUSED}
            else:
                assert VersionState.UNLOADED not in told
            assert sum(split.ppm for split in route.splits) == (1_000_000 if known else 0)
            for version in route.versions:
                for replica in version.replicas:
                    held = self.scheduler.state.fleet.executors[replica.executor_id].report.replicas
                    assert any(each.replica_id == replica.replica_id and each.state is Seen.READY for each in held)
