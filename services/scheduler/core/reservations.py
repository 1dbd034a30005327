"""What tenants may be promised: reservations against what the fleet is worth."""

from __future__ import annotations

from dataclasses import dataclass

from services.scheduler.core.fleet import Executor
from services.scheduler.core.placement import devices
from services.scheduler.core.state import State


@dataclass(frozen=True, slots=True)
class Promise:
    """An answer in millidevices. refusal: why it cannot be promised; None: it can. capacity None: no executor is attached."""

    asked: int
    free: int
    capacity: int | None
    refusal: str | None = None

    @property
    def free_after(self) -> int:
        """What would be left for others."""
        return max(0, self.free - self.asked)


def check(state: State, tenant: str, asked: int) -> Promise:
    """Whether a tenant could be promised `asked`, in place of what it has.

    Two things must hold. All promises together fit into what the fleet is worth. And the lanes can hold it: a tenant
    whose models are spread over m executors needs a part 1/m free on one lane of each of m executors (a tenant
    without models: on one lane), so m times the m-th largest free lane is the most that it could be granted.
    Without an executor nothing is known, and only a promise of nothing can be made.
    """
    executors = state.fleet.usable()
    if not executors:
        refusal = "no executor is attached: capacity is not known yet" if asked else None
        return Promise(asked, 0, None, refusal)
    capacity = sum(_capacities(executor) for executor in executors)
    others = {name: each.reservation for name, each in state.tenants.items() if name != tenant and each.reservation}
    unpromised = max(0, capacity - sum(others.values()))
    if asked > unpromised:
        listed = ", ".join(f"{name} {devices(share)}" for name, share in sorted(others.items()))
        counted = f" ({listed})" if listed else ""
        return Promise(asked, unpromised, capacity, _refusal(tenant, asked, unpromised, capacity) + counted)
    spread = min((model.replicas or 1 for key, model in state.models.items() if key.tenant == tenant), default=1)
    spread = min(spread, len(executors))
    free = min(unpromised, spread * _nth_free_lane(executors, tenant, spread))
    if asked > free:
        where = f": no lane has more left; its models are spread over {spread} of {len(executors)} executors"
        return Promise(asked, free, capacity, _refusal(tenant, asked, free, capacity) + where)
    return Promise(asked, free, capacity)


def _refusal(tenant: str, asked: int, free: int, capacity: int) -> str:
    return f"{tenant} needs {devices(asked)} devices, {devices(free)} free of {devices(capacity)}"


def _capacities(executor: Executor) -> int:
    return sum(executor.hello.device.capacity(lane.number) for lane in executor.lanes)


def _nth_free_lane(executors: list[Executor], tenant: str, place: int) -> int:
    """The largest lane, without what others have been granted there, of the executor that comes `place`-th by it."""
    free = [
        max((each.free(lane.number) + each.grant(lane.number, tenant) for lane in each.lanes), default=0)
        for each in executors
    ]
    return sorted(free, reverse=True)[place - 1]
