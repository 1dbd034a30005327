"""Where a new replica goes.

A reservation is in devices; a lane with k of a device's n compute units is worth 1000 * k / n millidevices of it. A
model's `spread` is over how many executors its replicas are: as many as are wanted, and no more than there are. Frontends
spread requests evenly over replicas, so a tenant that stays within its reservation R brings a lane at most

    sum over its models there of (its rate for the model / the model's spread)  <=  R / (the smallest spread there),

which is why a tenant's *demand* on a lane is the largest R / spread of its models there, granted once per lane and
shared by all of them. Models of one tenant on different lanes each get the whole demand, since the tenant may use its
reservation on either.

Only lanes of the layouts in force are places. Of those that fit, the best is, in this order: on an executor where this
version has not failed before; with as many compute units as its objective is known to need; where the least has to be granted anew (the tenant has its bandwidth there); with the most bandwidth free (so that what is unused,
which all share by weight, is spread); with the fewest replicas; then by name, so that ties are total.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gpu_sharing.partitioning.knee import knee_size
from services.scheduler.core.catalogue import Key, Model, Ref, Tenant, Version
from services.scheduler.core.fleet import Executor, Fleet
from services.scheduler.core.reports import Lane

SIZE_FACTOR = 2
"""Device memory of a model that nobody has measured, as a multiple of its artefact: weights once, and as much to run."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a replica needs. demand: millidevices on its lane. shunned: where it failed last. objective_us: of its model."""

    ref: Ref
    demand: int
    isolated: bool
    version: Version
    shunned: str | None = None
    objective_us: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where it goes."""

    executor: Executor
    lane: int
    memory_bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class NoPlace:
    """Why it goes nowhere. message: for its tenant; detail: for operators, with the neighbours' names.

    waits: nothing is lacking; an earlier replica of it has to leave first.
    """

    message: str
    detail: str
    waits: bool = False


@dataclass(frozen=True, slots=True)
class _Candidate:
    executor: Executor
    lane: Lane
    memory_bytes: int
    lane_bytes: int
    extra: int
    too_few_units: bool


def spread(model: Model, executors: int) -> int:
    """Over how many executors a model's replicas are."""
    return max(1, min(model.replicas or 1, executors))


def demand(tenant: Tenant, model: Model, executors: int) -> int:
    """Millidevices that the model's tenant needs on a lane where the model has a replica."""
    return -(-tenant.reservation // spread(model, executors))


def memory_estimate(version: Version, device_kind: str) -> int:
    """Bytes a replica will take: measured on such a device, else on any, else from the artefact's size."""
    of_kind = [profile for profile in version.profiles if profile.device_kind == device_kind]
    known = max((profile.memory_bytes for profile in of_kind or version.profiles), default=0)
    return known or version.size_bytes * SIZE_FACTOR


def lane_memory(version: Version, device_kind: str) -> int:
    """Bytes of a lane's own part of the memory that a replica is sure to take: of what nobody has measured, its weights."""
    return memory_estimate(version, device_kind) if version.profiles else version.size_bytes


def place(fleet: Fleet, ask: Ask, isolated: Callable[[Key], bool]) -> Place | NoPlace:
    """The best lane for one more replica, or why there is none. isolated: whether a model wants a worker of its own."""
    executors = [executor for executor in fleet.usable() if executor.attached]
    if not executors:
        return _nowhere("no executor is attached")
    others = [executor for executor in executors if not holds(executor, ask.ref)]
    if not others:
        return _all_taken(executors, ask.ref)
    walled = [
        _candidate(executor, lane, ask)
        for executor, lane in _lanes(others)
        if allows(executor, lane, ask.ref.key, isolated)
    ]
    if not walled:
        return _nowhere(f"{ask.ref.key} needs a worker process of its own, and none is without other tenants")
    if all(0 < each.lane.memory_bytes < each.lane_bytes for each in walled):
        return _too_large(walled, ask)
    roomy = [each for each in walled if has_memory(each.executor, each.memory_bytes) and _has_lane_memory(each)]
    if not roomy:
        return _no_memory(max(walled, key=lambda each: _memory_free(each.executor)), ask)
    fitting = [each for each in roomy if each.extra <= each.executor.free(each.lane.number)]
    if not fitting:
        return _no_bandwidth(max(roomy, key=lambda each: each.executor.free(each.lane.number) - each.extra), ask)
    best = min(fitting, key=lambda each: _rank(each, ask))
    return Place(best.executor, best.lane.number, best.memory_bytes, _reason(best, ask))


def holds(executor: Executor, ref: Ref) -> bool:
    """Whether an executor has a replica of it on a lane in force, also one that is leaving.

    One on a lane of another layout is there until the replica that takes its place serves.
    """
    return any(replica.ref == ref and executor.in_force(replica.lane) for replica in executor.replicas.values())


def allows(executor: Executor, lane: Lane, key: Key, isolated: Callable[[Key], bool]) -> bool:
    """Whether the walls that models asked for stand when `key` is on the lane: a worker with an isolated model has one tenant."""
    others = {replica.ref.key for replica in executor.on_worker(lane.worker) if replica.ref.key.tenant != key.tenant}
    return not others or not (isolated(key) or any(isolated(other) for other in others))


def has_memory(executor: Executor, memory_bytes: int) -> bool:
    """Whether so much more fits; a device that does not tell its memory is not checked."""
    return not executor.hello.device.memory_bytes or memory_bytes <= _memory_free(executor)


def devices(millidevices: int) -> str:
    """Millidevices as people read them: "0.250"."""
    return f"{millidevices / 1000:.3f}"


def _lanes(executors: list[Executor]) -> Iterator[tuple[Executor, Lane]]:
    return ((executor, lane) for executor in executors for lane in executor.lanes)


def _candidate(executor: Executor, lane: Lane, ask: Ask) -> _Candidate:
    memory_bytes = memory_estimate(ask.version, executor.hello.device.kind)
    extra = max(0, ask.demand - executor.grant(lane.number, ask.ref.key.tenant))
    lane_bytes = lane_memory(ask.version, executor.hello.device.kind)
    return _Candidate(executor, lane, memory_bytes, lane_bytes, extra, _too_few_units(executor, lane, ask))


def _too_few_units(executor: Executor, lane: Lane, ask: Ask) -> bool:
    """Whether the model is known to need more compute units for its objective than the lane has, and that there are such."""
    if ask.objective_us is None:
        return False
    device = executor.hello.device
    knee = knee_size(ask.version.measured(device.kind), ask.objective_us * 1_000, device.compute_units)
    return knee is not None and lane.compute_units < knee


def _has_lane_memory(each: _Candidate) -> bool:
    """Whether a lane's own part of the memory holds one model more; one that does not tell it is not checked."""
    if not each.lane.memory_bytes:
        return True
    taken = sum(replica.memory_bytes for replica in each.executor.on_lane(each.lane.number))
    return taken + each.lane_bytes <= each.lane.memory_bytes


def _rank(each: _Candidate, ask: Ask) -> tuple[bool, bool, int, int, int, str, int]:
    number, executor = each.lane.number, each.executor
    crowd = sum(1 for _ in executor.on_lane(number))
    return (
        executor.executor_id == ask.shunned,
        each.too_few_units,
        each.extra,
        -executor.free(number),
        crowd,
        executor.executor_id,
        number,
    )


def _reason(best: _Candidate, ask: Ask) -> str:
    free, capacity = best.executor.free(best.lane.number), best.executor.hello.device.capacity(best.lane.number)
    if not ask.demand:
        return f"nothing is reserved; {devices(free)} of {devices(capacity)} devices are free there"
    if not best.extra:
        return f"{ask.ref.key.tenant} has its {devices(ask.demand)} devices there already"
    return f"needs {devices(best.extra)} devices more, {devices(free)} of {devices(capacity)} were free there"


def _memory_free(executor: Executor) -> int:
    return max(0, executor.hello.device.memory_bytes - executor.memory_taken_bytes)


def _nowhere(message: str) -> NoPlace:
    return NoPlace(message, message)


def _all_taken(executors: list[Executor], ref: Ref) -> NoPlace:
    leaving = [
        executor.executor_id
        for executor in executors
        if any(replica.ref == ref and not replica.live for replica in executor.replicas.values())
    ]
    if leaving:
        message = f"an earlier replica of {ref} is still leaving {leaving[0]}"
        return NoPlace(message, message, waits=True)
    return _nowhere(f"each replica of {ref.key} needs an executor of its own, and there are {len(executors)}")


def _too_large(walled: list[_Candidate], ask: Ask) -> NoPlace:
    """It fits no partition in force, however empty; whether it would fit one of another layout is told too."""
    largest = max(walled, key=lambda each: each.lane.memory_bytes - each.lane_bytes)
    ever = max(
        (lane.memory_bytes for each in walled for lane in each.executor.hello.device.lanes),
        default=0,
    )
    message = f"{ask.ref.key} needs {largest.lane_bytes} bytes of memory, the largest partition has {largest.lane.memory_bytes}"
    if ever > largest.lane.memory_bytes:
        message += f"; another layout has one of {ever}"
    return NoPlace(message, f"{message} (on {largest.executor.executor_id})")


def _no_memory(best: _Candidate, ask: Ask) -> NoPlace:
    whole, free = best.executor.hello.device.memory_bytes, _memory_free(best.executor)
    held, needed = list(best.executor.replicas.values()), best.memory_bytes
    if has_memory(best.executor, best.memory_bytes):
        # It is the lane's own part that is full.
        held, needed = list(best.executor.on_lane(best.lane.number)), best.lane_bytes
        whole = best.lane.memory_bytes
        free = max(0, whole - sum(replica.memory_bytes for replica in held))
    message = f"{ask.ref.key} needs {needed} bytes of memory, {free} free of {whole}"
    taken: dict[str, int] = {}
    for replica in held:
        taken[str(replica.ref.key)] = taken.get(str(replica.ref.key), 0) + replica.memory_bytes
    return NoPlace(message, f"{message} ({_listed(taken, str)}) on {best.executor.executor_id}" if taken else message)


def _no_bandwidth(best: _Candidate, ask: Ask) -> NoPlace:
    number, executor = best.lane.number, best.executor
    tenant, own = ask.ref.key.tenant, best.executor.grant(best.lane.number, ask.ref.key.tenant)
    # What the tenant has on the lane itself counts as free to it.
    free, capacity = executor.free(number) + own, executor.hello.device.capacity(number)
    message = f"{tenant} needs {devices(ask.demand)} devices, {devices(free)} free of {devices(capacity)}"
    others = {name: share for name, share in executor.grants.get(number, {}).items() if share and name != tenant}
    return NoPlace(
        message,
        f"{message} ({_listed(others, devices)}) on {executor.executor_id} lane {number}" if others else message,
    )


def _listed(amounts: Mapping[str, int], show: Callable[[int], str]) -> str:
    return ", ".join(
        f"{name} {show(amount)}" for name, amount in sorted(amounts.items(), key=lambda item: (-item[1], item[0]))
    )
