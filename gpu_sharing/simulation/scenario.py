"""A workload as data: tenants, and what happens when. PURE."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from gpu_sharing.simulation.faults import FaultRates
from gpu_sharing.simulation.models import EXACT, AnyError, SimulatedModel
from gpu_sharing.units import Bytes, GiB, Millidevices, Nanoseconds


class Contract(msgspec.Struct, frozen=True):
    """What a tenant's arrivals conform to: at most σ + ρ·t of device time asked for in any time t."""

    sigma_ns: Nanoseconds
    rho: Millidevices


class Tenant(msgspec.Struct, frozen=True, omit_defaults=True):
    """One replica and how it is used.

    objective_ns: from arrival; None: class `batch`. deadline_ns: from arrival; None: never dropped.
    contract: what its arrivals conform to; None: nothing.
    loaded_at: None: by an event.
    """

    replica: int
    model: SimulatedModel
    bandwidth: Millidevices = 0
    weight: int = 1
    objective_ns: Nanoseconds | None = None
    deadline_ns: Nanoseconds | None = None
    error: AnyError = EXACT
    faults: FaultRates | None = None
    contract: Contract | None = None
    lane: int = 0
    loaded_at: Nanoseconds = 0


class Arrive(msgspec.Struct, frozen=True, tag="arrive", omit_defaults=True):
    """A request. cancelled_after: from arrival; None: not at all. later_ns: its objective and deadline, beyond its tenant's."""

    at: Nanoseconds
    replica: int
    rows: int = 1
    cancelled_after: Nanoseconds | None = None
    later_ns: Nanoseconds = 0


class Clients(msgspec.Struct, frozen=True, tag="clients", omit_defaults=True):
    """So many callers, each of whom asks again once it has been answered and has thought about it, until `until`.

    think_ns: at least 1; a refused caller thinks too.
    """

    at: Nanoseconds
    replica: int
    count: int
    until: Nanoseconds
    think_ns: Nanoseconds
    rows: int = 1


class Unload(msgspec.Struct, frozen=True, tag="unload"):
    """The replica is to go."""

    at: Nanoseconds
    replica: int
    drain_ns: Nanoseconds


class Update(msgspec.Struct, frozen=True, tag="update"):
    """The replica's share changes."""

    at: Nanoseconds
    replica: int
    bandwidth: Millidevices
    weight: int


Happening: TypeAlias = Arrive | Clients | Unload | Update


class Scenario(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything that a run depends on.

    memory_shared: lanes slow one another down through the device's memory. boundary_ns: between two slices; boundary_error: how
    far it is from that. ahead: slices that a lane launches before the first of them has ended.
    """

    tenants: tuple[Tenant, ...]
    happenings: tuple[Happening, ...]
    lanes: int = 1
    seed: int = 0
    memory_bytes: Bytes = 16 * GiB
    memory_shared: bool = False
    boundary_ns: Nanoseconds = 0
    boundary_error: AnyError = EXACT
    watchdog_ns: Nanoseconds | None = None
    ahead: int = 1


def dumps(scenario: Scenario, *, why: str = "") -> str:
    """The scenario as text, a tenant or a happening a line; lines that begin with # are for people."""
    head = msgspec.structs.replace(scenario, tenants=(), happenings=())
    lines = [f"# {line}" for line in why.splitlines()]
    lines.append(msgspec.json.encode(head).decode())
    lines += [msgspec.json.encode(tenant).decode() for tenant in scenario.tenants]
    lines += [msgspec.json.encode(each).decode() for each in sorted(scenario.happenings, key=lambda each: each.at)]
    return "\n".join(lines) + "\n"


def loads(text: str) -> Scenario:
    """What `dumps` wrote. Raises msgspec.ValidationError, or ValueError for a text without a first line."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise ValueError("a scenario needs at least the line that describes the device")
    head = msgspec.json.decode(lines[0], type=Scenario)
    tenants = tuple(msgspec.json.decode(line, type=Tenant) for line in lines[1:] if '"type"' not in _first(line))
    happenings = tuple(msgspec.json.decode(line, type=Happening) for line in lines[1:] if '"type"' in _first(line))
    return msgspec.structs.replace(head, tenants=tenants, happenings=happenings)


def _first(line: str) -> str:
    """The first key of an object, which for a happening is its type."""
    return line.partition(":")[0]
