"""The layouts that a device has been prepared for, and the lanes that they are made of. PURE."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from gpu_sharing.partitioning.layout import Layout, LayoutInvalid, parse_layout
from gpu_sharing.units import Bytes, ComputeUnits, Millidevices

MOST_LAYOUTS = 8
"""Each lane of each layout is a worker that may have to be started; more choices than that nobody oversees."""


@dataclass(frozen=True, slots=True)
class Partitions:
    """A device's layouts. Each set of units is one lane, with one number, whichever layouts it is part of.

    lanes: the units of each lane, by its number. layouts: the lanes of each layout. names: of the layouts, as text.
    """

    lanes: Layout
    layouts: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]

    @property
    def compute_units(self) -> ComputeUnits:
        """Those that any lane has."""
        return len({unit for lane in self.lanes for unit in lane})

    def capacity(self, lane: int) -> Millidevices:
        """A lane's part of what the layouts divide: the same in each, and no more than 1000 over the lanes of any one."""
        return 1000 * len(self.lanes[lane]) // self.compute_units

    def units(self, lane: int) -> str:
        """A lane's units as they would be written: "0-2,5"."""
        return written(self.lanes[lane])

    def memory_bytes(self, lane: int, whole_bytes: Bytes) -> Bytes:
        """A lane's part of the memory: an even one of the layout that divides it least."""
        return max(whole_bytes // len(layout) for layout in self.layouts if lane in layout)


def parse_layouts(text: str, units: Collection[int], *, field: str = "layouts") -> Partitions:
    """Layouts from text such as "0-1|0;1", between bars; the first is in force at the start.

    units: those that the device has. Raises LayoutInvalid, which names `field`, what is wrong and the limit: a layout that
    does not fit the device or has units twice, the same layout twice, more than MOST_LAYOUTS.
    """
    parts = [part.strip() for part in text.split("|")]
    if len(parts) > MOST_LAYOUTS:
        raise LayoutInvalid(f"{field}: {len(parts)} layouts are given; at most {MOST_LAYOUTS} can be prepared")
    return prepared([tuple(sorted(parse_layout(part, units, field=field))) for part in parts], field=field)


def prepared(layouts: list[Layout], *, field: str = "layouts") -> Partitions:
    """Layouts as they are given, their lanes numbered in the order in which they are first met. LayoutInvalid: one is given twice."""
    lanes: dict[tuple[int, ...], int] = {}
    made = [tuple(lanes.setdefault(lane, len(lanes)) for lane in layout) for layout in layouts]
    names = [_name(layout) for layout in layouts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LayoutInvalid(f"{field}: the layout {twice!r} is given twice; each is prepared once")
    return Partitions(tuple(lanes), tuple(made), tuple(names))


def _name(layout: Layout) -> str:
    return ";".join(written(lane) for lane in layout)


def written(units: tuple[int, ...]) -> str:
    """Units as they would be written: "0-2,5"."""
    runs: list[list[int]] = []
    for unit in units:
        if runs and runs[-1][-1] == unit - 1:
            runs[-1][1:] = [unit]
        else:
            runs.append([unit])
    return ",".join("-".join(map(str, run)) for run in runs)
