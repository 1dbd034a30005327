"""Where to cut a sequence of operators into segments of about one quantum, given what each costs. PURE."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_sharing.units import MS, Nanoseconds

QUANTUM_NS: Nanoseconds = 1 * MS
"""What a segment may take at one row: a tenant waits for at most the segment that is running."""

MAX_SEGMENTS = 64
"""A boundary costs tens of microseconds; beyond this many, a model of long operators gains nothing."""

SLACK = 0.25
"""How far, in quanta, a cut may move to a place where fewer tensors are alive."""

SEPARATOR = ".."


def cut_points(
    costs: Sequence[Nanoseconds],
    alive: Sequence[int],
    *,
    quantum: Nanoseconds = QUANTUM_NS,
    most: int = MAX_SEGMENTS,
) -> tuple[int, ...]:
    """Indices before which a segment begins, ascending, 0 excluded.

    costs: of each operator, in order. alive: how many values cross the boundary before each operator. most: segments that
    there may be, about. Segments are filled to about one quantum; near the quantum the boundary with the fewest values
    alive is taken, since each is held in memory while other tenants run. An operator longer than the quantum stands alone.
    """
    total = sum(costs)
    quantum = max(quantum, total // most)
    if total < 2 * quantum:
        return ()
    points: list[int] = []
    begin = 0
    while (point := _next_point(costs, alive, begin, quantum)) is not None:
        points.append(point)
        begin = point
    return tuple(points)


def segment_name(first: str, last: str) -> str:
    """What a segment is called: its first and its last operator, so that it can be cut there again."""
    return f"{first}{SEPARATOR}{last}"


def points_of(names: Sequence[str], operators: Sequence[str]) -> tuple[int, ...] | None:
    """The indices at which these segments begin, 0 excluded; None where they are not segments of these operators.

    names: as `segment_name` made them, in order. operators: the operators' names, each once.
    """
    at = {name: index for index, name in enumerate(operators)}
    points, position = [], 0
    for name in names:
        first, _, last = name.partition(SEPARATOR)
        begin, end = at.get(first), at.get(last)
        if begin != position or end is None or end < begin:
            return None
        points.append(begin)
        position = end + 1
    return tuple(points[1:]) if points and position == len(operators) else None


def _next_point(costs: Sequence[Nanoseconds], alive: Sequence[int], begin: int, quantum: Nanoseconds) -> int | None:
    spent, candidates = 0, []
    for index in range(begin, len(costs)):
        if index > begin and spent >= quantum * (1 - SLACK):
            candidates.append(index)
        spent += costs[index]
        if candidates and spent > quantum * (1 + SLACK):
            break
    else:
        # What is left fits into one segment.
        return None if spent <= quantum * (1 + SLACK) or not candidates else _best(candidates, alive)
    return _best(candidates, alive)


def _best(candidates: Sequence[int], alive: Sequence[int]) -> int:
    return min(candidates, key=lambda index: (alive[index], index))
