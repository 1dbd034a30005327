"""Layouts of a device whose compute units come in groups, as a GPU's SMs do. PURE.

A driver divides a GPU into equal groups of SMs and a remainder that fills none. Which SMs a group has is the driver's choice, so
a layout counts places: group g is the places from g × size on, the remainder the last ones.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gpu_sharing.partitioning.layout import Layout, LayoutInvalid
from gpu_sharing.partitioning.partitions import Partitions, prepared, written
from gpu_sharing.units import ComputeUnits


@dataclass(frozen=True, slots=True)
class Groups:
    """What one split of a device gave. size: units of each group; rest: units left over, less than a group."""

    size: ComputeUnits
    count: int
    rest: ComputeUnits = 0

    def __post_init__(self) -> None:
        if self.size < 1 or self.count < 1 or self.rest < 0:
            raise ValueError(f"groups: {self.count} of {self.size} units and {self.rest} left over are no split")

    @property
    def units(self) -> ComputeUnits:
        """All that can be given away."""
        return self.size * self.count + self.rest

    def pieces(self, lane: Sequence[int]) -> tuple[int, ...]:
        """The groups that a lane of these places is made of; `count` stands for the remainder. LayoutInvalid: not whole ones."""
        wanted = set(lane)
        pieces = tuple(piece for piece in range(self.count + 1) if wanted & set(self._places(piece)))
        if not wanted or wanted != {place for piece in pieces for place in self._places(piece)}:
            raise LayoutInvalid(f"layouts: {written(tuple(sorted(wanted)))} are not whole groups of {self.size} units")
        return pieces

    def _places(self, piece: int) -> range:
        start = piece * self.size
        return range(start, start + (self.rest if piece == self.count else self.size))

    def rounded(self, layout: Layout, *, field: str = "layouts") -> Layout:
        """The nearest layout of whole groups: each goes to the lane that names most of its places, the first of equals.

        LayoutInvalid, naming `field`, where a lane would have no group: the remainder alone makes no lane.
        """
        owner = {place: number for number, lane in enumerate(layout) for place in lane}
        lanes: list[list[int]] = [[] for _ in layout]
        whole = [0] * len(layout)
        for piece in range(self.count + 1):
            named = Counter(owner[place] for place in self._places(piece) if place in owner)
            if named:
                number = min(named, key=lambda each: (-named[each], each))
                lanes[number].extend(self._places(piece))
                whole[number] += piece < self.count
        for lane, groups in zip(layout, whole, strict=True):
            if not groups:
                text = written(lane)
                raise LayoutInvalid(
                    f"{field}: {text} would get no group; this device is divided in groups of {self.size} units, "
                    f"so a lane needs at least {self.size // 2 + 1} of one"
                )
        return tuple(map(tuple, lanes))

    def fitted(self, partitions: Partitions, *, field: str = "layouts") -> Partitions:
        """The same layouts in whole groups. LayoutInvalid where two become the same, or a lane has no group left."""
        lanes = partitions.lanes
        return prepared(
            [self.rounded(tuple(lanes[number] for number in layout), field=field) for layout in partitions.layouts],
            field=field,
        )

    def shared(self, shares: Sequence[float], *, field: str = "shares") -> Layout:
        """A layout by parts of the device, largest remainders first; each lane gets a group at least, the last the remainder too.

        LayoutInvalid for more lanes than groups, and for a share that is not positive.
        """
        if not shares or len(shares) > self.count or any(share <= 0 for share in shares):
            raise LayoutInvalid(f"{field}: {list(shares)} are not 1 to {self.count} positive parts")
        exact = [share / sum(shares) * self.count for share in shares]
        taken = [max(1, int(part)) for part in exact]
        while sum(taken) != self.count:
            step = 1 if sum(taken) < self.count else -1
            open_ = [number for number in range(len(taken)) if step > 0 or taken[number] > 1]
            taken[max(open_, key=lambda number: (step * (exact[number] - taken[number]), -number))] += step
        edges = [edge * self.size for edge in itertools.accumulate(taken, initial=0)]
        edges[-1] += self.rest
        return tuple(tuple(range(start, stop)) for start, stop in itertools.pairwise(edges))
