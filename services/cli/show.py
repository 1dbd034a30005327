"""How quantities and tables look in a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
"""Standard output."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Standard error: notices and progress."""


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table. A column whose name starts with ">" is aligned to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        made.add_row(*row)
    return made


def print_table(made: Table) -> None:
    """Prints a table as wide as its content needs where nobody watches, so that lines can be cut and searched."""
    console = out if sys.stdout.isatty() else Console(highlight=False, width=240)
    console.print(made)


def print_json(value: Any) -> None:
    """Prints a value, or a message with the names of its contract, as JSON."""
    print(json.dumps(plain(value), indent=2))


def plain(value: Any) -> Any:
    """Messages as dictionaries, everything else as it is."""
    if isinstance(value, Message):
        return MessageToDict(value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def duration(nanoseconds: float) -> str:
    """A time span in the unit that reads best: "850 µs", "12.3 ms", "4.1 s"."""
    if nanoseconds < 1e6:
        return f"{nanoseconds / 1e3:.0f} µs"
    if nanoseconds < 1e9:
        return f"{nanoseconds / 1e6:.1f} ms"
    return f"{nanoseconds / 1e9:.1f} s"


def size(count: float) -> str:
    """A number of bytes in the unit that reads best."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def share(millidevices: int) -> str:
    """A share in devices: "0.25"."""
    return f"{millidevices / 1000:g}"


def shape(dimensions: Iterable[Any]) -> str:
    """A tensor's shape: "[batch, 384]", with "?" for what varies and has no name."""
    parts = [str(one.size) if one.HasField("size") else (one.symbol or "?") for one in dimensions]
    return "[" + ", ".join(parts) + "]"
