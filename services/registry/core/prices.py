"""What a device-second costs, and since when."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

ANY_KIND = ""
MOST_PRICE_NANOS = 10**15


class Price(NamedTuple):
    """Billionths for one second of a whole device of a kind, from an hour (since 1970 UTC) on. ANY_KIND: those without one."""

    device_kind: str
    hour: int
    price_nanos: int


class Prices:
    """The prices that were ever set."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._by_kind: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for price in sorted(prices):
            self._by_kind[price.device_kind].append((price.hour, price.price_nanos))

    def of(self, device_kind: str, hour: int) -> int | None:
        """What a kind costs in an hour; None: nothing was said."""
        own = self._at(device_kind, hour)
        return own if own is not None else self._at(ANY_KIND, hour)

    def _at(self, device_kind: str, hour: int) -> int | None:
        held = self._by_kind.get(device_kind, [])
        place = bisect_right(held, (hour, MOST_PRICE_NANOS + 1))
        return held[place - 1][1] if place else None
