"""Which replicas this executor holds, where each stands, and what has to be done next. Events in, actions out.

A worker loads one replica at a time: where it dies meanwhile, it is known which load it was. A replica whose load killed its
worker twice is refused; after a loss, replicas that never did so are loaded first.

A lane has a worker while it is in the layout in force, or holds a replica: one of another layout until its last replica is gone.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gpu_sharing.units import MS, SECOND, Nanoseconds
from gpu_sharing.worker.messages import Loaded, LoadFailed, Stage, Unload, Unloaded, Update
from services.executor.core.declared import Disagreement, agreed
from services.executor.core.replica import OVER, Phase, Replica
from services.executor.core.replica_events import (
    Action,
    Changed,
    Fetch,
    Fetched,
    Fetching,
    Happened,
    LayoutSet,
    LetGo,
    NotFetched,
    OfReplica,
    Send,
    Serve,
    StartWorker,
    StopWorker,
    Tell,
    Unwanted,
    Wanted,
    Withdraw,
    WorkerDown,
    WorkerUp,
)

MOST_CRASHES = 2
"""A replica whose load has killed its worker this often is refused."""
FIRST_RESTART_NS: Nanoseconds = 100 * MS
LONGEST_RESTART_NS: Nanoseconds = 10 * SECOND
STEADY_NS: Nanoseconds = 10 * SECOND
"""A worker that ran this long is started again at once when it is lost."""


class _Lane:
    """up: its worker takes commands. has_worker: also while that starts or stops. stops: it has been told to."""

    def __init__(self) -> None:
        self.up = False
        self.in_force = True
        self.has_worker = False
        self.stops = False
        self.up_since: Nanoseconds = 0
        self.losses = 0
        self.loading: int | None = None


class Replicas:
    """The replicas of one executor. lanes: their numbers; each starts with its worker down."""

    def __init__(self, lanes: Iterable[int]) -> None:
        self._lanes = {lane: _Lane() for lane in lanes}
        self._replicas: dict[int, Replica] = {}

    def get(self, replica: int) -> Replica | None:
        """The replica, if it is known."""
        return self._replicas.get(replica)

    def all(self) -> list[Replica]:
        """Every replica, by id."""
        return [self._replicas[replica] for replica in sorted(self._replicas)]

    def loading(self, lane: int) -> int | None:
        """The replica that the lane's worker loads now."""
        return self._lanes[lane].loading

    def handle(self, event: Happened, now: Nanoseconds, lane: int | None = None) -> list[Action]:
        """Takes one event in and returns what has to be done, in order. lane: whose worker said it, for its events.

        What is not known, or came too late to matter, changes nothing: workers and schedulers are not trusted to be exact.
        """
        match event:
            case Wanted():
                return [*self._wanted(event), *self._staff(event.lane)]
            case LayoutSet():
                return self._layout_set(event)
            case WorkerUp():
                return self._worker_up(event.lane, now)
            case WorkerDown():
                return self._worker_down(event.lane, event.reason, now)
        replica = self._replicas.get(event.replica)
        if replica is None:
            return [Tell()] if isinstance(event, Unwanted) else []
        if lane is not None and replica.wanted.lane != lane:
            return []
        return self._happened_to(replica, event)

    def check_invariants(self) -> None:
        """Raises AssertionError where the books do not add up."""
        for number, lane in self._lanes.items():
            loading = [
                each.wanted.replica
                for each in self._replicas.values()
                if each.phase is Phase.LOADING and each.wanted.lane == number
            ]
            assert len(loading) <= 1, f"lane {number} loads {loading} at once"
            assert lane.up or lane.loading is None, f"lane {number} is down and loads {lane.loading}"
            assert not loading or loading[0] == lane.loading, f"lane {number} loads {loading}, not {lane.loading}"
        for replica in self._replicas.values():
            served = replica.phase in (Phase.LOADING, Phase.READY, Phase.DRAINING)
            assert not served or self._lanes[replica.wanted.lane].up, f"{replica.wanted.replica} is {replica.phase}"
            assert replica.phase is not Phase.READY or replica.signature is not None

    def _happened_to(self, replica: Replica, event: OfReplica) -> list[Action]:
        match event:
            case Unwanted():
                return self._unwanted(replica, event.drain_ns)
            case Changed():
                return self._changed(replica, event)
            case Fetching() | Stage():
                replica.stage = event.stage[:200]
                return [Tell()]
            case Fetched():
                return self._fetched(replica, event)
            case NotFetched():
                return self._not_fetched(replica, event)
            case Loaded():
                return self._loaded(replica, event)
            case LoadFailed():
                return self._load_failed(replica, event)
            case Unloaded():
                return self._unloaded(replica)

    def _layout_set(self, event: LayoutSet) -> list[Action]:
        for number, lane in self._lanes.items():
            lane.in_force = number in event.lanes
        return [*(action for number in self._lanes for action in self._staff(number)), Tell()]

    def _staff(self, number: int) -> list[Action]:
        """Gives a lane the worker that it needs, or takes from it one that it does not."""
        lane = self._lanes.get(number)
        if lane is None:
            return []
        needed = self._needs_worker(number)
        if needed and not lane.has_worker:
            lane.has_worker = True
            return [StartWorker(number, 0)]
        if lane.up and not needed:
            lane.up, lane.stops = False, True
            return [StopWorker(number)]
        return []

    def _needs_worker(self, number: int) -> bool:
        held = (each for each in self._replicas.values() if each.wanted.lane == number)
        return self._lanes[number].in_force or any(each.phase not in OVER for each in held)

    def _wanted(self, wanted: Wanted) -> list[Action]:
        replica = self._replicas.get(wanted.replica)
        if replica is None:
            replica = self._replicas[wanted.replica] = Replica(wanted)
            replica.stage = "fetching"
        elif replica.phase is Phase.FAILED:
            replica.wanted = wanted
            replica.move(Phase.FETCHING, stage="fetching")
        else:
            return [Tell()]
        if wanted.lane not in self._lanes:
            replica.move(Phase.FAILED, message=f"lane: {wanted.lane} is none of {sorted(self._lanes)}")
            return [Tell()]
        return [Fetch(replica.wanted), Tell()]

    def _unwanted(self, replica: Replica, drain_ns: Nanoseconds) -> list[Action]:
        if replica.phase is Phase.DRAINING:
            return [Tell()]
        if replica.phase not in (Phase.LOADING, Phase.READY):
            return self._forget(replica)
        withdraw: list[Action] = [Withdraw(replica.wanted.replica)] if replica.phase is Phase.READY else []
        replica.move(Phase.DRAINING, stage="draining")
        unload = Unload(replica=replica.wanted.replica, drain_ns=drain_ns)
        return [*withdraw, Send(replica.wanted.lane, unload), Tell()]

    def _forget(self, replica: Replica) -> list[Action]:
        del self._replicas[replica.wanted.replica]
        return [LetGo(replica.wanted.replica), *self._staff(replica.wanted.lane), Tell()]

    def _changed(self, replica: Replica, event: Changed) -> list[Action]:
        replica.wanted = msgspec.structs.replace(
            replica.wanted, bandwidth=event.bandwidth, weight=event.weight, objective_ns=event.objective_ns
        )
        if replica.phase not in (Phase.LOADING, Phase.READY):
            return [Tell()]
        update = Update(event.replica, event.bandwidth, event.weight, event.objective_ns)
        return [Send(replica.wanted.lane, update), Tell()]

    def _fetched(self, replica: Replica, event: Fetched) -> list[Action]:
        if replica.phase is not Phase.FETCHING:
            return []
        replica.path, replica.format = event.path, event.format
        replica.move(Phase.WAITING, stage="waiting for its worker")
        return [*self._load_next(replica.wanted.lane), Tell()]

    def _not_fetched(self, replica: Replica, event: NotFetched) -> list[Action]:
        if replica.phase is not Phase.FETCHING:
            return []
        replica.move(Phase.REFUSED if event.refused else Phase.FAILED, message=event.message)
        return [LetGo(event.replica), Tell()]

    def _loaded(self, replica: Replica, event: Loaded) -> list[Action]:
        if replica.phase is not Phase.LOADING:
            return []
        replica.signature, replica.profile, replica.memory_bytes = event.signature, event.profile, event.memory_bytes
        if replica.wanted.declared is not None:
            try:
                replica.signature = agreed(event.signature, replica.wanted.declared)
            except Disagreement as problem:
                return self._disagreed(replica, str(problem))
        replica.move(Phase.READY)
        return [Serve(event.replica), *self._turn_over(replica), Tell()]

    def _disagreed(self, replica: Replica, problem: str) -> list[Action]:
        """It runs, and is not what was pushed: its worker lets go of it again."""
        number = replica.wanted.replica
        replica.move(Phase.REFUSED, message=problem[:4000])
        replica.signature = replica.profile = None
        unload = Send(replica.wanted.lane, Unload(replica=number, drain_ns=0))
        return [unload, LetGo(number), *self._turn_over(replica), Tell()]

    def _load_failed(self, replica: Replica, event: LoadFailed) -> list[Action]:
        if replica.phase is Phase.DRAINING:
            return self._unloaded(replica)
        if replica.phase is not Phase.LOADING:
            return []
        replica.move(Phase.REFUSED if event.refused else Phase.FAILED, message=event.message[:4000])
        return [LetGo(event.replica), *self._turn_over(replica), Tell()]

    def _unloaded(self, replica: Replica) -> list[Action]:
        if replica.phase is not Phase.DRAINING:
            return []
        forgotten = self._forget(replica)
        return [*forgotten, *self._turn_over(replica)]

    def _worker_up(self, lane: int, now: Nanoseconds) -> list[Action]:
        state = self._lanes[lane]
        state.up, state.has_worker, state.up_since = True, True, now
        return [*self._staff(lane), *self._load_next(lane), Tell()]

    def _worker_down(self, lane: int, reason: str, now: Nanoseconds) -> list[Action]:
        state = self._lanes[lane]
        steady = state.up and now - state.up_since >= STEADY_NS
        state.losses = 0 if steady or state.stops else state.losses + 1
        state.up, state.loading, state.has_worker, state.stops = False, None, False, False
        actions: list[Action] = []
        for replica in self.all():
            if replica.wanted.lane == lane:
                actions += self._lost(replica, reason)
        if not self._needs_worker(lane):
            return [*actions, Tell()]
        state.has_worker = True
        wait = FIRST_RESTART_NS << min(state.losses - 1, 20) if state.losses else 0
        return [*actions, StartWorker(lane, min(wait, LONGEST_RESTART_NS)), Tell()]

    def _lost(self, replica: Replica, reason: str) -> list[Action]:
        """What the loss of its worker means for a replica."""
        if replica.phase is Phase.DRAINING:
            return self._forget(replica)
        if replica.phase is Phase.READY:
            replica.move(Phase.WAITING, stage=f"its worker is being replaced: {reason}"[:200])
            return [Withdraw(replica.wanted.replica)]
        if replica.phase is Phase.LOADING:
            replica.crashes += 1
            if replica.crashes >= MOST_CRASHES:
                replica.move(Phase.REFUSED, message=f"crashes its worker while loading: {reason}")
                return [LetGo(replica.wanted.replica)]
            replica.move(Phase.WAITING, stage=f"its worker was lost while it loaded: {reason}"[:200])
        return []

    def _turn_over(self, replica: Replica) -> list[Action]:
        """The lane may load the next one, if it was this one's turn."""
        state = self._lanes[replica.wanted.lane]
        if state.loading == replica.wanted.replica:
            state.loading = None
        return self._load_next(replica.wanted.lane)

    def _load_next(self, lane: int) -> list[Action]:
        state = self._lanes[lane]
        if not state.up or state.loading is not None:
            return []
        waiting = [each for each in self._replicas.values() if each.phase is Phase.WAITING and each.wanted.lane == lane]
        if not waiting:
            return []
        replica = min(waiting, key=lambda each: (each.crashes, each.wanted.replica))
        state.loading = replica.wanted.replica
        replica.move(Phase.LOADING, stage="loading")
        return [Send(lane, replica.load())]
