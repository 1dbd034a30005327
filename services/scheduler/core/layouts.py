"""Which layout each executor's device is in, and the change from one to another.

A change makes before it breaks: once another layout is in force, replicas on lanes that are not in it are misplaced, and move
as misplaced replicas do (reconcile.py). One device changes at a time. `gpu_sharing.partitioning` says which layout serves best.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpu_sharing.partitioning.choice import Fit, Part, Want, choose, fit
from services.scheduler.core.catalogue import Model, Ref, Version
from services.scheduler.core.events import LayoutPinned, Noted
from services.scheduler.core.fleet import Division, Executor
from services.scheduler.core.placement import has_memory, lane_memory, memory_estimate
from services.scheduler.core.replicas import Phase, Replica
from services.scheduler.core.state import State

AVOIDED_DWELLS = 10
"""A layout to which a change came to nothing is not tried again for so many times the least time between changes."""


def attach(executor: Executor, known: Executor | None) -> None:
    """An executor said hello: it stays divided as it was told to be; where it is not known, as it says it is."""
    device, report = executor.hello.device, executor.hello.report
    if known is not None and known.hello.device.layouts == device.layouts:
        executor.division = known.division
        executor.division.sent_at = None
    elif report.layout < len(device.layouts):
        executor.division = Division(report.layout, report.layout_pinned)


def review(state: State, now: float) -> Iterator[Noted]:
    """Ends changes that are over, takes back one that does not get on, and begins the next."""
    divided = [each for each in state.fleet.usable() if each.attached and len(each.hello.device.layouts) > 1]
    for executor in divided:
        yield from _go_on(state, executor, now)
    if any(executor.division.before is not None for executor in divided):
        return
    for executor in divided:
        if not executor.division.pinned:
            noted = _review(state, executor, now)
            if noted is not None:
                yield noted
                return


class LayoutRefused(ValueError):
    """A layout cannot be brought into force. field: what is wrong with the wish; the message: why, and what there is."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


def wish(state: State, executor_id: str, name: str) -> LayoutPinned:
    """An operator's wish, checked. name: of the layout; "": leave the choice to demand. Raises LayoutRefused."""
    executor = state.fleet.executors.get(executor_id)
    if executor is None or not executor.attached:
        known = ", ".join(sorted(state.fleet.executors)) or "none"
        raise LayoutRefused("executor_id", f"{executor_id!r} is not attached; there are: {known}")
    names = [layout.name for layout in executor.hello.device.layouts]
    if not name:
        return LayoutPinned(executor_id, None)
    if name not in names:
        raise LayoutRefused(
            "layout", f"{name!r} is none of those that {executor_id} is prepared for: {', '.join(names)}"
        )
    homeless = unserved(state, executor, names.index(name))
    if homeless:
        raise LayoutRefused("layout", f"in {name!r} there would be no place for {', '.join(homeless)}")
    return LayoutPinned(executor_id, names.index(name))


def pin(state: State, executor_id: str, layout: int | None, now: float) -> Iterator[Noted]:
    """An operator wants a layout in force, or leaves the choice to demand again."""
    executor = state.fleet.executors.get(executor_id)
    if executor is None or (layout is not None and layout >= len(executor.hello.device.layouts)):
        return
    division = executor.division
    division.pinned, division.sent_at = layout is not None, None
    if layout is not None and layout != division.layout:
        yield _begin(executor, layout, now, "an operator wants it")


def unserved(state: State, executor: Executor, layout: int) -> tuple[str, ...]:
    """Models that would have no place if a layout came into force, and have one now."""
    now, then = (_fits(state, executor)[number] for number in (executor.division.layout, layout))
    return tuple(name for name in then.unplaced if name not in now.unplaced)


def drain_first(state: State) -> None:
    """Where a replica's successor finds no memory beside it, and nothing that is under way will make room, it leaves first.

    Only replicas that others serve in place of, or on a device whose layout an operator wants.
    """
    for executor in state.fleet.usable():
        behind = [replica for replica in executor.left_behind if replica.phase is Phase.READY]
        settled = all(replica.phase is Phase.READY for replica in executor.replicas.values())
        for replica in behind if settled else ():
            fits = has_memory(executor, _memory(state, executor, replica))
            if not fits and (executor.division.pinned or _served_elsewhere(state, replica)):
                replica.leave("there is no memory for it and its successor together", state.policy.drain_s)
                break


def _go_on(state: State, executor: Executor, now: float) -> Iterator[Noted]:
    division = executor.division
    if division.before is None:
        return
    if not executor.left_behind and executor.report.layout == division.layout:
        division.before = None
        division.rates.start_over()
        yield Noted(f"{executor.executor_id} has changed its layout", f"it is {_name(executor, division.layout)} now")
    elif now - (division.patience.changed_at or now) >= state.policy.layout_limit_s and not division.pinned:
        failed, back = division.layout, division.before
        division.avoided_until[failed] = now + AVOIDED_DWELLS * state.policy.layout_dwell_s
        left = ", ".join(str(replica.ref) for replica in executor.left_behind)
        yield _begin(
            executor, back, now, f"{_name(executor, failed)} was not reached: {left or 'its executor does not follow'}"
        )


def _review(state: State, executor: Executor, now: float) -> Noted | None:
    division, policy = executor.division, state.policy
    fits = _fits(state, executor)
    allowed = [
        number
        for number in range(len(fits))
        if division.avoided_until.get(number, now) <= now and _can_change(state, executor, number)
    ]
    best = choose(fits, division.layout, allowed)
    if division.patience.is_time(
        best, division.layout, now, steady_s=policy.layout_steady_s, dwell_s=policy.layout_dwell_s
    ):
        return _begin(executor, best, now, _why(fits[division.layout], fits[best]))
    return None


def _begin(executor: Executor, layout: int, now: float, why: str) -> Noted:
    division = executor.division
    division.before, division.layout = division.layout, layout
    division.sent_at, division.why = None, why
    division.patience.changed(now)
    names = _name(executor, division.before), _name(executor, layout)
    return Noted(f"{executor.executor_id} changes its layout from {names[0]} to {names[1]}", why)


def _fits(state: State, executor: Executor) -> list[Fit]:
    """How each layout would serve what lives on the device, and what has no place anywhere."""
    device, wants = executor.hello.device, list(_wants(state, executor))
    most_units = max(lane.compute_units for lane in device.lanes)
    return [
        fit(
            [
                Part(lane.number, lane.worker, lane.compute_units, device.capacity(lane.number), lane.memory_bytes)
                for lane in device.in_layout(number)
            ],
            wants,
            most_units,
        )
        for number in range(len(device.layouts))
    ]


def _wants(state: State, executor: Executor) -> Iterator[Want]:
    held = {replica.ref: replica for replica in executor.replicas.values() if replica.live}
    homeless = {ref for ref, found in state.unplaced.items() if not found.waits}
    for model, version, ref in state.refs():
        if ref in held or ref in homeless:
            yield _want(state, executor, model, state.with_learnt(ref, version), held.get(ref))


def _want(state: State, executor: Executor, model: Model, version: Version, replica: Replica | None) -> Want:
    device = executor.hello.device
    ref: Ref = model.ref(version)
    lane = device.lane(replica.lane) if replica is not None else None
    objective_us = model.slo.objective_us
    return Want(
        name=str(ref),
        tenant=model.key.tenant,
        bandwidth=state.model_demand(model),
        memory_bytes=replica.memory_bytes if replica is not None else lane_memory(version, device.kind),
        isolated=model.isolated,
        objective_ns=None if objective_us is None else objective_us * 1_000,
        measured=version.measured(device.kind),
        busy=executor.division.rates.busy(model.key) if replica is not None else 0.0,
        busy_units=lane.compute_units if lane is not None else 1,
    )


def _can_change(state: State, executor: Executor, layout: int) -> bool:
    """Whether each replica that would move finds memory beside itself, or is served elsewhere meanwhile."""
    kept = {lane.number for lane in executor.hello.device.in_layout(layout)}
    return all(
        has_memory(executor, _memory(state, executor, replica)) or _served_elsewhere(state, replica)
        for replica in executor.replicas.values()
        if replica.live and replica.lane not in kept
    )


def _memory(state: State, executor: Executor, replica: Replica) -> int:
    version = state.version(replica.ref)
    known = state.with_learnt(replica.ref, version) if version is not None else None
    return memory_estimate(known, executor.hello.device.kind) if known is not None else replica.memory_bytes


def _served_elsewhere(state: State, replica: Replica) -> bool:
    others = state.fleet.by_ref().get(replica.ref, [])
    return any(other.phase is Phase.READY and other.executor_id != replica.executor_id for other in others)


def _name(executor: Executor, layout: int) -> str:
    return executor.hello.device.layouts[layout].name


def _why(now: Fit, then: Fit) -> str:
    """The figures that speak for a change."""
    if len(then.unplaced) < len(now.unplaced):
        return f"it has a place for {_gained(now.unplaced, then.unplaced)}"
    if then.amiss != now.amiss:
        return (
            f"it has the compute units that {_gained(now.below_knee, then.below_knee)} needs to meet half its objective"
        )
    return f"its busiest lane would be in use for {then.busiest:.0%} of the time, not {now.busiest:.0%}"


def _gained(before: tuple[str, ...], after: tuple[str, ...]) -> str:
    return ", ".join(name for name in before if name not in after)
