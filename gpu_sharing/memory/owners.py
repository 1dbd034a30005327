"""Who wrote to which page of a memory last, so that nobody is given what another has left there. PURE."""

from __future__ import annotations

import numpy as np

from gpu_sharing.units import Bytes

PAGE_BYTES: Bytes = 4096
NOBODY = 0
"""Nothing has been written there, or the one who frees has wiped it."""

SEVERAL = -1


class PageOwners:
    """The owner of each page. Owners are positive numbers."""

    def __init__(self, capacity_bytes: Bytes) -> None:
        self._of = np.zeros(-(-capacity_bytes // PAGE_BYTES), np.int32)

    def take(self, offset: Bytes, length_bytes: Bytes, owner: int) -> bool:
        """Notes a new owner of an extent. Returns whether it may hold what another owner has written: it is to be wiped.

        A page that an extent shares with other owners' counts as theirs too, until one extent covers the whole of it.
        """
        end = offset + length_bytes
        first, last = offset // PAGE_BYTES, -(-end // PAGE_BYTES)
        several = last - first > 1
        if not several and self._of[first] == owner:
            return False
        pages = self._of[first:last]
        foreign = bool(((pages != owner) & (pages != NOBODY)).any()) if several else self._is_foreign(first, owner)
        if not foreign:
            pages[:] = owner
            return False
        # The pages at both ends may be covered in part only: the rest of them stays as it was.
        pages[(pages != owner) & (pages != NOBODY)] = SEVERAL
        pages[pages == NOBODY] = owner
        self._of[-(-offset // PAGE_BYTES) : end // PAGE_BYTES] = owner
        return True

    def clean(self, offset: Bytes, length_bytes: Bytes) -> None:
        """The pages that lie wholly within are empty again."""
        self._of[-(-offset // PAGE_BYTES) : (offset + length_bytes) // PAGE_BYTES] = NOBODY

    def _is_foreign(self, page: int, owner: int) -> bool:
        return int(self._of[page]) not in (owner, NOBODY)
