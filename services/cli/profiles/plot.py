"""Curves drawn with characters. Pure: figures in, lines of equal width out; nothing depends on colour."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

HEIGHT = 9
"""Lines between the axes."""
LEAST_WIDTH = 30
WIDEST = 76
"""A wider chart says no more."""
GAP = "   "


class Marks(NamedTuple):
    """Characters for points, the lines between them, and the axes."""

    points: str
    line: str
    upright: str
    level: str
    corner: str


UNICODE = Marks("●○■", "·", "│", "─", "└")
ASCII = Marks("ox#", ".", "|", "-", "+")


class Curve(NamedTuple):
    """One curve: a value for each place on the axis, 0 or more."""

    name: str
    values: Sequence[float]


class Chart(NamedTuple):
    """Curves over common places. label: of the axis below; told: a value as text."""

    title: str
    curves: Sequence[Curve]
    places: Sequence[str]
    label: str
    told: Callable[[float], str]


def beside(charts: Sequence[Chart], width: int, marks: Marks) -> list[str]:
    """The charts beside one another where they fit into `width` characters, else below one another."""
    each = (width - len(GAP) * (len(charts) - 1)) // max(1, len(charts))
    if each < LEAST_WIDTH + 10:
        return [line for chart in charts for line in (*draw(chart, width, marks), "")][:-1]
    drawn = [draw(chart, each, marks) for chart in charts]
    return [GAP.join(lines).rstrip() for lines in zip(*drawn, strict=True)]


def draw(chart: Chart, width: int, marks: Marks) -> list[str]:
    """A title, the curves above an axis, the places, the label. Not wider than `width`, nor narrower than LEAST_WIDTH."""
    most = max((value for curve in chart.curves for value in curve.values), default=0.0) or 1.0
    scale = [chart.told(most), chart.told(most / 2), chart.told(0)]
    margin = max(map(len, scale)) + 1
    inner = max(LEAST_WIDTH, min(width, WIDEST)) - margin - 1
    grid = _grid(chart, inner, most, marks)
    labels = {0: scale[0], HEIGHT // 2: scale[1], HEIGHT - 1: scale[2]}
    key = ", ".join(f"{mark} {curve.name}" for mark, curve in zip(marks.points, chart.curves, strict=False))
    lines = [f"{chart.title}  {key}"]
    lines += [f"{labels.get(row, ''):>{margin - 1}} {marks.upright}{''.join(cells)}" for row, cells in enumerate(grid)]
    lines.append(f"{'':>{margin}}{marks.corner}{marks.level * inner}")
    lines.append(f"{'':>{margin + 1}}{_places(chart.places, inner)}")
    lines.append(f"{'':>{margin + 1}}{chart.label:^{inner}}")
    whole = margin + 1 + inner
    return [line[:whole].ljust(whole) for line in lines]


def _grid(chart: Chart, inner: int, most: float, marks: Marks) -> list[list[str]]:
    grid = [[" "] * inner for _ in range(HEIGHT)]
    columns = [_column(index, len(chart.places), inner) for index in range(len(chart.places))]
    for curve in chart.curves:
        points = list(zip(columns, curve.values, strict=True))
        for (left, low), (right, high) in itertools.pairwise(points):
            for column in range(left + 1, right):
                row = _row(low + (high - low) * (column - left) / (right - left), most)
                grid[row][column] = marks.line
    # Points over lines, and of two points at one place the first curve's.
    for mark, curve in reversed(list(zip(marks.points, chart.curves, strict=False))):
        for column, value in zip(columns, curve.values, strict=True):
            grid[_row(value, most)][column] = mark
    return grid


def _column(index: int, count: int, inner: int) -> int:
    return (2 * index + 1) * inner // (2 * count)


def _row(value: float, most: float) -> int:
    return HEIGHT - 1 - round(value / most * (HEIGHT - 1))


def _places(places: Sequence[str], inner: int) -> str:
    """Each under its column; those for which there is no room are left out."""
    line, free = [" "] * inner, 0
    for index, text in enumerate(places):
        start = min(max(0, _column(index, len(places), inner) - (len(text) - 1) // 2), inner - len(text))
        if start >= free:
            line[start : start + len(text)] = text
            free = start + len(text) + 1
    return "".join(line)
