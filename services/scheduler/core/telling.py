"""What the registry is still to be told of use: by the names of counts, each told from its beginning.

It does not matter how often something is told, nor whether an answer got lost: the registry takes what goes beyond the most
that it was told. So a statement is put back where it is not known to have been heard, and a scheduler that begins anew tells
everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.scheduler.core.catalogue import Key
from services.scheduler.core.reports import Report
from services.scheduler.core.requests import Moved
from services.scheduler.core.usage import NOTHING, Used


class Place(NamedTuple):
    """Whose counts, where, under which name."""

    executor_id: str
    book: str
    tenant: str


@dataclass(frozen=True, slots=True)
class Part:
    """What a model used in one life of its counts. bytes_in, bytes_out: of requests that were answered, and of answers."""

    model: str
    life: int = 0
    used: Used = NOTHING
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(frozen=True, slots=True)
class Statement:
    """What was counted in one place, as it was at one moment. total None: the parts are all there is."""

    place: Place
    device_kind: str
    device_units: int
    total: Used | None
    parts: tuple[Part, ...]


@dataclass(slots=True)
class Telling:
    """Statements by place, those that are new first in, first out."""

    _latest: dict[Place, Statement] = field(default_factory=dict)
    _new: dict[Place, None] = field(default_factory=dict)
    _moved: dict[Place, dict[str, Part]] = field(default_factory=dict)
    _devices: dict[str, tuple[str, int]] = field(default_factory=dict)

    def executor(self, executor_id: str, device_kind: str, device_units: int, report: Report) -> None:
        """A whole report of an executor."""
        self._devices[executor_id] = (device_kind, device_units)
        totals: dict[Place, Used] = {}
        for one in report.tenants:
            used = Used(one.device_ns, one.requests, one.compute_unit_ns, one.batches)
            totals[Place(executor_id, one.incarnation, one.tenant)] = used
        parts: dict[Place, list[Part]] = {place: [] for place in totals}
        for each in report.usage:
            place = Place(executor_id, each.incarnation, each.key.tenant)
            used = Used(each.device_ns, each.requests, each.compute_unit_ns, each.batches)
            parts.setdefault(place, []).append(Part(each.key.name, each.life, used))
        for place, found in parts.items():
            statement = Statement(place, device_kind, device_units, totals.get(place), tuple(found))
            if self._latest.get(place) != statement:
                self._latest[place] = statement
                self._new[place] = None

    def frontend(self, frontend_id: str, moved: Iterable[tuple[Key, Sequence[Moved]]]) -> None:
        """What a frontend says of the bytes of requests, by the executors that answered them."""
        for key, each in moved:
            for one in each:
                place = Place(one.executor_id, frontend_id, key.tenant)
                part = Part(key.name, 0, NOTHING, one.bytes_in, one.bytes_out)
                self._moved.setdefault(place, {})[key.name] = part

    def take(self, most: int) -> list[Statement]:
        """The next statements, which are to be put back where they are not heard. Bytes wait until their executor is known."""
        taken = [self._latest[place] for place in list(self._new)[:most]]
        for statement in taken:
            del self._new[statement.place]
        ready = [place for place in self._moved if place.executor_id in self._devices]
        for place in ready[: most - len(taken)]:
            parts = tuple(self._moved.pop(place).values())
            taken.append(Statement(place, *self._devices[place.executor_id], None, parts))
        return taken

    def put_back(self, statements: Iterable[Statement]) -> None:
        """These were not heard, or it is not known."""
        for statement in statements:
            if statement.place in self._latest:
                self._new[statement.place] = None
            else:
                held = self._moved.setdefault(statement.place, {})
                for part in statement.parts:
                    held.setdefault(part.model, part)
