"""Shows the services' logs as they grow."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from services.cli.up.files import Folder

EVERY_S = 0.2


async def stream_logs(folder: Folder, names: Sequence[str]) -> None:
    """Writes each further line of the logs to standard error, with its service's name, until cancelled."""
    seen = {name: _length(folder, name) for name in names}
    while True:
        for name in names:
            seen[name] = _show(folder, name, seen[name])
        await asyncio.sleep(EVERY_S)


def _length(folder: Folder, name: str) -> int:
    log = folder.log(name)
    return log.stat().st_size if log.exists() else 0


def _show(folder: Folder, name: str, seen: int) -> int:
    length = _length(folder, name)
    # A log that is shorter than it was has been put aside.
    start = seen if length >= seen else 0
    if length == start:
        return start
    with folder.log(name).open("rb") as file:
        file.seek(start)
        text = file.read(length - start)
    whole, newline, _ = text.rpartition(b"\n")
    for line in whole.decode(errors="replace").splitlines():
        print(f"{name:<10} {line}", file=sys.stderr)
    return start + len(whole) + len(newline)
