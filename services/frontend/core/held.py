"""What each tenant has this process hold, bounded."""

from __future__ import annotations

from collections.abc import Iterator


class Held:
    """Bytes by tenant, bounded.

    limit_bytes: of each tenant. Whatever its size, something fits where the tenant has nothing else here.
    """

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise ValueError(f"limit_bytes: must be positive, is {limit_bytes}")
        self.limit_bytes = limit_bytes
        self._held: dict[str, int] = {}

    def take(self, tenant: str, size_bytes: int) -> bool:
        """Counts that many more bytes; False, and nothing is counted, where they do not fit."""
        if not self.fits(tenant, size_bytes):
            return False
        if size_bytes:
            self._held[tenant] = self._held.get(tenant, 0) + size_bytes
        return True

    def fits(self, tenant: str, size_bytes: int) -> bool:
        """Whether `take` would count that many."""
        held = self._held.get(tenant)
        return not held or held + size_bytes <= self.limit_bytes

    def give(self, tenant: str, size_bytes: int) -> None:
        """Counts what `take` has counted no more. ValueError where that was less."""
        left = self._held.get(tenant, 0) - size_bytes
        if left > 0:
            self._held[tenant] = left
        elif left == 0:
            self._held.pop(tenant, None)
        else:
            raise ValueError(f"size_bytes: {size_bytes} given back of {left + size_bytes}")

    def of(self, tenant: str) -> int:
        """The tenant's bytes."""
        return self._held.get(tenant, 0)

    def all(self) -> Iterator[tuple[str, int]]:
        """Tenants that have anything here, with their bytes."""
        return iter(list(self._held.items()))
