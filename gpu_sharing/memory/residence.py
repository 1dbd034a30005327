"""Whose weights are in device memory, and whose wait on the host. PURE.

Evicted is what costs least to have to bring back: the lowest (chance that it is asked for soon × time to load it over its
objective) per byte. The chance is that of at least one arrival of a Poisson stream at the rate seen lately (an exponential average
over `memory`), so that what has gone unused for long goes first; loading counts by how much of the objective it eats; and a large
model has to earn its room. Ties go to what was asked for longest ago, then to the lower number.

What is asked for comes in one after another, the earliest due first. What a batch uses is not evicted under it: where nothing else
makes room, its model takes no new batch, and goes once the last has ended. What has come in stays until it has served whoever
waited for it, so that two models that do not fit together take turns, a batch each at least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from gpu_sharing.units import MS, SECOND, Bytes, Nanoseconds

MEMORY: Nanoseconds = 60 * SECOND
"""Arrivals from longer ago count for less than 1/e of one that comes now."""
HORIZON: Nanoseconds = 1 * SECOND
"""How soon `soon` is."""
NO_OBJECTIVE: Nanoseconds = 60 * SECOND
"""Of requests of class `batch`, which have none."""


class Place(Enum):
    """Where a model's weights are. LEAVING: on the device, for the batches that have started, and for no other."""

    OUT = "out"
    COMING = "coming"
    IN = "in"
    LEAVING = "leaving"
    GOING = "going"


class Act(Enum):
    """HOLD: no new batch of it may start. KEEP: they may again. EVICT, FILL: to be done, and told by `moved`."""

    HOLD = "hold"
    KEEP = "keep"
    EVICT = "evict"
    FILL = "fill"


class Move(NamedTuple):
    """What to do next. why: for people; of an eviction, by what it was chosen."""

    act: Act
    model: int
    why: str


@dataclass(slots=True)
class _Model:
    size_bytes: Bytes
    place: Place
    users: int = 0
    rate: float = 0.0
    seen_at: Nanoseconds | None = None
    objective: Nanoseconds = NO_OBJECTIVE
    owes: bool = False
    kept: bool = False


class Pace:
    """How long weights take to come in: the slowest of the last fills, by the byte, and what each takes beside its bytes."""

    _KEPT = 16
    BESIDE: Nanoseconds = 300_000

    def __init__(self, ns_per_byte: float = 0.0) -> None:
        """ns_per_byte: until something has come in."""
        self._first = ns_per_byte
        self._seen: list[float] = []

    @property
    def ns_per_byte(self) -> float:
        """Of the slowest."""
        return max(self._seen, default=self._first)

    def see(self, size_bytes: Bytes, took: Nanoseconds) -> None:
        """Weights came in."""
        if size_bytes > 0:
            self._seen.append(max(0, took - self.BESIDE) / size_bytes)
            del self._seen[: -self._KEPT]

    def expect(self, size_bytes: Bytes) -> Nanoseconds:
        """For so many bytes."""
        return self.BESIDE + math.ceil(size_bytes * self.ns_per_byte)


class Residence:
    """Decides for one lane. capacity_bytes: of weights; may change by `resize`. used_bytes: of what is there, comes or goes."""

    def __init__(
        self,
        capacity_bytes: Bytes,
        *,
        pace: Pace | None = None,
        memory: Nanoseconds = MEMORY,
        horizon: Nanoseconds = HORIZON,
    ) -> None:
        """Raises ValueError for a negative capacity."""
        if capacity_bytes < 0:
            raise ValueError(f"capacity_bytes: must not be negative, is {capacity_bytes}")
        self.capacity_bytes = capacity_bytes
        self.used_bytes: Bytes = 0
        self.pace = pace or Pace()
        self._memory, self._horizon = memory, horizon
        self._models: dict[int, _Model] = {}
        # What is wanted and not there, by when somebody is due; what leaves; what is on its way.
        self._due: dict[int, Nanoseconds] = {}
        self._leaving: set[int] = set()
        self._moving: int | None = None

    # What is known of models.

    def add(self, model: int, size_bytes: Bytes) -> None:
        """A model exists, on the host. ValueError for one that is here already, or larger than all that others do not keep."""
        room = self.capacity_bytes - self._kept_bytes()
        if model in self._models or not 0 <= size_bytes <= room:
            raise ValueError(f"model {model} of {size_bytes} bytes: is here already, or does not fit {room}")
        self._models[model] = _Model(size_bytes, Place.OUT)

    def remove(self, model: int) -> None:
        """The model is gone. ValueError while it is in use or on its way."""
        found = self._models[model]
        if found.users or found.place in (Place.COMING, Place.GOING):
            raise ValueError(f"model {model} is in use, or on its way")
        del self._models[model]
        self._due.pop(model, None)
        self._leaving.discard(model)
        self.used_bytes -= found.size_bytes if found.place is not Place.OUT else 0

    def resize(self, capacity_bytes: Bytes) -> None:
        """There is more or less from now on; `next_move` evicts what is too much. ValueError, and nothing has changed, where
        some model could never come in beside those that are kept."""
        if capacity_bytes < self.floor_bytes:
            raise ValueError(f"capacity_bytes: {capacity_bytes} are less than {self.floor_bytes}, which are needed")
        self.capacity_bytes = capacity_bytes

    def keep(self, model: int, kept: bool) -> bool:
        """Whether it is to be never evicted: memory is part of what a reservation promises. Whether that can be: the largest of the
        others must have room beside those that are kept."""
        found = self._models[model]
        found.kept = kept
        if kept and self.floor_bytes > self.capacity_bytes:
            found.kept = False
        return found.kept

    @property
    def floor_bytes(self) -> Bytes:
        """The least there must be: for those that are kept, and for the largest of the others."""
        others = max((each.size_bytes for each in self._models.values() if not each.kept), default=0)
        return self._kept_bytes() + others

    @property
    def is_behind(self) -> bool:
        """Whether something is wanted that is not there, is on its way out, or too much is there."""
        return bool(self._due or self._leaving) or self.excess_bytes > 0

    def place(self, model: int) -> Place:
        """Where it is."""
        return self._models[model].place

    def size_bytes(self, model: int) -> Bytes:
        """Of its weights."""
        return self._models[model].size_bytes

    def is_in_use(self, model: int) -> bool:
        """Whether a batch of it has started, or somebody holds it for another reason."""
        return self._models[model].users > 0

    @property
    def excess_bytes(self) -> Bytes:
        """What is there beyond the capacity; at most 0 where all is well."""
        return self.used_bytes - self.capacity_bytes

    # What happens.

    def arrive(self, model: int, now: Nanoseconds, objective: Nanoseconds | None = None) -> None:
        """Somebody asks for it, and wants to be answered within `objective`."""
        found = self._models[model]
        found.rate = self._rate(found, now) + 1.0 / self._memory
        found.seen_at = now
        found.objective = NO_OBJECTIVE if objective is None else max(1, objective)

    def want(self, model: int, due: Nanoseconds) -> None:
        """It is to be brought in, for somebody who is due by then. Nothing changes where it is there, or was wanted earlier."""
        if self._models[model].place not in (Place.IN, Place.COMING):
            self._due[model] = min(due, self._due.get(model, due))

    def start(self, model: int) -> None:
        """A batch of it starts. ValueError where it is not there."""
        found = self._models[model]
        if found.place in (Place.OUT, Place.GOING):
            raise ValueError(f"model {model} is {found.place.value}")
        found.users += 1

    def end(self, model: int) -> None:
        """A batch of it is over. ValueError where none ran."""
        found = self._models[model]
        if not found.users:
            raise ValueError(f"model {model} is not in use")
        found.users -= 1
        found.owes = False

    def moved(self, model: int, *, failed: bool = False) -> None:
        """What a FILL or an EVICT asked for has been done; failed: the fill could not be. ValueError where none was asked for."""
        found = self._models[model]
        if found.place is Place.COMING and not failed:
            found.place, found.owes = Place.IN, True
        elif found.place in (Place.GOING, Place.COMING):
            self.used_bytes -= found.size_bytes
            found.place = Place.OUT
        else:
            raise ValueError(f"model {model} is {found.place.value}: nothing was to be moved")
        self._moving = None

    # What to do.

    def next_move(self, now: Nanoseconds, waited: Callable[[int], bool]) -> Move | None:
        """The next thing to do; None: nothing, until something else happens. waited: whether anybody waits for a model.

        One fill or eviction at a time: ask again after `moved`. HOLD and KEEP are done at once.
        """
        if self._moving is not None or not self.is_behind:
            return None
        head = self._head()
        missing = self.excess_bytes + (self._models[head].size_bytes if head is not None else 0)
        if missing <= 0:
            if self._leaving:
                # Room has come about in another way.
                return self._stays(min(self._leaving))
            return None if head is None else self._filled(head)
        for_whom = "less memory" if head is None else f"model {head}"
        return self._evicted(missing, head, for_whom, now, waited)

    def expect(self, model: int, now: Nanoseconds) -> Nanoseconds:
        """When it will be there, if it is wanted now: behind what is on its way and what is due before it."""
        found = self._models[model]
        before = [
            self._models[number].size_bytes
            for number, due in self._due.items()
            if number != model and due < self._due.get(model, due + 1)
        ]
        if self._moving is not None and found.place is not Place.COMING:
            before.append(self._models[self._moving].size_bytes)
        return now + sum(map(self.pace.expect, before)) + self.pace.expect(found.size_bytes)

    def worth(self, model: int, now: Nanoseconds) -> float:
        """What a byte of it saves: the part of its objective that loading it would take, as likely as it is needed soon."""
        found = self._models[model]
        soon = 1.0 - math.exp(-self._rate(found, now) * self._horizon)
        return soon * self.pace.expect(found.size_bytes) / found.objective / max(1, found.size_bytes)

    def check_invariants(self) -> None:
        """Raises AssertionError where books do not add up, or something in use is not there."""
        there = sum(each.size_bytes for each in self._models.values() if each.place is not Place.OUT)
        if there != self.used_bytes:
            raise AssertionError(f"{self.used_bytes} bytes counted, {there} there")
        if any(each.users and each.place in (Place.OUT, Place.GOING) for each in self._models.values()):
            raise AssertionError("a model in use is not there")
        moving = [number for number, each in self._models.items() if each.place in (Place.COMING, Place.GOING)]
        if moving != ([] if self._moving is None else [self._moving]):
            raise AssertionError(f"{moving} move, {self._moving} is said to")
        if {number for number, each in self._models.items() if each.place is Place.LEAVING} != self._leaving:
            raise AssertionError(f"{self._leaving} are said to leave")
        if any(self._models[number].place in (Place.IN, Place.COMING) for number in self._due):
            raise AssertionError(f"of {sorted(self._due)}, some are wanted and there")

    # Inside.

    def _kept_bytes(self) -> Bytes:
        return sum(each.size_bytes for each in self._models.values() if each.kept)

    def _head(self) -> int | None:
        """Of those that are wanted, the earliest due. Whoever asked first may have given up: others ask for it, too."""
        queue = [(due, number) for number, due in self._due.items() if self._models[number].place is Place.OUT]
        return min(queue)[1] if queue else None

    def _stays(self, model: int) -> Move:
        self._leaving.discard(model)
        self._due.pop(model, None)
        self._models[model].place = Place.IN
        return Move(Act.KEEP, model, "there is room again")

    def _filled(self, model: int) -> Move:
        found = self._models[model]
        found.place, self._moving = Place.COMING, model
        del self._due[model]
        self.used_bytes += found.size_bytes
        return Move(Act.FILL, model, f"{found.size_bytes} bytes, {-self.excess_bytes} left")

    def _evicted(
        self, missing: Bytes, head: int | None, for_whom: str, now: Nanoseconds, waited: Callable[[int], bool]
    ) -> Move | None:
        """One of the least worthy that make so much room together; None where they have to be waited for, or are not enough."""
        chosen = self._victims(missing, head, now, waited)
        for number in chosen:
            if not self._models[number].users:
                self._models[number].place, self._moving = Place.GOING, number
                self._leaving.discard(number)
                return Move(Act.EVICT, number, self._reason(number, for_whom, now))
        for number in chosen:
            if self._models[number].place is Place.IN:
                self._models[number].place = Place.LEAVING
                self._leaving.add(number)
                return Move(Act.HOLD, number, self._reason(number, for_whom, now))
        return None

    def _victims(
        self, missing: Bytes, head: int | None, now: Nanoseconds, waited: Callable[[int], bool]
    ) -> Sequence[int]:
        """The idle ones first where they are enough; else those in use as well, which then have to end first. () : never enough."""
        free = [
            (number, each)
            for number, each in self._models.items()
            if each.place in (Place.IN, Place.LEAVING)
            and not each.kept
            and number != head
            and not (each.owes and waited(number))
        ]
        for among in ([pair for pair in free if not pair[1].users], free):
            if sum(each.size_bytes for _, each in among) >= missing:
                return self._cheapest(among, missing, now)
        return ()

    def _cheapest(self, among: Sequence[tuple[int, _Model]], missing: Bytes, now: Nanoseconds) -> Sequence[int]:
        ranked = sorted(
            (self.worth(number, now), -1 if each.seen_at is None else each.seen_at, number) for number, each in among
        )
        chosen: list[int] = []
        for _, _, number in ranked:
            if missing <= 0:
                break
            chosen.append(number)
            missing -= self._models[number].size_bytes
        return chosen

    def _reason(self, model: int, for_whom: str, now: Nanoseconds) -> str:
        found = self._models[model]
        seen = "never asked for" if found.seen_at is None else f"asked for {(now - found.seen_at) // MS} ms ago"
        soon = 1.0 - math.exp(-self._rate(found, now) * self._horizon)
        load_us = self.pace.expect(found.size_bytes) // 1_000
        return (
            f"room for {for_whom}: {seen}, {soon:.3f} likely to be within {self._horizon // MS} ms, {load_us} us to bring back "
            f"{found.size_bytes} bytes, objective {found.objective // MS} ms"
        )

    def _rate(self, found: _Model, now: Nanoseconds) -> float:
        """Arrivals a nanosecond."""
        if found.seen_at is None:
            return 0.0
        return found.rate * math.exp(-(now - found.seen_at) / self._memory)
