"""The C library's heap, for processes that pass large payloads on."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
KEPT_BYTES = 512 << 20
GROWTH_BYTES = 64 << 20
HEAPS = 2
"""The main thread's, and one for gRPC's threads: each of them would have its own, and keep there what it once needed."""


def keep_large_blocks() -> bool:
    """Lets large blocks come from the heap, and the heap keep up to half a GiB of what was freed. False: not glibc.

    By default glibc maps each block above a limit afresh and unmaps it when it is freed, so every 32 MiB message faults
    8,192 pages in for each of its copies while the event loop stands still. Measured with a bare echo on 2 cores: the
    loop's longest standstill for one 32 MiB message falls from 50 to 90 ms to about 10 ms.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    options = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, KEPT_BYTES), (_M_TOP_PAD, GROWTH_BYTES), (_M_ARENA_MAX, HEAPS))
    return all(mallopt(name, value) == 1 for name, value in options)
