"""Draws one frame: lines of plain text with ANSI colours, none longer than the terminal is wide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.cli.top.figures import Figures

BOLD, DIM, RED, GREEN, YELLOW, RESET = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
_GAP = 2
_BAR = 10
_NOTHING = "–"
_WELL, _POORLY = 0.99, 0.95


class Column(NamedTuple):
    """worth: of the columns that do not fit, the one worth least goes first; left: aligned so."""

    title: str
    worth: int
    left: bool = False


class Cell(NamedTuple):
    """A text, and its colour."""

    text: str
    colour: str = ""


LANES = (
    Column("LANE", 9, left=True),
    Column("UNITS", 2),
    Column("BUSY", 8),
    Column("", 3, left=True),
    Column("QUEUE", 7),
    Column("REPLICAS", 1),
)
TENANTS = (
    Column("TENANT", 99, left=True),
    Column("RESERVED", 7),
    Column("WEIGHT", 3),
    Column("USED", 9),
    Column("OF RES.", 6),
    Column("REQ/S", 5),
    Column("WAITING", 4),
    Column("IN OBJ.", 10),
    Column("P99", 8),
    Column("UNIT-S", 2),
)


def frame(shown: Figures, width: int, *, models: bool = False, colours: bool = True, note: str = "") -> list[str]:
    """The lines of a frame. width: of the terminal; models: a line for each model too; note: what is wrong, if anything is."""
    tenants, executors = shown["tenants"], shown["executors"]
    title = f"apportion top   {_many(len(executors), 'executor')}, {_many(len(tenants), 'tenant')}"
    lines = [_cut([Cell(title, BOLD)], width)]
    if note:
        lines.append(_cut([Cell(note, RED)], width))
    lines.append([])
    lines += _table(LANES, [row for each in executors for row in _lanes(each)], width)
    lines.append([])
    lines += _table(TENANTS, [row for each in tenants for row in _tenant(each, models=models)], width)
    return ["".join(_painted(cell, colours=colours) for cell in line).rstrip() for line in lines]


def _lanes(executor: Figures) -> list[list[Cell]]:
    colour = "" if executor["attached"] else RED
    return [
        [
            Cell(f"{executor['executor']}/{lane['lane']}" + ("" if executor["attached"] else " (gone)"), colour),
            Cell(str(lane["compute_units"])),
            Cell(_percent(lane["busy"])),
            Cell(_bar(lane["busy"]), DIM),
            Cell(str(lane["waiting"])),
            Cell(str(lane["replicas"])),
        ]
        for lane in executor["lanes"]
    ]


def _tenant(tenant: Figures, *, models: bool) -> list[list[Cell]]:
    first = [
        Cell(tenant["tenant"], BOLD),
        Cell(f"{tenant['reserved_devices']:g}" if tenant["reserved_devices"] else _NOTHING),
        Cell(str(tenant["weight"])),
        *_use(tenant, _percent(tenant["of_reservation"])),
    ]
    more = [[Cell(f"  {each['model']}"), Cell(""), Cell(""), *_use(each, "")] for each in tenant["models"]]
    return [first, *(more if models else [])]


def _use(use: Figures, of_reservation: str) -> list[Cell]:
    return [
        Cell(f"{use['used_devices']:.3f}"),
        Cell(of_reservation),
        Cell(f"{use['requests_per_s']:.1f}"),
        Cell(str(use["waiting"])),
        Cell(_ratio(use["attainment"]), _mood(use["attainment"])),
        Cell(_NOTHING if use["p99_ms"] is None else _milliseconds(use["p99_ms"])),
        Cell(f"{use['compute_unit_s']:.1f}"),
    ]


def _table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> list[list[Cell]]:
    """Lines of cells, filled up to their columns' widths; columns that do not fit are left out."""
    widths = [max([len(column.title), *(len(row[at].text) for row in rows)]) for at, column in enumerate(columns)]
    kept = list(range(len(columns)))
    while len(kept) > 1 and sum(widths[at] + _GAP for at in kept) - _GAP > width:
        kept.remove(min(kept, key=lambda at: columns[at].worth))
    lines = [[Cell(column.title, DIM) for column in columns], *rows]
    return [
        _cut([cell for at in kept for cell in _filled(line[at], columns[at], widths[at])][:-1], width) for line in lines
    ]


def _filled(cell: Cell, column: Column, width: int) -> list[Cell]:
    text = cell.text.ljust(width) if column.left else cell.text.rjust(width)
    return [Cell(text, cell.colour), Cell(" " * _GAP)]


def _cut(cells: Sequence[Cell], width: int) -> list[Cell]:
    """The line without what lies beyond the terminal's edge."""
    left, kept = max(0, width), []
    for cell in cells:
        kept.append(Cell(cell.text[:left], cell.colour))
        left -= len(kept[-1].text)
    return kept


def _painted(cell: Cell, *, colours: bool) -> str:
    return f"{cell.colour}{cell.text}{RESET}" if colours and cell.colour and cell.text.strip() else cell.text


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _bar(ratio: float) -> str:
    full = max(0, min(_BAR, round(ratio * _BAR)))
    return "█" * full + "░" * (_BAR - full)


def _percent(ratio: float | None) -> str:
    return _NOTHING if ratio is None else f"{100 * ratio:.0f} %"


def _ratio(ratio: float | None) -> str:
    """Never rounded up to everything."""
    return _NOTHING if ratio is None else f"{int(ratio * 10_000) / 100:.2f} %"


def _mood(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return GREEN if ratio >= _WELL else YELLOW if ratio >= _POORLY else RED


def _milliseconds(ms: float) -> str:
    return f"{ms / 1000:.1f} s" if ms >= 10_000 else f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms"
