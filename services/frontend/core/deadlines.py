"""When time is up, for many items at once: a wheel of buckets, so that no request needs a timer of its own."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
BUCKET_NS = 1_000_000
"""An item is told at most this much late, never early."""


SLACK = 4096
"""Emptied buckets that the order may still name before it is made anew."""


class Deadlines(Generic[Item]):
    """Items by deadline. Adding and removing cost the same however many there are."""

    def __init__(self) -> None:
        self._buckets: dict[int, set[Item]] = {}
        self._order: list[int] = []

    def add(self, item: Item, at_ns: int) -> bool:
        """Remembers an item; True where it is now the first one due."""
        number = at_ns // BUCKET_NS
        bucket = self._buckets.get(number)
        if bucket is not None:
            bucket.add(item)
            return False
        self._buckets[number] = {item}
        if len(self._order) > 2 * len(self._buckets) + SLACK:
            self._order = sorted(self._buckets)
            return self._order[0] == number
        heapq.heappush(self._order, number)
        return self._order[0] == number

    def remove(self, item: Item, at_ns: int) -> None:
        """Forgets an item that was added with this deadline; nothing where it has been told already."""
        number = at_ns // BUCKET_NS
        bucket = self._buckets.get(number)
        if bucket is not None:
            bucket.discard(item)
            if not bucket:
                del self._buckets[number]

    def next_ns(self) -> int | None:
        """When to call `expired` next; None while nothing waits."""
        while self._order and self._order[0] not in self._buckets:
            heapq.heappop(self._order)
        return (self._order[0] + 1) * BUCKET_NS if self._order else None

    def expired(self, now_ns: int) -> list[Item]:
        """Takes out what is due, the earliest bucket first."""
        due: list[Item] = []
        while (at := self.next_ns()) is not None and at <= now_ns:
            due.extend(self._buckets.pop(heapq.heappop(self._order)))
        return due
