"""The pools that tenants draw on, on one lane of a device: a budget each, as large as the ledger's reservations say (`grants`).

Of a tenant, batches without graphs draw on one pool, each chain of graphs on one of its own within a part of the budget, a replica
that is tried on one that goes with the trial, and a model of Python code on its own, for torch and CuPy alike. All count together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from gpu_sharing.memory.capped import Budget, MakeBudget
from gpu_sharing.memory.grants import Grant, Grants
from gpu_sharing.units import SECOND, Bytes, Nanoseconds

RENEWED_AFTER: Nanoseconds = 10 * SECOND
"""Giving a pool back may make the driver wait for the device, which neighbours feel: so often, at most, by one tenant."""


class PoolFull(MemoryError):
    """A tenant's own budget is used up. The numbers are the tenant's, and tell nothing of others."""

    def __init__(self, used_bytes: Bytes, limit_bytes: Bytes) -> None:
        super().__init__(f"out of memory: {used_bytes} of the {limit_bytes} bytes that its batches may draw are drawn")
        self.used_bytes = used_bytes
        self.limit_bytes = limit_bytes


class Account:
    """One tenant's. budget: all that it may draw on the lane. graphs: the part of it that chains of graphs draw on.

    `begin`, `end`, `ran_out` and `pool` are for the lane's thread.
    """

    def __init__(self, make: MakeBudget) -> None:
        self._make = make
        self.budget: Budget = make(0, None)
        self.graphs: Budget = make(0, self.budget)
        self.resized: Callable[[Bytes], None] = lambda _bytes: None
        """Told of what graphs may hold, whenever that changes."""
        self.graphs_on: Any = None
        """The chains that draw on `graphs`, kept here by whoever has them."""
        self._pool: Any = None
        self._trials: dict[int, tuple[Budget, Any]] = {}
        self._parts: dict[int, Budget] = {}
        self._nothing: Budget | None = None
        self._no_trial: Any = None
        self._flights = 0
        self._ran_out = False
        self._renewed: Nanoseconds | None = None

    # The lane's thread.

    def pool(self) -> Any:
        """What batches without graphs draw on."""
        if self._pool is None:
            self._pool = self.budget.pool()
        return self._pool

    def begin(self, now: Nanoseconds) -> None:
        """A batch starts. After one has run out, what torch keeps in pieces is given back first, if nothing else lies in it."""
        if self._ran_out and not self._flights and (self._renewed is None or now - self._renewed >= RENEWED_AFTER):
            self._ran_out, self._renewed, self._pool = False, now, None
            self.budget.renew()
        self._flights += 1

    def end(self) -> None:
        """A batch has ended."""
        self._flights -= 1

    def ran_out(self) -> PoolFull:
        """A batch has wanted more than there is: what it ends with."""
        self._ran_out = True
        return self.full()

    # Those that load.

    def full(self) -> PoolFull:
        """The error that says so, in this tenant's numbers."""
        return PoolFull(self.budget.used_bytes, self.budget.limit_bytes)

    def trial_pool(self) -> Any:
        """What a replica that is being tried draws on; where none is, one that nothing can be drawn on."""
        for _, pool in self._trials.values():
            return pool
        if self._no_trial is None:
            self._nothing = self._make(0, self.budget)
            self._no_trial = self._nothing.pool()
        return self._no_trial

    def part(self, replica: int | None, limit_bytes: Bytes) -> Budget:
        """A budget within this one, for a model of Python code. replica: whose grant limits it later; None: nobody's."""
        made = self._make(limit_bytes, self.budget)
        if replica is not None:
            self._parts[replica] = made
        return made

    # Told by `Accounts`.

    def limit(self, limit_bytes: Bytes, graphs_bytes: Bytes) -> None:
        """What may be drawn from now on."""
        self.budget.limit_bytes = limit_bytes
        if self.graphs.limit_bytes != graphs_bytes:
            self.graphs.limit_bytes = graphs_bytes
            self.resized(graphs_bytes)

    def try_out(self, replica: int, trial_bytes: Bytes) -> None:
        """The replica draws on a pool of its own until `tried`."""
        budget = self._make(trial_bytes, self.budget)
        self._trials[replica] = (budget, budget.pool())

    def tried(self, replica: int) -> Bytes:
        """Gives that pool back: the most that was drawn on it."""
        found = self._trials.pop(replica, None)
        if found is None:
            return 0
        budget = found[0]
        peak_bytes = budget.peak_bytes
        # It ends only with the last that refers to it.
        del found
        budget.close()
        return peak_bytes

    def part_of(self, replica: int) -> Budget | None:
        """See `part`."""
        return self._parts.get(replica)

    def forget_part(self, replica: int) -> None:
        """The replica's model has been closed."""
        part = self._parts.pop(replica, None)
        if part is not None:
            part.close()

    def close(self) -> None:
        """Gives everything back; no batch is in flight."""
        self.resized(0)
        self._pool = self.graphs_on = self._no_trial = None
        if self._nothing is not None:
            self._nothing.close()
        for replica in list(self._trials):
            self.tried(replica)
        for replica in list(self._parts):
            self.forget_part(replica)
        self.graphs.close()
        self.budget.close()


class Accounts:
    """Of one lane. Decisions are `grants`'; here budgets follow them. Any thread."""

    def __init__(self, make: MakeBudget, grants: Grants, *, reclaim: Callable[[], None] = lambda: None) -> None:
        """make: budgets of this device. reclaim: has torch give back what lay in pools that are gone; may wait for the device."""
        self._make, self.grants, self._reclaim = make, grants, reclaim
        self._accounts: dict[str, Account] = {}
        self._lock = threading.RLock()
        self._trying: tuple[int, str] | None = None

    def of(self, tenant: str) -> Account:
        """The tenant's; one that may draw nothing where it has no replica here."""
        with self._lock:
            found = self._accounts.get(tenant)
            if found is None:
                found = self._accounts[tenant] = Account(self._make)
            return found

    @property
    def used_bytes(self) -> Bytes:
        """What all tenants have drawn."""
        with self._lock:
            return sum(account.budget.used_bytes for account in self._accounts.values())

    def try_out(self, replica: int, tenant: str, trial_bytes: Bytes) -> None:
        """The replica is tried, with so much reserved for it."""
        with self._lock:
            self.grants.try_out(replica, tenant, trial_bytes)
            self._trying = (replica, tenant)
            self._limit(tenant)
            self.of(tenant).try_out(replica, trial_bytes)

    def tried(self, replica: int) -> Bytes:
        """The trial is over: the most that it drew. All of that has been given back, but what a model of Python code keeps."""
        with self._lock:
            self._trying = None
            account = self.of(self.grants.tenant_of(replica))
            part = account.part_of(replica)
            return max(account.tried(replica), 0 if part is None else part.peak_bytes)

    def settle(self, replica: int, grant: Grant) -> None:
        """The replica serves with this."""
        with self._lock:
            self.grants.settle(replica, grant)
            tenant = self.grants.tenant_of(replica)
            part = self.of(tenant).part_of(replica)
            if part is not None:
                part.limit_bytes = grant.total
            self._limit(tenant)

    def part(self, limit_bytes: Bytes) -> Budget:
        """For a model of Python code that is being loaded: within its tenant's, limited like its replica from then on."""
        with self._lock:
            if self._trying is None:
                return self._make(limit_bytes, None)
            replica, tenant = self._trying
            return self.of(tenant).part(replica, min(limit_bytes, self.grants.trial_of(replica)))

    def drop(self, replica: int) -> None:
        """The replica's model has been closed. With the last of a tenant's go its pools."""
        with self._lock:
            tenant = self.grants.drop(replica)
            if tenant is None:
                return
            account = self.of(tenant)
            if self._trying is not None and self._trying[0] == replica:
                self._trying = None
            account.tried(replica)
            account.forget_part(replica)
            self._limit(tenant)
            if self.grants.has(tenant):
                return
            del self._accounts[tenant]
            account.close()
        if account.budget.used_bytes:
            self._reclaim()

    def _limit(self, tenant: str) -> None:
        self.of(tenant).limit(self.grants.limit(tenant), self.grants.graph_limit(tenant))
