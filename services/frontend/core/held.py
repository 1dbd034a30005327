"""What each tenant has this process hold, bounded."""

from __future__ import annotations

from collections.abc import Iterator


class Held:
    """Bytes, or whatever else is counted, by tenant, bounded.

    limit: of each tenant. Whatever its size, something fits where the tenant has nothing else here.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit: must be positive, is {limit}")
        self.limit = limit
        self._held: dict[str, int] = {}

    def take(self, tenant: str, size: int) -> bool:
        """Counts that many more; False, and nothing is counted, where they do not fit."""
        if not self.fits(tenant, size):
            return False
        if size:
            self._held[tenant] = self._held.get(tenant, 0) + size
        return True

    def fits(self, tenant: str, size: int) -> bool:
        """Whether `take` would count that many."""
        held = self._held.get(tenant)
        return not held or held + size <= self.limit

    def give(self, tenant: str, size: int) -> None:
        """Counts what `take` has counted no more. ValueError where that was less."""
        left = self._held.get(tenant, 0) - size
        if left > 0:
            self._held[tenant] = left
        elif left == 0:
            self._held.pop(tenant, None)
        else:
            raise ValueError(f"size: {size} given back of {left + size}")

    def of(self, tenant: str) -> int:
        """What the tenant has here."""
        return self._held.get(tenant, 0)

    def all(self) -> Iterator[tuple[str, int]]:
        """Tenants that have anything here, and how much."""
        return iter(list(self._held.items()))
