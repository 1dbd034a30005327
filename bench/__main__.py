"""Every benchmark, by name: `python -m bench` lists them, `python -m bench NAME ...` runs some, one after another.

Each is a module of its own with flags of its own (`python -m bench.NAME --help`), takes its baseline in the same run, prints
what it found, and ends with a status other than 0 where something does not hold that it was asked to show.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Benchmark(NamedTuple):
    """A module that can be run. says: the first line of its docstring."""

    name: str
    says: str


def benchmarks(folder: Path) -> Iterator[Benchmark]:
    """Those in a folder, by name. Found by reading, since importing them would import torch."""
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__main__.py")]):
        text = path.read_text()
        if path == Path(__file__) or ('if __name__ == "__main__"' not in text and path.name != "__main__.py"):
            continue
        name = path.parent.name if path.name == "__main__.py" else path.stem
        yield Benchmark(name, (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0])


def main(names: Sequence[str]) -> int:
    """Lists them, or runs those named; the exit status."""
    known = {each.name: each for each in benchmarks(Path(__file__).parent)}
    if not names:
        width = max(map(len, known))
        print("\n".join(f"  {each.name:{width}}  {each.says}" for each in known.values()))
        return 0
    if unknown := [name for name in names if name not in known]:
        print(f"bench: {', '.join(unknown)}: none of {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"bench: did not hold: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
