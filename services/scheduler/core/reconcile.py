"""Wanted against actual: who has to go, who has to come, and which commands bring it about.

Every step is derived from the state alone, so that doing it twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.scheduler.core.catalogue import Inspection, Model, Profile, Ref, Version
from services.scheduler.core.events import (
    Action,
    Command,
    Noted,
    Passed,
    RecordInspection,
    Refused,
    SendFold,
    SendLayout,
    SendLoad,
    SendUnload,
    SendUpdate,
)
from services.scheduler.core.fleet import Executor, LaneId
from services.scheduler.core.placement import Ask, NoPlace, Place, devices, holds, place
from services.scheduler.core.replicas import Phase, Replica
from services.scheduler.core.reports import Device
from services.scheduler.core.state import State


@dataclass(frozen=True, slots=True)
class _Want:
    """A version that needs `missing` more replicas. moving: those it has would be better off elsewhere."""

    model: Model
    version: Version
    ref: Ref
    missing: int
    moving: bool = False


def retire(state: State, now: float) -> None:
    """Sends away what is not wanted: removed, unloaded and replaced versions, and replicas beyond the number asked for."""
    held = state.fleet.by_ref()
    for replica in state.fleet.replicas():
        if state.version(replica.ref) is None:
            replica.leave("it is no longer in the catalogue", state.policy.drain_s)
        elif state.models[replica.ref.key].unloaded:
            replica.leave("its model was unloaded by request", state.policy.drain_s)
    for model in state.models.values():
        numbers = {split.version for split in state.wanted(model)}
        refs = {version.number: model.ref(version) for version in model.versions}
        waiting = [number for number in numbers if not _serves(held.get(refs[number], []))]
        for number, ref in refs.items():
            if number in numbers:
                _retire_surplus(state, model, held.get(ref, []), now)
            else:
                _retire_replaced(state, held.get(ref, []), waiting)


def next_wants(state: State, now: float) -> list[_Want]:
    """What is missing, those with the largest reservations first."""
    held = state.fleet.by_ref()
    wants: list[_Want] = []
    for model in state.models.values():
        for version in state.wanted_versions(model):
            ref = model.ref(version)
            failures = state.failures.get(ref)
            if failures is None or failures.retry_at <= now:
                wants += _want(state, model, version, held.get(ref, []))
    return sorted(wants, key=lambda want: (want.moving, -state.model_demand(want.model), want.ref))


def place_missing(state: State, now: float, next_id: Iterator[int]) -> Iterator[Noted]:
    """Gives every version that lacks replicas a place, or remembers with numbers why there is none."""
    before, state.unplaced = state.unplaced, {}
    for want in next_wants(state, now):
        for _ in range(want.missing):
            failures = state.failures.get(want.ref)
            shunned = failures.executor_id if failures else None
            version = state.with_learnt(want.ref, want.version)
            demand, objective_us = state.model_demand(want.model), want.model.slo.objective_us
            ask = Ask(want.ref, demand, want.model.isolated, version, shunned, objective_us)
            found = _within_quota(state, place(state.fleet, ask, state.isolated), want)
            if isinstance(found, NoPlace):
                if not want.moving:
                    state.unplaced[want.ref] = found
                    if before.get(want.ref) != found:
                        yield Noted(f"{want.ref} has no place", found.detail)
                break
            _order(want, found, ask.demand, next(next_id))


def _within_quota(state: State, found: Place | NoPlace, want: _Want) -> Place | NoPlace:
    """The place, unless the tenant's replicas would hold more memory than it may."""
    tenant = state.tenant(want.model.key.tenant)
    limit = tenant.quota.memory_bytes
    if limit is None or isinstance(found, NoPlace):
        return found
    held = state.memory_of(tenant.name)
    if held + found.memory_bytes <= limit:
        return found
    why = (
        f"tenant {tenant.name!r} holds {held} of at most {limit} bytes of device memory; {want.ref} needs"
        f" {found.memory_bytes} more (quota memory_bytes)"
    )
    return NoPlace(why, why)


def shortages(state: State) -> Iterator[Noted]:
    """Tenants whose lane cannot give them what they were promised, each told once: their promise grew, or lanes changed."""
    before, state.short = state.short, {}
    for executor in state.fleet.usable():
        for replica in executor.replicas.values():
            needed, tenant = state.demand(replica) or 0, replica.ref.key.tenant
            granted = executor.grant(replica.lane, tenant)
            if replica.live and granted < needed:
                state.short[LaneId(executor.executor_id, replica.lane), tenant] = (granted, needed)
    for (lane, tenant), (granted, needed) in state.short.items():
        if before.get((lane, tenant)) != (granted, needed):
            yield Noted(f"{tenant} is short on {lane}", f"has {devices(granted)} devices of {devices(needed)} promised")


def commands(state: State, now: float) -> Iterator[Command]:
    """What executors have to be told, and have not been, or not to any effect."""
    for executor in state.fleet.executors.values():
        if executor.attached:
            yield from _layout(state, executor, now)
            yield from _folds(state, executor, now)
            for replica in executor.replicas.values():
                yield from _command(state, executor, replica, now)


def inspections(state: State) -> Iterator[Action]:
    """What the registry has to be told, once each."""
    for _, version, ref in state.refs():
        message = state.refused.get(ref)
        if message is not None and version.inspection is not Inspection.REFUSED:
            yield from _record(state, ref, "", Refused(message))
        learnt = state.learnt.get(ref)
        if learnt is None or message is not None:
            continue
        if version.inspection is Inspection.PENDING and not learnt.profiles:
            yield from _record(state, ref, "", Passed(learnt.signature, None))
        for profile in learnt.profiles:
            known = any(each.covers(profile) for each in version.profiles)
            if version.inspection is Inspection.PENDING or not known:
                measured = f"{profile.device_kind} {sorted(profile.units)}"
                yield from _record(state, ref, measured, Passed(learnt.signature, profile))


def _serves(replicas: list[Replica]) -> bool:
    return any(replica.phase is Phase.READY for replica in replicas)


def _retire_replaced(state: State, replicas: list[Replica], waiting: list[int]) -> None:
    """A version that is no longer wanted serves on until every wanted one does; one that never served goes at once."""
    for replica in replicas:
        if not waiting:
            replica.leave("other versions serve in its place", state.policy.drain_s)
        elif not replica.served:
            replica.leave("its version is no longer wanted", 0.0)


def _retire_surplus(state: State, model: Model, replicas: list[Replica], now: float) -> None:
    """Keeps as many as are wanted: those that serve before others, those in the right place first, the oldest first.

    A replica on its way may stay for each one kept that serves in the wrong place: it is there to take over.
    """
    wanted = model.replicas or 1
    ranked = sorted(_one_each(state, replicas, now), key=lambda replica: _worth(state, replica))
    kept, beyond = ranked[:wanted], ranked[wanted:]
    takeovers = sum(each.phase is Phase.READY and state.misplaced(each) for each in kept)
    for replica in beyond:
        if takeovers and replica.phase is not Phase.READY and not state.misplaced(replica):
            takeovers -= 1
        else:
            replica.leave(f"replicas asked for: {wanted}, held: {len(ranked)}", state.policy.drain_s)


def _one_each(state: State, replicas: list[Replica], now: float) -> list[Replica]:
    """The best on each executor; the others are sent away, those on lanes that are being left in their own time."""
    best: dict[str, Replica] = {}
    behind: list[Replica] = []
    for replica in sorted(replicas, key=lambda each: _worth(state, each)):
        if not state.fleet.executors[replica.executor_id].in_force(replica.lane):
            behind.append(replica)
            continue
        first = best.setdefault(replica.executor_id, replica)
        if first is not replica:
            replica.leave(f"{replica.executor_id} holds it twice", state.policy.drain_s)
    return [*best.values(), *_still_needed(state, behind, best, now)]


def _still_needed(state: State, behind: list[Replica], best: dict[str, Replica], now: float) -> list[Replica]:
    """Of replicas on lanes that are being left: those that serve while nobody serves in their place.

    Once somebody does, both serve for a moment, so that no frontend knows the one alone that goes.
    """
    needed: dict[str, Replica] = {}
    for replica in behind:
        successor = best.get(replica.executor_id)
        if replica.phase is not Phase.READY:
            replica.leave("its lane is not in the layout in force", 0.0)
        elif successor is None or successor.phase is not Phase.READY:
            if needed.setdefault(replica.executor_id, replica) is not replica:
                replica.leave(f"{replica.executor_id} holds it twice", state.policy.drain_s)
        elif now - successor.ready_at >= state.policy.handover_s:
            replica.leave(f"replica {successor.replica_id} serves on the layout in force", state.policy.drain_s)
    return list(needed.values())


def _worth(state: State, replica: Replica) -> tuple[bool, bool, int]:
    return (replica.phase is not Phase.READY, state.misplaced(replica), replica.replica_id)


def _want(state: State, model: Model, version: Version, replicas: list[Replica]) -> Iterator[_Want]:
    ref, wanted = model.ref(version), model.replicas or 1
    if len(replicas) < wanted:
        yield _Want(model, version, ref, wanted - len(replicas))
    elif len(replicas) == wanted:
        misplaced = sum(each.phase is Phase.READY and state.misplaced(each) for each in replicas)
        if misplaced:
            yield _Want(model, version, ref, 1, moving=True)


def _order(want: _Want, found: Place, demand: int, replica_id: int) -> None:
    executor = found.executor
    replica = Replica(replica_id, want.ref, executor.executor_id, found.lane, found.memory_bytes)
    replica.why = f"{'moved: ' if want.moving else ''}{found.why}"
    assert not holds(executor, want.ref)
    executor.adopt(replica, demand)


def _command(state: State, executor: Executor, replica: Replica, now: float) -> Iterator[Command]:
    if not replica.live:
        if replica.overdue(now, state.policy.resend_s):
            replica.sent_at = now
            yield SendUnload(executor.executor_id, replica.replica_id, replica.drain_s, replica.why)
        return
    terms = state.terms(replica)
    if replica.phase is Phase.ORDERED and replica.overdue(now, state.policy.resend_s):
        replica.sent_at, replica.told = now, terms
        yield _load(state, executor, replica)
    elif replica.told != terms:
        why = "it was adopted" if replica.told is None else f"was {replica.told}"
        replica.told = terms
        yield SendUpdate(executor.executor_id, replica.replica_id, terms, why)


def _layout(state: State, executor: Executor, now: float) -> Iterator[Command]:
    division = executor.division
    told = (executor.report.layout, executor.report.layout_pinned) == (division.layout, division.pinned)
    due = division.sent_at is None or now >= division.sent_at + state.policy.resend_s
    if executor.hello.device.layouts and not told and due:
        division.sent_at = now
        yield SendLayout(executor.executor_id, division.layout, division.pinned, division.why)


def _folds(state: State, executor: Executor, now: float) -> Iterator[SendFold]:
    for counted in state.foldable(executor, now):
        executor.gone[counted] = now
        if counted.key not in state.models:
            yield SendFold(executor.executor_id, *counted, f"the model has been gone for {state.policy.fold_s:g} s")


def _load(state: State, executor: Executor, replica: Replica) -> SendLoad:
    version = state.version(replica.ref)
    assert version is not None
    known = state.with_learnt(replica.ref, version)
    profile = _profile(known, executor.hello.device, replica.lane)
    return SendLoad(
        executor.executor_id,
        replica.replica_id,
        replica.ref,
        replica.lane,
        state.terms(replica),
        version.size_bytes,
        version.config,
        known.signature,
        profile,
        replica.why,
        state.tenant(replica.ref.key.tenant).signers,
        version.artefact_signature,
    )


def _profile(version: Version, device: Device, number: int) -> Profile | None:
    """What is known on such a device, rather from lanes of the same size."""
    lane = device.lane(number)
    units = lane.compute_units if lane is not None else 0
    of_kind = [each for each in version.profiles if each.device_kind == device.kind]
    return max(of_kind, key=lambda each: (units in each.units, len(each.units)), default=None)


def _record(state: State, ref: Ref, measured: str, outcome: Passed | Refused) -> Iterator[Action]:
    if (ref, measured) not in state.recorded:
        state.recorded.add((ref, measured))
        yield RecordInspection(ref, outcome)
