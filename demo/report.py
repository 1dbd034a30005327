"""What the demo shows: answers, and how each tenant fared."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from demo.answers import SPEECH, FileType, Pair, Voice
from demo.traffic import Seen, Stream

ENOUGH = 0.95
"""The part of requests within their objective that the demo insists on, beside other work of the same machine."""
BLOCKS = " ▁▂▃▄▅▆▇█"

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 100)


def heading(text: str) -> None:
    """Starts a part of the demo."""
    console.print(f"\n[bold]{text}[/]")


def show_pairs(pairs: Sequence[Pair]) -> None:
    """Sentences that mean about the same."""
    for pair in pairs:
        console.print(f"  {pair.similarity:.2f}  {pair.one}  [dim]~[/]  {pair.other}")


def show_files(found: Sequence[FileType]) -> None:
    """Files and what they are."""
    for one in found:
        mark = "" if one.label == one.expected else f"  [red]is {one.expected}[/]"
        console.print(f"  {one.name:<28} {one.label:<10} {one.score:.2f}{mark}")


def show_voice(voice: Voice, *, columns: int = 78) -> None:
    """A timeline: where the detector hears a voice, and where there was one."""
    step = len(voice.probabilities) / columns
    cells = [voice.probabilities[int(k * step) : max(int(k * step) + 1, int((k + 1) * step))] for k in range(columns)]
    heard = "".join(BLOCKS[round(max(cell) * (len(BLOCKS) - 1))] for cell in cells)
    truth = "".join("─" if voice.spoken[int((k + 0.5) * step)] else " " for k in range(columns))
    seconds = sum(p >= SPEECH for p in voice.probabilities) * 0.032
    console.print(f"  heard  {heard}")
    console.print(f"  spoken {truth}")
    console.print(f"  {seconds:.1f} s of voice in {len(voice.probabilities) * 0.032:.1f} s")


def objectives(
    streams: Sequence[Stream], seen: Mapping[str, Seen], device_s: Mapping[str, float], reserve: Mapping[str, float]
) -> Table:
    """One row a tenant."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in (
        "tenant",
        ">reserved",
        ">requests",
        ">refused",
        ">objective",
        ">within",
        ">p50",
        ">p99",
        ">device time",
    ):
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left")
    for stream in streams:
        one = seen[stream.tenant]
        table.add_row(
            f"{stream.tenant} [dim](floods)[/]" if stream.flood else stream.tenant,
            f"{reserve[stream.tenant]:g}",
            str(one.sent),
            str(sum(one.refused.values())),
            *_verdict(stream, one),
            _milliseconds(one.quantile_s(0.5)),
            _milliseconds(one.quantile_s(0.99)),
            f"{device_s.get(stream.tenant, 0.0):.2f} s",
        )
    return table


def _verdict(stream: Stream, seen: Seen) -> tuple[str, str]:
    if stream.slo_ms is None:
        return "none", "–"
    objective_s = stream.slo_ms / 1000
    part, of = (seen.kept(objective_s), "*") if stream.flood else (seen.within(objective_s), "")
    return f"{stream.slo_ms:g} ms", f"[{'green' if part >= ENOUGH else 'red'}]{100 * part:.1f} %[/]{of}"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.1f} ms"
