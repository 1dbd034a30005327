"""Leave to send: how many bytes of each tenant's large payloads may be on their way, first come first served."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Credits(Generic[Item]):
    """One side's credit with the other, by tenant.

    window_bytes: what each tenant has to begin with, and at most. A payload larger than that goes when nothing else of
    its tenant is on its way.
    """

    def __init__(self, window_bytes: int) -> None:
        self._window = window_bytes
        self._drawn: dict[str, int] = {}
        self._waiting: dict[str, deque[tuple[Item, int]]] = {}

    def draw(self, tenant: str, size_bytes: int, item: Item) -> bool:
        """True: send it now. False: it waits behind the tenant's others, and `grant` will name it."""
        waiting = self._waiting.get(tenant)
        if not waiting and self._fits(tenant, size_bytes):
            self._drawn[tenant] = self._drawn.get(tenant, 0) + size_bytes
            return True
        if waiting is None:
            waiting = self._waiting[tenant] = deque()
        waiting.append((item, size_bytes))
        return False

    def grant(self, tenant: str, size_bytes: int) -> list[Item]:
        """Takes credit back; returns what may be sent now, in the order in which it came."""
        left = self._drawn.get(tenant, 0) - size_bytes
        if left > 0:
            self._drawn[tenant] = left
        else:
            self._drawn.pop(tenant, None)
        return self._admitted(tenant)

    def withdraw(self, tenant: str, item: Item) -> list[Item]:
        """Takes an item that waits out of the queue; returns what may be sent in its place."""
        waiting = self._waiting.get(tenant)
        if waiting is not None:
            self._waiting[tenant] = deque(entry for entry in waiting if entry[0] is not item)
        return self._admitted(tenant)

    def _admitted(self, tenant: str) -> list[Item]:
        waiting = self._waiting.get(tenant)
        admitted: list[Item] = []
        while waiting and self._fits(tenant, waiting[0][1]):
            item, size_bytes = waiting.popleft()
            self._drawn[tenant] = self._drawn.get(tenant, 0) + size_bytes
            admitted.append(item)
        if not waiting:
            self._waiting.pop(tenant, None)
        return admitted

    def _fits(self, tenant: str, size_bytes: int) -> bool:
        drawn = self._drawn.get(tenant, 0)
        return drawn == 0 or drawn + size_bytes <= self._window
