"""Whatever happens in whatever order: nothing is oversold, routes do not lie, and in the end wanted is actual."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from scheduler_world import World, device, divided, model, tenant

from services.scheduler.core.catalogue import Model, Tenant
from services.scheduler.core.events import Action, CatalogueChanged, SendLoad, SendUnload, SendUpdate
from services.scheduler.core.layouts import LayoutRefused
from services.scheduler.core.replicas import Phase
from services.scheduler.core.reports import Seen
from services.scheduler.core.state import Policy

TENANTS = ("files", "search", "voice")
MODELS = [f"{owner}/{name}" for owner in TENANTS for name in "ab"]
EXECUTORS = ("gpu-0", "gpu-1", "gpu-2")

shares = st.sampled_from([0, 100, 250, 400, 800, 1500])


@st.composite
def models(draw: st.DrawFn, key: str) -> Model:
    """A model of one to three versions."""
    numbers = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True))
    split = draw(st.none() | st.dictionaries(st.integers(1, 4), st.sampled_from([200_000, 500_000]), max_size=2))
    return model(
        key,
        *numbers,
        replicas=draw(st.integers(1, 3)),
        size_bytes=draw(st.sampled_from([10, 300, 900])),
        traffic=split,
        objective_us=draw(st.sampled_from([None, 20_000])),
        isolated=draw(st.sampled_from([False, False, True])),
        unloaded=draw(st.sampled_from([False, False, False, True])),
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Random catalogues beside random executors."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(Policy(settle_s=1.0, grace_s=10.0))
        self.models: dict[str, Model] = {}
        self.tenants: dict[str, Tenant] = {}
        self.epoch = 7
        self.replace()

    def replace(self) -> None:
        """Tells the whole catalogue."""
        self.took(self.world.replace_catalogue(list(self.tenants.values()), list(self.models.values())))

    def took(self, actions: list[Action]) -> None:
        """No event leads to more commands than there are replicas that hold or want a place."""
        commands = [each for each in actions if isinstance(each, SendLoad | SendUnload | SendUpdate)]
        held = sum(len(each.replicas) for each in self.world.scheduler.state.fleet.executors.values())
        assert len(commands) <= held
        told = [each.replica_id for each in commands]
        assert len(told) == len(set(told)), "two commands for one replica at once"

    @rule(name=st.sampled_from(TENANTS), reservation=shares, weight=st.integers(1, 3))
    def change_tenant(self, name: str, reservation: int, weight: int) -> None:
        """A tenant comes, or its promise changes."""
        self.tenants[name] = tenant(name, reservation, weight)
        self.took(self.world.handle(CatalogueChanged(tenants=(self.tenants[name],))))

    @rule(data=st.data(), key=st.sampled_from(MODELS))
    def change_model(self, data: st.DataObject, key: str) -> None:
        """A model comes, or changes in anything."""
        self.models[key] = data.draw(models(key))
        self.took(self.world.handle(CatalogueChanged(models=(self.models[key],))))

    @precondition(lambda self: self.models)
    @rule(data=st.data(), unloaded=st.booleans())
    def unload_or_load(self, data: st.DataObject, unloaded: bool) -> None:
        """A model is unloaded by request, or loaded again."""
        key = data.draw(st.sampled_from(sorted(self.models)))
        self.models[key] = replace(self.models[key], unloaded=unloaded)
        self.took(self.world.handle(CatalogueChanged(models=(self.models[key],))))

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def remove_model(self, data: st.DataObject) -> None:
        """A model goes."""
        gone = self.models.pop(data.draw(st.sampled_from(sorted(self.models))))
        self.took(self.world.handle(CatalogueChanged(removed_models=(gone.key,))))

    @rule(
        name=st.sampled_from(EXECUTORS),
        lanes=st.sampled_from([1, 2, 4]),
        memory_bytes=st.sampled_from([1_000, 4_000]),
        workers=st.integers(1, 2),
        prepared=st.booleans(),
    )
    def attach(self, name: str, lanes: int, memory_bytes: int, workers: int, prepared: bool) -> None:
        """An executor comes, or comes back, or opens a newer stream."""
        if name in self.world.executors:
            self.took(self.world.attach(name))
        elif prepared:
            self.world.add(name, divided((8,), (4, 4), (2,) * 4, memory_bytes=memory_bytes))
        else:
            self.world.add(name, device(lanes, memory_bytes, workers=workers))

    @precondition(lambda self: any(each.attached for each in self.world.executors.values()))
    @rule(data=st.data(), layout=st.sampled_from(["", "8", "4+4", "2+2+2+2"]))
    def pin_layout(self, data: st.DataObject, layout: str) -> None:
        """An operator wants a layout, or no longer."""
        name = data.draw(st.sampled_from([each.name for each in self.world.executors.values() if each.attached]))
        try:
            wish = self.world.scheduler.pin_layout(name, layout)
        except LayoutRefused:
            return
        self.took(self.world.handle(wish))

    @precondition(lambda self: any(each.attached for each in self.world.executors.values()))
    @rule(data=st.data(), crashes=st.booleans())
    def detach(self, data: st.DataObject, crashes: bool) -> None:
        """A stream ends; the executor behind it may have died."""
        name = data.draw(st.sampled_from([each.name for each in self.world.executors.values() if each.attached]))
        self.took(self.world.crash(name) if crashes else self.world.detach(name))

    @precondition(lambda self: any(each.attached for each in self.world.executors.values()))
    @rule(
        data=st.data(), most=st.integers(0, 3), progresses=st.booleans(), draining=st.sampled_from([False] * 9 + [True])
    )
    def report(self, data: st.DataObject, most: int, progresses: bool, draining: bool) -> None:
        """An executor takes in some commands, gets on or not, and reports."""
        name = data.draw(st.sampled_from([each.name for each in self.world.executors.values() if each.attached]))
        executor = self.world.executors[name]
        executor.obey(most)
        executor.draining = draining
        if progresses:
            executor.progress()
        self.took(self.world.report(name))

    @precondition(lambda self: any(each.replicas for each in self.world.executors.values()))
    @rule(data=st.data(), state=st.sampled_from([Seen.FAILED, Seen.FAILED, Seen.REFUSED, Seen.LOADING, None]))
    def break_replica(self, data: st.DataObject, state: Seen | None) -> None:
        """A replica fails, is refused, is loaded again, or is gone without a word."""
        held = [(each, number) for each in self.world.executors.values() for number in sorted(each.replicas)]
        executor, number = data.draw(st.sampled_from(held))
        if state is None:
            del executor.replicas[number]
        else:
            executor.put(number, state, "out of luck")

    @rule(seconds=st.sampled_from([0.5, 3.0, 11.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.took(self.world.wait(seconds))

    @rule()
    def restart_scheduler(self) -> None:
        """The scheduler dies and starts anew; executors come back one by one."""
        self.epoch += 1
        self.world.restart(self.epoch)
        self.replace()

    @invariant()
    def holds(self) -> None:
        """Nothing is oversold, and routes do not lie."""
        self.world.check_invariants()

    def teardown(self) -> None:
        """Once nothing more happens, wanted is actual and stays so."""
        for executor in self.world.executors.values():
            executor.draining = False
            if not executor.attached:
                self.took(self.world.attach(executor.name))
        self.world.settle(seconds=61.0)
        self.world.check_invariants()
        self.check_wanted_is_actual()
        assert self.world.round(61.0) == []

    def check_wanted_is_actual(self) -> None:
        """Every wanted version has its replicas or a reason in numbers; nothing else is held without need."""
        state = self.world.scheduler.state
        held = state.fleet.by_ref()
        needed = set()
        for each in state.models.values():
            wanted = [each.ref(version) for version in state.wanted_versions(each)]
            if each.unloaded:
                assert not any(each.ref(version) in held for version in each.versions)
                continue
            for ref in wanted:
                ready = [replica for replica in held.get(ref, []) if replica.phase is Phase.READY]
                assert len(ready) == len(held.get(ref, []))
                assert len(ready) == each.replicas or (len(ready) < each.replicas and ref in state.unplaced)
            needed.update(wanted)
            if any(ref not in held for ref in wanted):
                needed.update(each.ref(version) for version in each.versions)
        sim = {number for executor in self.world.executors.values() for number in executor.replicas}
        assert sim == {replica.replica_id for replica in state.fleet.replicas()}
        assert {replica.ref for replica in state.fleet.replicas()} <= needed


SchedulerMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestWhateverHappens = SchedulerMachine.TestCase
