"""Whose weights are in device memory, and whose wait on the host. PURE.

Evicted is what costs least to have to bring back: the lowest (chance that it is asked for soon × time to load it) per byte. The
chance is that of at least one arrival of a Poisson stream at the rate seen lately (an exponential average over `memory`).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from gpu_sharing.units import SECOND, Bytes, Nanoseconds

MEMORY: Nanoseconds = 60 * SECOND
"""Arrivals from longer ago count for less than 1/e of one that comes now."""
HORIZON: Nanoseconds = 1 * SECOND
"""How soon `soon` is."""


class Plan(NamedTuple):
    """What to do, in this order: empty these, then fill that. None: it cannot be brought in beside what is in use."""

    evict: tuple[int, ...]
    fill: int | None


@dataclass(slots=True)
class _Model:
    size_bytes: Bytes
    load_ns: Nanoseconds
    resident: bool = False
    users: int = 0
    rate: float = 0.0
    seen_at: Nanoseconds | None = None


class Residence:
    """Decides for one device. capacity_bytes: of weights. The caller does what plans say before it asks again."""

    def __init__(self, capacity_bytes: Bytes, *, memory: Nanoseconds = MEMORY, horizon: Nanoseconds = HORIZON) -> None:
        """Raises ValueError for a negative capacity."""
        if capacity_bytes < 0:
            raise ValueError(f"capacity_bytes: must not be negative, is {capacity_bytes}")
        self.capacity_bytes = capacity_bytes
        self.used_bytes: Bytes = 0
        self._memory, self._horizon = memory, horizon
        self._models: dict[int, _Model] = {}

    def add(self, model: int, size_bytes: Bytes, load_ns: Nanoseconds) -> None:
        """A model exists, on the host. ValueError for one that is here already, or larger than all there is."""
        if model in self._models or not 0 <= size_bytes <= self.capacity_bytes:
            raise ValueError(
                f"model {model} of {size_bytes} bytes: is here already, or does not fit {self.capacity_bytes}"
            )
        self._models[model] = _Model(size_bytes, max(1, load_ns))

    def remove(self, model: int) -> bool:
        """The model is gone. Whether it was resident. ValueError while it is in use."""
        found = self._models[model]
        if found.users:
            raise ValueError(f"model {model} is in use")
        del self._models[model]
        self.used_bytes -= found.size_bytes if found.resident else 0
        return found.resident

    def is_resident(self, model: int) -> bool:
        """Whether it is in device memory, once what plans said has been done."""
        return self._models[model].resident

    def arrive(self, model: int, now: Nanoseconds) -> None:
        """Somebody asks for it."""
        found = self._models[model]
        found.rate = self._rate(found, now) + 1.0 / self._memory
        found.seen_at = now

    def use(self, model: int, now: Nanoseconds) -> Plan:
        """A batch of it is to run: it is kept until `release`. Plan with `fill` None where there is no room beside what is in use
        (then it is not kept), and with nothing to do where it is resident."""
        found = self._models[model]
        if found.resident:
            found.users += 1
            return Plan((), None)
        evict = self._victims(found.size_bytes - (self.capacity_bytes - self.used_bytes), now)
        if evict is None:
            return Plan((), None)
        for each in evict:
            self._models[each].resident = False
            self.used_bytes -= self._models[each].size_bytes
        found.resident, found.users = True, found.users + 1
        self.used_bytes += found.size_bytes
        return Plan(tuple(evict), model)

    def release(self, model: int) -> None:
        """A batch of it is over. ValueError where none ran."""
        found = self._models[model]
        if not found.users:
            raise ValueError(f"model {model} is not in use")
        found.users -= 1

    def worth(self, model: int, now: Nanoseconds) -> float:
        """What a byte of it saves: nanoseconds of loading that are likely to be needed soon."""
        found = self._models[model]
        soon = 1.0 - math.exp(-self._rate(found, now) * self._horizon)
        return soon * found.load_ns / max(1, found.size_bytes)

    def check_invariants(self) -> None:
        """Raises AssertionError where more is resident than there is, or something in use is not."""
        resident = sum(each.size_bytes for each in self._models.values() if each.resident)
        if resident != self.used_bytes or resident > self.capacity_bytes:
            raise AssertionError(f"{self.used_bytes} bytes counted, {resident} resident, {self.capacity_bytes} there")
        if any(each.users and not each.resident for each in self._models.values()):
            raise AssertionError("a model in use is not resident")

    def _victims(self, needed: Bytes, now: Nanoseconds) -> Collection[int] | None:
        """The least worthy that make so much room; None where there are not enough."""
        chosen: list[int] = []
        free = sorted(
            (self.worth(number, now), number)
            for number, each in self._models.items()
            if each.resident and not each.users
        )
        for _, number in free:
            if needed <= 0:
                break
            needed -= self._models[number].size_bytes
            chosen.append(number)
        return chosen if needed <= 0 else None

    def _rate(self, found: _Model, now: Nanoseconds) -> float:
        """Arrivals a nanosecond."""
        if found.seen_at is None:
            return 0.0
        return found.rate * math.exp(-(now - found.seen_at) / self._memory)
