"""How many failed attempts may be tried again elsewhere: a part of the requests, so that retries never become the load."""

from __future__ import annotations

import msgspec


class Budget(msgspec.Struct, gc=False):
    """What one tenant may still try again, in tries."""

    tries: float


class Retries:
    """A token bucket for each tenant: every request pays in a part of a try, every further attempt takes a whole one.

    ratio: further attempts as a part of requests, in the long run. burst: what a bucket holds at most, and begins with: as
    many requests as may be with an executor when it dies. A tenant's failures use up its own bucket and nobody else's.

    Source: the retry budget of Finagle, and throttling in gRPC's proposal A6, without a clock.
    """

    def __init__(self, ratio: float = 0.1, burst: float = 100.0) -> None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio: {ratio} is not within 0 to 1")
        if burst < 0:
            raise ValueError(f"burst: {burst} is below 0")
        self._ratio, self._burst = ratio, burst
        self._budgets: dict[str, Budget] = {}

    def requested(self, tenant: str) -> None:
        """A request of the tenant is sent for the first time. Only tenants that exist: each is remembered."""
        budget = self._budgets.get(tenant)
        if budget is None:
            self._budgets[tenant] = Budget(self._burst)
        elif budget.tries < self._burst:
            budget.tries = min(self._burst, budget.tries + self._ratio)

    def take(self, tenant: str) -> bool:
        """Takes one further attempt out of the tenant's bucket; False where there is none left."""
        budget = self._budgets.get(tenant)
        if budget is None or budget.tries < 1:
            return False
        budget.tries -= 1
        return True

    def left(self, tenant: str) -> float:
        """What the tenant may still try again."""
        budget = self._budgets.get(tenant)
        return self._burst if budget is None else budget.tries
