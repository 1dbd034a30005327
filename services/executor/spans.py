"""What a request's trace says of its time here: noted for every call, made into spans only for those whose verdict keeps them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

from gpu_sharing.measurements import Batch
from gpu_sharing.units import Nanoseconds
from services.common import attributes as names
from services.common.errors import Refusal
from services.common.telemetry import SpanRecord, Tracer, Value, new_span_id, new_trace_id
from services.executor.core.waits import Owner
from services.executor.inflight import Call
from services.executor.stages import Told, batch_span, stages_of

MOST_DESERTED = 1_000
"""Traces that are kept of a frontend that is lost, whose verdicts never come."""
MOST_GONE = 256
LOOKS = 100
"""Within the time that a note is held, it is looked this often whether any has been for longer."""
RECENT_BATCHES = 64
"""Batches of a lane that are remembered, so that who waited for one can point to it."""
MOST_NEIGHBOURS = 8
"""Batches of others that one trace points to."""


class Shared:
    """One batch as traces show it: a trace of its own, made once, when the first of its members is kept."""

    __slots__ = ("_ids", "batch", "first", "members", "told")

    def __init__(self, batch: Batch, first: Call) -> None:
        self.batch, self.first, self.told = batch, first, False
        self.members: list[tuple[bytes, bytes]] = []
        self._ids: tuple[bytes, bytes] | None = None

    @property
    def ids(self) -> tuple[bytes, bytes]:
        """Trace id and span id: drawn when somebody first needs them, as nobody does of most batches."""
        if self._ids is None:
            self._ids = (new_trace_id(), new_span_id())
        return self._ids


class _Note(NamedTuple):
    """A finished call, until its verdict."""

    call: Call
    shared: Shared | None
    ended: Nanoseconds
    refusal: Refusal | None
    gathered: Nanoseconds
    copied: Nanoseconds


class Spans:
    """Holds what is known of finished calls until the frontend's word on them.

    hold_ns and capacity: how long, and how many; the oldest go first and are counted in `dropped`. lanes: what every span says
    of its lane, by number. owners: tenant and model of a replica, of those that have left, too.
    """

    def __init__(
        self,
        tracer: Tracer,
        executor_id: str,
        incarnation: str,
        *,
        hold_ns: Nanoseconds,
        capacity: int,
        lanes: Mapping[int, Mapping[str, Value]] | None = None,
        owners: Callable[[int], Owner | None] = lambda _: None,
    ) -> None:
        self._tracer, self._hold_ns, self._capacity = tracer, hold_ns, capacity
        self._where = {names.EXECUTOR_ID: executor_id, names.EXECUTOR_INCARNATION: incarnation}
        self._lanes, self._owners = lanes or {}, owners
        self._notes: OrderedDict[Hashable, _Note] = OrderedDict()
        self._early: OrderedDict[Hashable, tuple[Nanoseconds, bool]] = OrderedDict()
        self._recent: dict[int, deque[Shared]] = {}
        self._gone: OrderedDict[int, int] = OrderedDict()
        self._trimmed: Nanoseconds = 0
        self.dropped = 0
        self.unheard = 0

    @property
    def held(self) -> int:
        """Finished calls that wait for their verdict."""
        return len(self._notes)

    def finished(
        self,
        call: Call,
        batch: Batch | None,
        now: Nanoseconds,
        refusal: Refusal | None,
        gathered: Nanoseconds = 0,
        copied: Nanoseconds = 0,
    ) -> None:
        """Notes a call that is over. gathered, copied: see the worker's Done."""
        if not self._tracer.enabled or call.span is None:
            return
        shared = self._share(call, batch) if batch is not None else None
        note, key = _Note(call, shared, now, refusal, gathered, copied), (call.caller.key, call.call)
        early = self._early.pop(key, None)
        if early is not None:
            self._emit(note, violated=early[1])
        elif call.caller.key in self._gone:
            self._desert(note)
        else:
            self._notes[key] = note
            self._trim(now)

    def verdict(self, caller: int, call: int, keep: bool, now: Nanoseconds, *, violated: bool = False) -> None:
        """The frontend's word on a call; where the call is not over yet, it is remembered."""
        key = (caller, call)
        note = self._notes.pop(key, None)
        if note is None and keep and self._tracer.enabled:
            self._early[key] = (now, violated)
            self._trim(now)
        elif note is not None and keep:
            self._emit(note, violated=violated)

    def deserted(self, caller: int, now: Nanoseconds) -> None:
        """A frontend is gone, and its verdicts with it. Kept is what it was late or failed for as far as can be told from here, and
        what it still waits for: nobody else will say where the time of these went."""
        self._gone[caller] = MOST_DESERTED
        if len(self._gone) > MOST_GONE:
            self._gone.popitem(last=False)
        for key in [key for key, note in self._notes.items() if note.call.caller.key == caller]:
            note = self._notes.pop(key)
            late = note.call.objective is not None and note.ended > note.call.objective
            if late or note.refusal is not None:
                self._desert(note)
        self._trim(now)

    def _desert(self, note: _Note) -> None:
        left = self._gone[note.call.caller.key]
        if left <= 0:
            self.dropped += 1
            return
        self._gone[note.call.caller.key] = left - 1
        self._emit(
            note, violated=True, missing="its frontend, or the connection to it, was lost before its verdict came"
        )

    def _trim(self, now: Nanoseconds) -> None:
        if now - self._trimmed < self._hold_ns // LOOKS and len(self._notes) <= self._capacity >= len(self._early):
            return
        self._trimmed = now
        oldest = now - self._hold_ns
        while self._notes and (len(self._notes) > self._capacity or next(iter(self._notes.values())).ended < oldest):
            self._notes.popitem(last=False)
            self.dropped += 1
        while self._early and (len(self._early) > self._capacity or next(iter(self._early.values()))[0] < oldest):
            self._early.popitem(last=False)
            self.unheard += 1

    def _share(self, call: Call, batch: Batch) -> Shared:
        serving = call.serving
        lane = serving.lane.number
        recent = self._recent.get(lane)
        if recent is None:
            recent = self._recent[lane] = deque(maxlen=RECENT_BATCHES)
        shared = recent[-1] if recent else None
        if shared is None or shared.batch.number != batch.number or shared.batch.started != batch.started:
            shared = Shared(batch, call)
            recent.append(shared)
        if call.span is not None:
            shared.members.append(call.span)
        return shared

    def _emit(self, note: _Note, *, violated: bool, missing: str = "") -> None:
        call, shared = note.call, note.shared
        kept = names.KEPT_VIOLATED if violated else names.KEPT_SAMPLED
        batch = None if shared is None else shared.batch
        told = Told(call, batch, note.ended, note.refusal, note.gathered, note.copied, missing)
        own = (call.serving.tenant, call.serving.model)
        records = stages_of(told, self._about(call), self._of_lane(call), own, self._owners)
        if shared is not None:
            beside = self._beside(call, shared) if violated else []
            for record in records:
                stage = record.attributes[names.SLO_STAGE]
                if stage == names.STAGE_COMPUTE:
                    record.links.append((*shared.ids, {names.LINK_KIND: names.LINK_BATCH}))
                elif stage == names.STAGE_QUEUE:
                    record.links += [(*each.ids, {names.LINK_KIND: names.LINK_NEIGHBOUR}) for each in beside]
            for each in (shared, *beside):
                if not each.told:
                    each.told = True
                    records.append(self._batch(each, kept))
        self._tracer.emit_all(records, spare=not violated)

    def _beside(self, call: Call, shared: Shared) -> list[Shared]:
        """Batches of other tenants that had the lane while the call waited or ran, the latest first."""
        lane, batch = call.serving.lane.number, shared.batch
        found: list[Shared] = []
        for each in reversed(self._recent.get(lane, ())):
            if each.first.serving.tenant != call.serving.tenant and each.batch.started < batch.ended:
                if each.batch.ended <= call.handed or len(found) == MOST_NEIGHBOURS:
                    break
                found.append(each)
        return found

    def _batch(self, shared: Shared, kept: str) -> SpanRecord:
        links: list[tuple[bytes, bytes, dict[str, Value]]] = [
            (trace, span, {names.LINK_KIND: names.LINK_MEMBER}) for trace, span in shared.members
        ]
        about = {**self._about(shared.first), **self._of_lane(shared.first), names.SLO_KEPT_BECAUSE: kept}
        return batch_span(shared.batch, *shared.ids, about, links)

    def _about(self, call: Call) -> dict[str, Value]:
        """What every span says."""
        serving = call.serving
        return {
            names.EXECUTOR_ID: self._where[names.EXECUTOR_ID],
            names.TENANT_NAME: serving.tenant,
            names.MODEL_NAME: serving.model,
            names.LANE_ID: serving.lane.number,
        }

    def _of_lane(self, call: Call) -> dict[str, Value]:
        """What the spans of batches say beside: encoding each of these for every span would cost more than all the rest."""
        serving = call.serving
        return {
            names.EXECUTOR_INCARNATION: self._where[names.EXECUTOR_INCARNATION],
            names.MODEL_VERSION: str(serving.version),
            names.EXECUTOR_REPLICA: str(serving.replica),
            **self._lanes.get(serving.lane.number, {}),
        }
