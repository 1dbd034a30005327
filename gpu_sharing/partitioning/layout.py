"""How a device's compute units are divided between workers. PURE."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TypeAlias

Layout: TypeAlias = tuple[tuple[int, ...], ...]
"""The cores of each worker, ascending."""

_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


class LayoutInvalid(ValueError):
    """The layout cannot be used. The message names the setting, the part that is wrong and the limit."""


def parse_layout(text: str, cores: Collection[int], *, field: str = "layout") -> Layout:
    """The cores of each worker from text such as "1;2-3" or "0,2;1", whose workers stand between semicolons.

    cores: those that exist for us; every one named must be among them, and may be named once.
    Raises LayoutInvalid, naming `field`.
    """
    layout = tuple(_parse_worker(part, field) for part in text.split(";"))
    named = [core for worker in layout for core in worker]
    for core in named:
        if core not in cores:
            raise LayoutInvalid(f"{field}: core {core} is not one of {_text(cores)}")
        if named.count(core) > 1:
            raise LayoutInvalid(f"{field}: core {core} is given twice; workers share no core")
    return layout


def default_layout(cores: Sequence[int]) -> Layout:
    """One worker with every core but the first, which is left to the services; on one core they share it."""
    if not cores:
        raise LayoutInvalid("layout: there is no core to give to a worker; at least 1 is needed")
    ordered = sorted(set(cores))
    return (tuple(ordered[1:] or ordered),)


def _parse_worker(text: str, field: str) -> tuple[int, ...]:
    cores: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise LayoutInvalid(f'{field}: {part.strip()!r} is neither a core nor a range of cores such as "2-3"')
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise LayoutInvalid(f"{field}: the range {part.strip()} ends before it starts")
        cores.extend(range(first, last + 1))
    return tuple(sorted(cores))


def _text(cores: Collection[int]) -> str:
    return ",".join(map(str, sorted(cores))) or "none"
