"""The one task that owns the core: events in, one after another; actions out, each logged in one line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from services.scheduler.core.events import (
    Action,
    Command,
    Event,
    Noted,
    RecordInspection,
    SendFold,
    SendLayout,
    SendLoad,
    SendUnload,
    SendUpdate,
    Tick,
)
from services.scheduler.core.routes import RoutesChanged
from services.scheduler.core.scheduler import Scheduler

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Item:
    event: Event
    still_holds: Callable[[], bool]


class Deciding:
    """Feeds the core and hands on what it wants done. Everything here runs on one event loop.

    send: puts a command on its executor's stream. record: has an inspection recorded. clock: monotonic seconds.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        send: Callable[[Command], None],
        record: Callable[[RecordInspection], None],
        clock: Callable[[], float],
    ) -> None:
        self.scheduler = scheduler
        self._send, self._record, self._clock = send, record, clock
        self._events: asyncio.Queue[_Item] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._stage = (False, False)

    def tell(self, event: Event, still_holds: Callable[[], bool] = lambda: True) -> None:
        """Puts an event behind those before it. It is left out where `still_holds` says no when its turn comes."""
        self._events.put_nowait(_Item(event, still_holds))

    @property
    def settled(self) -> bool:
        """Whether the routes say what there is."""
        return self.scheduler.settled(self._clock())

    def changed(self) -> asyncio.Event:
        """Set once routes change, or become worth telling. Take it before looking, so that nothing is missed."""
        return self._changed

    def wake(self) -> None:
        """Has everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Decides until cancelled."""
        while True:
            item = await self._events.get()
            if item.still_holds():
                self.handle(item.event)

    async def tick(self, every_s: float) -> None:
        """Tells the core that time passes, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            self.tell(Tick())

    def handle(self, event: Event) -> None:
        """One event. An error in the core is logged and ends nothing: the next event finds the state as it is."""
        try:
            actions = self.scheduler.handle(event, self._clock())
        except Exception:
            log.exception("the scheduler could not handle an event", event_kind=type(event).__name__)
            return
        for action in actions:
            self._perform(action)
        stage = (self.scheduler.catalogue_known, self.settled)
        if stage != self._stage or any(isinstance(action, RoutesChanged) for action in actions):
            self._stage = stage
            self.wake()

    def _perform(self, action: Action) -> None:
        if isinstance(action, Noted):
            log.info(action.what, why=action.why)
        elif isinstance(action, RoutesChanged):
            log.info(
                "routes changed",
                revision=action.revision,
                upserts=[str(route.key) for route in action.upserts],
                removals=[str(key) for key in action.removals],
            )
        elif isinstance(action, RecordInspection):
            self._record(action)
        else:
            _log_command(action)
            self._send(action)


def _log_command(command: Command) -> None:
    if isinstance(command, SendLayout):
        log.info("layout", executor=command.executor_id, layout=command.layout, pinned=command.pinned, why=command.why)
        return
    if isinstance(command, SendFold):
        log.info("fold", executor=command.executor_id, model=str(command.key), life=command.life, why=command.why)
        return
    subject: dict[str, object] = {"executor": command.executor_id, "replica": command.replica_id, "why": command.why}
    if isinstance(command, SendLoad):
        log.info("load", what=str(command.ref), lane=command.lane, bandwidth=command.terms.bandwidth, **subject)
    elif isinstance(command, SendUnload):
        log.info("unload", drain_s=command.drain_s, **subject)
    elif isinstance(command, SendUpdate):
        terms = command.terms
        log.info("update", bandwidth=terms.bandwidth, weight=terms.weight, objective_us=terms.objective_us, **subject)
