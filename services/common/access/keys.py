"""API keys by hash: whose call it is. The tenant comes from the credential alone.

Looking a key up costs a hash and a look into a dict, the next time only the latter. What is not known is not remembered, so
that bad keys never push good ones out; and what cannot be one of our keys is not even hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from services.common.access.callers import ANONYMOUS, Caller, Role, caller_of
from services.common.errors import Reason, Refusal

CACHED = 16_384
"""Credentials remembered, so that a caller's key is hashed once."""
MOST_KEY_CHARACTERS = 128
"""Longer ones are none of ours."""
UNKNOWN = "authorization: no tenant has this API key; it may have been revoked"


class Held(NamedTuple):
    """A key as the registry has it. expires_s: in Unix time; None: never."""

    sha256: bytes
    id: str = ""
    role: Role = Role.TENANT_ADMIN
    expires_s: float | None = None


class Keys:
    """The keys of every tenant, as far as they have been told, and others that this process was given.

    most_age_s: how long what was told is good while nothing more is heard from the registry.
    """

    def __init__(self, *, most_age_s: float = float("inf")) -> None:
        self._most_age_s = most_age_s
        self._held: dict[str, tuple[Held, ...]] = {}
        self._fixed: dict[bytes, Caller] = {}
        self._owners: dict[bytes, Caller] = {}
        self._cache: dict[str, Caller] = {}
        self._heard_s: float | None = None
        self._now_s = 0.0
        self._expires_s = float("inf")
        self.known = False
        """Whether a whole snapshot has ever been seen."""
        self.stale = False
        """Whether the registry has not been heard of for so long that nobody's key counts any more."""

    @property
    def tenants(self) -> set[str]:
        """Every tenant that there is, callers without a credential among them."""
        return {ANONYMOUS, *self._held}

    def has(self, tenant: str) -> bool:
        """Whether there is such a tenant, and what is known of it counts."""
        return not self.stale and (tenant in self._held or tenant == ANONYMOUS)

    def add(self, text: str, caller: Caller) -> None:
        """Takes a key that this process was given, which is good as long as it runs: the mesh token."""
        self._fixed[hashlib.sha256(text.encode()).digest()] = caller
        self._index()

    def replace(self, held: Mapping[str, Iterable[Held]]) -> None:
        """Takes a whole snapshot: keys by tenant."""
        self._held, self.known = {tenant: tuple(keys) for tenant, keys in held.items()}, True
        self._index()

    def change(self, held: Mapping[str, Iterable[Held]], removed: Iterable[str]) -> None:
        """Takes one commit's changes: what the named tenants have now, and tenants that are gone."""
        for tenant in removed:
            self._held.pop(tenant, None)
        self._held.update({tenant: tuple(keys) for tenant, keys in held.items()})
        self._index()

    def heard(self, monotonic_s: float) -> None:
        """The registry has said something, if only that nothing has changed."""
        self._heard_s = monotonic_s
        if self.stale:
            self.stale = False
            self._index()

    def tick(self, monotonic_s: float, now_s: float) -> None:
        """Told every so often: lets go of keys that have expired (now_s: Unix time), of all where the registry is silent."""
        self._now_s = now_s
        stale = self._heard_s is not None and monotonic_s - self._heard_s > self._most_age_s
        if stale != self.stale or now_s >= self._expires_s:
            self.stale = stale
            self._index()

    def cached(self, given: str) -> Caller | None:
        """Whose credential this was found to be; None: not looked up yet."""
        return self._cache.get(given)

    def look_up(self, given: str, key: str) -> Caller:
        """Whose key it is; remembered under `given`, as it came.

        Raises Refusal: KEY_UNKNOWN; NOT_SERVING while it cannot be told.
        """
        owner = None
        if len(key) <= MOST_KEY_CHARACTERS:
            owner = self._owners.get(hashlib.sha256(key.encode(errors="surrogateescape")).digest())
        if owner is None:
            raise self.unknown()
        if len(self._cache) >= CACHED:
            self._cache.clear()
        self._cache[given] = owner
        return owner

    def unknown(self) -> Refusal:
        """Why a key is not known."""
        if not self.known:
            return Refusal(
                Reason.NOT_SERVING, "API keys are not known yet: the registry has not answered", retry_after_s=1
            )
        if self.stale:
            return Refusal(
                Reason.NOT_SERVING,
                f"the registry has not been heard of for {self._most_age_s:g} s (keys_max_age_s): keys may have been revoked",
                retry_after_s=5,
            )
        return Refusal(Reason.KEY_UNKNOWN, UNKNOWN)

    def _index(self) -> None:
        owners = dict(self._fixed)
        self._expires_s = float("inf")
        for tenant, keys in self._held.items() if not self.stale else ():
            for key in keys:
                if key.expires_s is not None:
                    if key.expires_s <= self._now_s:
                        continue
                    self._expires_s = min(self._expires_s, key.expires_s)
                owners[key.sha256] = caller_of(key.role, tenant, key.id)
        self._owners = owners
        self._cache.clear()


def bearer(authorization: str) -> str:
    """The credential in `Bearer …`. Raises Refusal (KEY_UNKNOWN)."""
    # Some clients hand on the space behind the colon of a header.
    scheme, _, key = authorization.strip().partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Refusal(Reason.KEY_UNKNOWN, "authorization: must read `Bearer KEY`")
    return key.strip()
