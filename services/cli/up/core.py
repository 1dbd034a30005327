"""What the supervisor does, decided: events in, actions out. No process, no clock, no file is touched here.

A service goes through waiting (for the addresses it needs), starting, ready, and back to waiting with a delay where it
died. It is stopped by levels, so that what takes requests drains before what serves them goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

SECOND = 1_000_000_000
Nanoseconds: TypeAlias = int
Addresses: TypeAlias = Mapping[str, str]


class Phase(Enum):
    """Where a service stands."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    GONE = "gone"


@dataclass(frozen=True)
class Service:
    """What is known of a service before it runs. needs: whose addresses it is started with; level: when it is stopped, lowest first."""

    name: str
    needs: frozenset[str] = frozenset()
    level: int = 0


@dataclass(frozen=True)
class Limits:
    """The supervisor's patience."""

    first_delay_ns: Nanoseconds = SECOND // 2
    """Before the first restart; doubles with each further one."""
    most_delay_ns: Nanoseconds = 30 * SECOND
    healthy_after_ns: Nanoseconds = 10 * SECOND
    """A service that was ready for so long starts again with the first delay when it dies."""
    start_tries: int = 3
    """How often a service may die before it was ever ready."""
    stop_grace_ns: Nanoseconds = 10 * SECOND
    """From SIGTERM to SIGKILL, for each level."""


# Events.


@dataclass(frozen=True)
class Begin:
    """Start everything."""


@dataclass(frozen=True)
class Ready:
    """A service wrote its ready file."""

    name: str
    addresses: Addresses


@dataclass(frozen=True)
class Exited:
    """A service's process has ended. error: the last line it wrote, without "error: "."""

    name: str
    status: int
    error: str | None = None


@dataclass(frozen=True)
class Answering:
    """The mesh answers: the scheduler sees the executor and the frontend says that it is ready."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class StopAsked:
    """Ctrl-C or SIGTERM. A second one does not wait."""


Event: TypeAlias = Begin | Ready | Exited | Answering | Tick | StopAsked


# Actions.


@dataclass(frozen=True)
class Start:
    """Start a service's process. pinned: the addresses it had before, to be had again; known: those of the services it needs."""

    name: str
    known: Mapping[str, Addresses]
    pinned: Addresses | None


@dataclass(frozen=True)
class Terminate:
    """Send SIGTERM."""

    name: str


@dataclass(frozen=True)
class Kill:
    """Send SIGKILL."""

    name: str


@dataclass(frozen=True)
class Probe:
    """Every service runs: find out when the mesh answers."""


@dataclass(frozen=True)
class Publish:
    """Addresses or processes have changed: write them down."""


@dataclass(frozen=True)
class Announce:
    """Tell the user that the mesh is up."""


@dataclass(frozen=True)
class Notice:
    """Tell the user something of importance in one line."""

    text: str


@dataclass(frozen=True)
class Finish:
    """Everything has stopped: leave with this status and, where it failed, this line."""

    status: int
    error: str | None = None


Action: TypeAlias = Start | Terminate | Kill | Probe | Publish | Announce | Notice | Finish


@dataclass(frozen=True)
class _State:
    phase: Phase = Phase.WAITING
    pinned: Addresses | None = None
    not_before: Nanoseconds = 0
    ready_at: Nanoseconds | None = None
    failures: int = 0


@dataclass
class Supervisor:
    """Decides for the processes of one mesh.

    `handle(event, now)` returns what to do, in order; `wake_at` says when to send the next Tick. `now` is monotonic.
    """

    services: Sequence[Service]
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self._states = {service.name: _State() for service in self.services}
        self._begun = self._probing = self._answering = self._stopping = False
        self._result = Finish(0)
        self._kill_at: Nanoseconds | None = None

    def handle(self, event: Event, now: Nanoseconds) -> list[Action]:
        """Takes one event in. Returns the actions to perform, in order."""
        match event:
            case Begin():
                self._begun = True
                return self._advance(now)
            case Ready(name, addresses):
                return self._on_ready(name, addresses, now)
            case Exited(name, status, error):
                return self._on_exit(name, status, error, now)
            case Answering():
                return self._on_answering()
            case StopAsked():
                return self._on_stop(now)
            case Tick():
                return self._on_tick(now)

    def wake_at(self) -> Nanoseconds | None:
        """When the next Tick is due; None: nothing is waiting for time to pass."""
        if self._stopping:
            return self._kill_at
        due = [s.not_before for s in self._states.values() if s.phase is Phase.WAITING and s.not_before]
        return min(due, default=None)

    def phase(self, name: str) -> Phase:
        """Where a service stands."""
        return self._states[name].phase

    def _on_ready(self, name: str, addresses: Addresses, now: Nanoseconds) -> list[Action]:
        state = self._states[name]
        if state.phase is not Phase.STARTING:
            return []
        self._set(name, phase=Phase.READY, pinned=dict(addresses), ready_at=now)
        again: list[Action] = [Notice(f"{name} is back"), Publish()] if self._answering else []
        return [*again, *self._advance(now)]

    def _on_answering(self) -> list[Action]:
        if self._answering or self._stopping:
            return []
        self._answering = True
        return [Publish(), Announce()]

    def _on_exit(self, name: str, status: int, error: str | None, now: Nanoseconds) -> list[Action]:
        if self._stopping:
            self._set(name, phase=Phase.GONE)
            return self._stop_next(now)
        state = self._states[name]
        lived = state.ready_at is not None and now - state.ready_at >= self.limits.healthy_after_ns
        failures = 1 if lived else state.failures + 1
        if state.pinned is None and (status == 2 or failures >= self.limits.start_tries):
            self._set(name, phase=Phase.GONE)
            return self._give_up(name, status, error, now)
        delay = min(self.limits.most_delay_ns, self.limits.first_delay_ns << (failures - 1))
        self._set(name, phase=Phase.WAITING, not_before=now + delay, ready_at=None, failures=failures)
        why = f": {error}" if error else ""
        return [Notice(f"{name} {ending(status)}{why}; starting it again in {delay / SECOND:.1f} s")]

    def _give_up(self, name: str, status: int, error: str | None, now: Nanoseconds) -> list[Action]:
        self._result = Finish(2 if status == 2 else 1, error or f"{name} {ending(status)} while it was starting")
        return self._begin_stop(now)

    def _on_tick(self, now: Nanoseconds) -> list[Action]:
        if not self._stopping:
            return self._advance(now)
        if self._kill_at is None or now < self._kill_at:
            return []
        self._kill_at = None
        late = [name for name, state in self._states.items() if state.phase is Phase.STOPPING]
        return [action for name in late for action in (Notice(f"{name} did not stop in time: killed"), Kill(name))]

    def _on_stop(self, now: Nanoseconds) -> list[Action]:
        if not self._stopping:
            return self._begin_stop(now)
        # The user has lost patience.
        self._kill_at = None
        for name in self._running():
            self._set(name, phase=Phase.STOPPING)
        return [Kill(name) for name in self._running()]

    def _begin_stop(self, now: Nanoseconds) -> list[Action]:
        self._stopping = True
        for name, state in self._states.items():
            if state.phase is Phase.WAITING:
                self._set(name, phase=Phase.GONE)
        return self._stop_next(now)

    def _stop_next(self, now: Nanoseconds) -> list[Action]:
        """Asks the lowest level that still runs to stop; nothing while it is being waited for."""
        running = self._running()
        if not running:
            return [self._result]
        if any(state.phase is Phase.STOPPING for state in self._states.values()):
            return []
        level = min(service.level for service in self.services if service.name in running)
        names = [service.name for service in self.services if service.level == level and service.name in running]
        for name in names:
            self._set(name, phase=Phase.STOPPING)
        self._kill_at = now + self.limits.stop_grace_ns
        return [Terminate(name) for name in names]

    def _advance(self, now: Nanoseconds) -> list[Action]:
        """Starts what can be started; asks for a probe once everything runs."""
        if self._stopping or not self._begun:
            return []
        actions: list[Action] = [self._start(service) for service in self.services if self._startable(service, now)]
        if not self._probing and all(state.phase is Phase.READY for state in self._states.values()):
            self._probing = True
            actions.append(Probe())
        return actions

    def _startable(self, service: Service, now: Nanoseconds) -> bool:
        state = self._states[service.name]
        known = all(self._states[name].pinned is not None for name in service.needs)
        return state.phase is Phase.WAITING and known and now >= state.not_before

    def _start(self, service: Service) -> Start:
        state = self._states[service.name]
        self._set(service.name, phase=Phase.STARTING, not_before=0)
        known = {name: self._states[name].pinned or {} for name in sorted(service.needs)}
        return Start(service.name, known, state.pinned)

    def _running(self) -> list[str]:
        live = (Phase.STARTING, Phase.READY, Phase.STOPPING)
        return [name for name, state in self._states.items() if state.phase in live]

    def _set(self, name: str, **changes: object) -> None:
        self._states[name] = replace(self._states[name], **changes)  # type: ignore[arg-type]


def ending(status: int) -> str:
    """How a process ended, in words: a negative status is the signal that ended it."""
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
