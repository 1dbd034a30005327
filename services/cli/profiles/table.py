"""Profiles as tables and charts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Any

from services.cli import show
from services.cli.profiles import plot


def print_profile(profile: Any) -> None:
    """One profile: what it is of, a row for each batch that was measured, and latency and throughput as curves."""
    show.out.print(
        f"[bold]{profile.device_kind}[/]  weights {show.size(profile.weight_bytes)}, {_segments(profile.segments)}"
    )
    if not profile.points:
        show.out.print("nothing was measured: the model rejects inputs that are made up; push it with --warmup")
        return
    rows = [_row(each) for each in profile.points]
    columns = [">rows", "shape", ">units", ">p50", ">p99", ">rows/s", ">activations", ">segments", ">longest", ">runs"]
    show.print_table(show.table(None, columns, rows))
    width, marks = shutil.get_terminal_size((100, 24)).columns, _marks()
    for (units, shape), points in curves(profile):
        if len(points) > 1:
            what = f"{units} compute unit{'' if units == 1 else 's'}"
            show.out.print(f"\nshape {shape}, {what}", markup=False)
            for line in plot.beside(charts(points), width, marks):
                show.out.print(line, markup=False)


def curves(profile: Any) -> list[tuple[tuple[int, str], list[Any]]]:
    """The points by compute units and shape, each list by rows."""
    found: dict[tuple[int, str], list[Any]] = {}
    for point in sorted(profile.points, key=lambda each: (each.compute_units, each.shape_bucket, each.rows)):
        found.setdefault((point.compute_units, point.shape_bucket), []).append(point)
    return list(found.items())


def charts(points: Sequence[Any]) -> list[plot.Chart]:
    """Latency and throughput over rows."""
    places = [str(each.rows) for each in points]
    latency = [
        plot.Curve("p50", [float(each.p50_ns) for each in points]),
        plot.Curve("p99", [float(each.p99_ns) for each in points]),
    ]
    throughput = [plot.Curve("rows/s", [rows_per_second(each) for each in points])]
    return [
        plot.Chart("latency", latency, places, "rows of a batch", show.duration),
        plot.Chart("throughput", throughput, places, "rows of a batch", lambda value: f"{value:,.0f}"),
    ]


def rows_per_second(point: Any) -> float:
    """Of batches one after another, at their median."""
    return float(point.rows * 1e9 / max(1, point.p50_ns))


def _row(point: Any) -> list[str]:
    longest = max(point.segments_ns, default=0)
    return [
        str(point.rows),
        point.shape_bucket.replace("[", "\\["),
        str(point.compute_units),
        show.duration(point.p50_ns),
        show.duration(point.p99_ns),
        f"{rows_per_second(point):,.0f}",
        show.size(point.activation_bytes),
        str(len(point.segments_ns) or "?"),
        show.duration(longest) if longest else "?",
        str(point.runs),
    ]


def _segments(segments: Sequence[Any]) -> str:
    if not segments:
        return "segments not known"
    longest = max(segments, key=lambda each: each.p50_ns)
    count = f"{len(segments)} segment{'' if len(segments) == 1 else 's'}"
    return f"{count}, the longest {show.duration(longest.p50_ns)} at one row"


def _marks() -> plot.Marks:
    """Plain ones where the terminal knows no others."""
    try:
        "".join(plot.UNICODE).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return plot.ASCII
    return plot.UNICODE
