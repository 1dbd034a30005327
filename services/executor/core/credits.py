"""Credits: how many bytes each tenant may still put on its way in one direction of one session.

A call draws its whole length at once or waits: were it drawn piece by piece, two large calls could each hold half of what
they need for ever.
"""

from __future__ import annotations


class Credits:
    """What each tenant has drawn.

    tenant_bytes: what a tenant may have drawn at once. A payload larger than that goes when nothing else of its tenant is
    on its way.
    """

    def __init__(self, tenant_bytes: int) -> None:
        self.tenant_bytes = tenant_bytes
        self._drawn: dict[str, int] = {}

    def drawn(self, tenant: str) -> int:
        """Bytes that the tenant has drawn and not got back."""
        return self._drawn.get(tenant, 0)

    def can_draw(self, tenant: str, amount: int) -> bool:
        """Whether the tenant may draw that much now."""
        drawn = self.drawn(tenant)
        return drawn == 0 or drawn + amount <= self.tenant_bytes

    def draw(self, tenant: str, amount: int) -> None:
        """Takes it. Raises ValueError where the tenant has not that much left."""
        if not self.can_draw(tenant, amount):
            raise ValueError(
                f"{amount} bytes drawn for {tenant!r}, who has drawn {self.drawn(tenant)} of {self.tenant_bytes}"
            )
        if amount:
            self._drawn[tenant] = self.drawn(tenant) + amount

    def grant(self, tenant: str, amount: int) -> None:
        """Gives it back. Raises ValueError where the tenant has not drawn that much."""
        left = self.drawn(tenant) - amount
        if left < 0:
            raise ValueError(f"{amount} bytes granted to {tenant!r}, who has drawn {self.drawn(tenant)}")
        if left:
            self._drawn[tenant] = left
        else:
            self._drawn.pop(tenant, None)
