"""Whose request it is: API keys by hash. The tenant comes from the credential alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from services.common.errors import Reason, Refusal

ANONYMOUS = "default"
"""The tenant of callers without a credential, where these are let in."""
CACHED = 16_384
"""Credentials remembered, so that a caller's key is hashed once."""


class Keys:
    """The key hashes of every tenant.

    anonymous: whether callers without a credential are the tenant `default`.
    """

    def __init__(self, *, anonymous: bool) -> None:
        self._anonymous = anonymous
        self._hashes: dict[str, frozenset[bytes]] = {}
        self._owners: dict[bytes, str] = {}
        self._cache: dict[str, str] = {}
        self.known = False
        """Whether a whole snapshot has ever been seen."""

    @property
    def tenants(self) -> set[str]:
        """Every tenant that there is, callers without a credential among them."""
        return {ANONYMOUS, *self._hashes}

    def replace(self, hashes: Mapping[str, Iterable[bytes]]) -> None:
        """Takes a whole snapshot: sha256 digests of keys by tenant."""
        self._hashes, self.known = {tenant: frozenset(keys) for tenant, keys in hashes.items()}, True
        self._index()

    def change(self, hashes: Mapping[str, Iterable[bytes]], removed: Iterable[str]) -> None:
        """Takes one commit's changes: what the named tenants have now, and tenants that are gone."""
        for tenant in removed:
            self._hashes.pop(tenant, None)
        self._hashes.update({tenant: frozenset(keys) for tenant, keys in hashes.items()})
        self._index()

    def tenant(self, authorization: str | None, key: str | None) -> str:
        """The tenant of a call with these metadata: `authorization: Bearer KEY`, else `apportion-key: KEY`.

        Raises Refusal: KEY_MISSING, KEY_UNKNOWN; NOT_SERVING for a key before the first snapshot.
        """
        given = authorization if authorization is not None else key
        if given is None:
            if self._anonymous:
                return ANONYMOUS
            raise Refusal(Reason.KEY_MISSING, "authorization: this frontend needs an API key, as `Bearer KEY`")
        tenant = self._cache.get(given)
        if tenant is None:
            tenant = self._looked_up(given, _bearer(given) if authorization is not None else given)
        return tenant

    def _looked_up(self, given: str, key: str) -> str:
        owner = self._owners.get(hashlib.sha256(key.encode()).digest())
        if owner is not None:
            if len(self._cache) >= CACHED:
                self._cache.clear()
            self._cache[given] = owner
            return owner
        if not self.known:
            raise Refusal(
                Reason.NOT_SERVING, "API keys are not known yet: the registry has not answered", retry_after_s=1
            )
        raise Refusal(Reason.KEY_UNKNOWN, "authorization: no tenant has this API key; it may have been revoked")

    def _index(self) -> None:
        self._owners = {key: tenant for tenant, keys in self._hashes.items() for key in keys}
        self._cache.clear()


def _bearer(authorization: str) -> str:
    # Some clients hand on the space behind the colon of a header.
    scheme, _, key = authorization.strip().partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Refusal(Reason.KEY_UNKNOWN, "authorization: must read `Bearer KEY`")
    return key.strip()
