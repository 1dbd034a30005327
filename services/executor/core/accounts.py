"""On whose account lanes worked: within tenants' reservations, from the surplus, in gaps. PURE.

Over the lives of workers, each of which counts from nothing. A worker may be hostile: it is believed only of tenants that the
lane's executor knows, and counts never fall.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from gpu_sharing.units import Nanoseconds
from gpu_sharing.worker.messages import Account


@dataclass
class Accounted:
    """What one tenant has used of one lane, by account, and what became of its requests there."""

    guaranteed_ns: Nanoseconds = 0
    surplus_ns: Nanoseconds = 0
    gap_ns: Nanoseconds = 0
    guaranteed: int = 0
    surplus: int = 0
    gap: int = 0
    refused: int = 0
    revoked: int = 0

    def grow(self, before: Account, now: Account) -> None:
        """Adds what is new since the worker's word before."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + max(0, getattr(now, name) - getattr(before, name)))


class Accounts:
    """Of all lanes of an executor. totals: by lane and tenant."""

    def __init__(self) -> None:
        self.totals: dict[tuple[int, str], Accounted] = {}
        self._last: dict[tuple[int, str], Account] = {}

    def take(self, lane: int, told: Iterable[Account], tenants: Collection[str]) -> None:
        """Counts what is new since this worker's last word. tenants: that are known here."""
        for account in told:
            if account.tenant in tenants:
                key = (lane, account.tenant)
                before = self._last.get(key, Account(account.tenant))
                self._last[key] = account
                self.totals.setdefault(key, Accounted()).grow(before, account)

    def ended(self, lane: int) -> None:
        """The lane's next worker counts from nothing."""
        self._last = {key: account for key, account in self._last.items() if key[0] != lane}
