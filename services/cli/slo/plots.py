"""Plots of a report, as SVG: what was met over time, how long requests took, where violations come from, what is left."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from services.cli.slo.markup import Content, Markup, tag
from services.common.exponential import PER_OCTAVE, upper_s
from services.tracestore.core.budgets import Objective
from services.tracestore.core.rollups import Slot

WIDTH, HEIGHT = 560, 170
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 10, 26
INNER_W, INNER_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
MOST_BARS = 120
DAY_S = 86_400
MOST_OVERSPENT = -1.0
"""A budget that is overspent further is drawn as if it were by this much."""


def over_time(slots: Sequence[Slot], start_s: int, end_s: int) -> Markup | None:
    """Requests by time, those that met their objective below those that did not; None: there were none."""
    bars = binned(slots, start_s, end_s)
    most = max((met + missed + other for met, missed, other in bars), default=0)
    if not most:
        return None
    width = INNER_W / len(bars)
    parts: list[Content] = []
    for place, (met, missed, other) in enumerate(bars):
        bottom = float(TOP + INNER_H)
        for count, kind in ((other, "other"), (met, "good"), (missed, "bad")):
            height = INNER_H * count / most
            if count:
                bottom -= height
                parts.append(_rect(LEFT + place * width, bottom, max(0.5, width * 0.9), max(0.6, height), kind))
    parts += [*_y_axis(most, "requests"), *_time_axis(start_s, end_s)]
    return _plot("requests over time: met, missed, and those without an objective", parts)


def binned(slots: Sequence[Slot], start_s: int, end_s: int) -> list[tuple[int, int, int]]:
    """(met, missed, judged by nothing) of equal parts of the range."""
    span_s = max(60, end_s - start_s)
    count = max(1, min(MOST_BARS, span_s // max((slot.width_s for slot in slots), default=60)))
    bars = [(0, 0, 0)] * count
    for slot in slots:
        middle_s = slot.start_s + slot.width_s // 2 - start_s
        place = min(count - 1, max(0, middle_s * count // span_s))
        met, missed, other = bars[place]
        rest = max(0, slot.counts.requests - slot.counts.met - slot.counts.missed)
        bars[place] = (met + slot.counts.met, missed + slot.counts.missed, other + rest)
    return bars


def latencies(
    buckets: Mapping[int, int], quantiles_s: Mapping[float, float | None], marks_s: Sequence[float]
) -> Markup | None:
    """The histogram, on a logarithmic scale of time, with quantiles and objectives; None: nothing was measured."""
    held = {index: count for index, count in buckets.items() if count}
    if not held:
        return None
    marks = [mark for mark in marks_s if mark > 0]
    low = min([min(held) - 1, *(_index(mark) - 2 for mark in marks)])
    high = max([max(held) + 1, *(_index(mark) + 2 for mark in marks)])
    step, most = INNER_W / (high - low + 1), max(held.values())
    limit = min(marks, default=None)
    parts: list[Content] = []
    for index, count in sorted(held.items()):
        height = INNER_H * count / most
        kind = "bad" if limit is not None and upper_s(index - 1) >= limit else "good"
        parts.append(_rect(LEFT + (index - low) * step, TOP + INNER_H - height, step * 0.92, max(0.6, height), kind))

    def place(seconds: float) -> float:
        return LEFT + (_position(seconds) - low) * step

    for seconds in marks:
        parts += _mark(place(seconds), f"objective {duration(seconds)}", "limit", 0)
    told = [(f"p{quantile * 100:g} {duration(at)}", at) for quantile, at in quantiles_s.items() if at is not None]
    for row, (label, at) in enumerate(told):
        parts += _mark(place(at), label, "mark", 1 + row)
    parts += [*_y_axis(most, "requests"), *_log_axis(low, high, step)]
    return _plot("how long requests took", parts)


def budget(objective: Objective, slots: Sequence[Slot], now_s: int) -> Markup | None:
    """The part of the error budget that is left, over the objective's window as far as it was counted; None: nothing was judged."""
    window_s = now_s - objective.window_s
    inside = [slot for slot in slots if window_s <= slot.start_s + slot.width_s // 2 < now_s]
    total = sum(objective.judged(slot.counts).total for slot in inside)
    if not total:
        return None
    start_s = min(max(window_s, inside[0].start_s), now_s - 60)
    points = _spending(objective, inside, total * (1 - objective.target))
    lowest = max(MOST_OVERSPENT, min(0.0, *(left for _, left in points)))

    def x(at_s: float) -> float:
        return LEFT + INNER_W * min(1.0, max(0.0, (at_s - start_s) / (now_s - start_s)))

    def y(left: float) -> float:
        return TOP + INNER_H * (1 - max(lowest, left)) / (1 - lowest)

    ends = [(start_s, 1.0), *points, (now_s, points[-1][1])]
    line = " ".join(f"{x(at_s):.1f},{y(left):.1f}" for at_s, left in thinned(ends))
    least = f"{'≤ ' if lowest == MOST_OVERSPENT else ''}{lowest:.0%}"
    labels = {1.0: "100%", 0.0: "0%", **({lowest: least} if lowest else {})}
    parts: list[Content] = [
        tag("line", x1=LEFT, x2=LEFT + INNER_W, y1=round(y(0.0), 1), y2=round(y(0.0), 1), class_="limit"),
        tag("polyline", points=line, class_="left"),
        *(_label(LEFT - 6, y(left) + 4, text, "end") for left, text in labels.items()),
        *_time_axis(start_s, now_s),
    ]
    return _plot(f"error budget left: {objective.name}", parts)


def _spending(objective: Objective, slots: Sequence[Slot], allowed: float) -> list[tuple[float, float]]:
    """(moment, part of the budget that is left): before and after each slot."""
    points: list[tuple[float, float]] = []
    spent, left = 0, 1.0
    for slot in slots:
        points.append((slot.start_s, left))
        spent += objective.judged(slot.counts).missed
        left = 1 - spent / allowed if allowed else float(not spent)
        points.append((slot.end_s, left))
    return points


def causes(counts: Mapping[str, int]) -> Markup | None:
    """Violations by cause; None: there were none."""
    held = [(cause, count) for cause, count in counts.items() if count]
    if not held:
        return None
    most, row_h = max(count for _, count in held), 18
    height = TOP + len(held) * row_h + 6
    left, room = 110, WIDTH - 110 - 70
    parts: list[Content] = []
    for row, (cause, count) in enumerate(held):
        top, width = TOP + row * row_h, max(1.0, room * count / most)
        parts += [
            _label(left - 8, top + 11, cause, "end"),
            _rect(left, top, width, row_h - 5, "bad"),
            _label(left + width + 6, top + 11, f"{count:,}", "start"),
        ]
    return _plot("violations by cause", parts, height)


def thinned(points: Sequence[tuple[float, float]], most: int = 600) -> list[tuple[float, float]]:
    """At most so many points, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[len(points) * place // most] for place in range(most)] + [points[-1]]


def duration(seconds: float) -> str:
    """ "50 ms" """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def moment(at_s: float, form: str = "%Y-%m-%d %H:%M") -> str:
    """UTC."""
    return time.strftime(form, time.gmtime(at_s))


def _plot(title: str, parts: Sequence[Content], height: float = HEIGHT) -> Markup:
    return tag(
        "svg",
        tag("title", title),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_label=title,
    )


def _rect(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    return tag("rect", x=round(x, 1), y=round(y, 1), width=round(width, 1), height=round(height, 1), class_=kind)


def _label(x: float, y: float, text: str, anchor: str, kind: str | None = None) -> Markup:
    return tag("text", text, x=round(x, 1), y=round(y, 1), text_anchor=anchor, class_=kind)


def _mark(x: float, label: str, kind: str, row: int) -> list[Markup]:
    anchor, shift = ("end", -4) if x > LEFT + INNER_W * 0.6 else ("start", 4)
    return [
        tag("line", x1=round(x, 1), x2=round(x, 1), y1=TOP, y2=TOP + INNER_H, class_=kind),
        _label(x + shift, TOP + 10 + 13 * row, label, anchor, kind),
    ]


def _y_axis(most: int, unit: str) -> list[Markup]:
    return [
        _label(LEFT - 6, TOP + 9, f"{most:,}", "end"),
        _label(LEFT - 6, TOP + INNER_H, "0", "end"),
        _label(LEFT - 6, TOP + INNER_H / 2, unit, "end", "axis"),
        tag("line", x1=LEFT, x2=LEFT + INNER_W, y1=TOP + INNER_H, y2=TOP + INNER_H, class_="axis"),
    ]


def _time_axis(start_s: int, end_s: int) -> list[Markup]:
    form = "%m-%d" if end_s - start_s > 3 * DAY_S else "%m-%d %H:%M"
    places = ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    return [
        _label(LEFT + INNER_W * part, HEIGHT - 8, moment(start_s + (end_s - start_s) * part, form), anchor)
        for part, anchor in places
    ]


def _log_axis(low: int, high: int, step: float) -> list[Markup]:
    labels, last = [], -1e9
    for exponent in range(-9, 10):
        for factor in (1, 2, 5):
            seconds = factor * 10.0**exponent
            x = LEFT + (_position(seconds) - low) * step
            if LEFT <= x <= LEFT + INNER_W and x - last > 60 and low <= _index(seconds) <= high:
                labels.append(_label(x, HEIGHT - 8, duration(seconds), "middle"))
                last = x
    return labels


def _position(seconds: float) -> float:
    """Where a time lies among the buckets, as a fraction."""
    return math.log2(seconds) * PER_OCTAVE


def _index(seconds: float) -> int:
    return int(_position(seconds))
