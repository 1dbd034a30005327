"""What the system lets this process have. Where it is given more, it is killed, and everybody's requests with it."""

from __future__ import annotations

import ctypes
import mmap
import resource
from collections.abc import Iterator
from pathlib import Path

from gpu_sharing.units import Bytes, GiB

LIBRARIES_BYTES: Bytes = 2 * GiB
"""What may be taken beside models: libraries, what loading needs for a while, batches' inputs."""


def granted_bytes(*, root: Path = Path("/")) -> Bytes | None:
    """The least of the limits that this process lives under: its control groups', and its own; None: there is none."""
    own = [resource.getrlimit(each)[0] for each in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    limits = [limit for limit in own if limit != resource.RLIM_INFINITY]
    return min([*limits, *_group_limits(root)], default=None)


def data_bytes(*, root: Path = Path("/")) -> Bytes:
    """What this process has taken for itself: heap, stacks and private mappings, whether touched or not."""
    return int((root / "proc/self/statm").read_text().split()[5]) * mmap.PAGESIZE


def confine(most_bytes: Bytes) -> Bytes:
    """From now on, taking more than what there is now, most_bytes and LIBRARIES_BYTES fails with an error that can be caught.

    Whoever asks for it gets the error: the tenant whose model grows, and not the one whom the system would have picked.
    Returns the limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = data_bytes() + most_bytes + LIBRARIES_BYTES
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    return limit


def trim() -> None:
    """Gives back to the system what the heap holds free."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)


def _group_limits(root: Path) -> Iterator[Bytes]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _limits(root / "sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")


def _limits(folder: Path, path: str, name: str) -> Iterator[Bytes]:
    """Of the group and of all above it. In a container the path may lie outside of what is mounted; the mount's root holds."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts) + 1):
        try:
            text = folder.joinpath(*parts[:depth], name).read_text().strip()
        except OSError:
            continue
        # Where there is no limit, the kernel writes "max", or nearly all of 64 bits.
        if text.isdigit() and int(text) < 1 << 62:
            yield int(text)
