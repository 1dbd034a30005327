"""JSON Web Tokens: issuer, audience, expiry and algorithm are pinned; the keys come from a JWKS file or URL.

A token that was found good is remembered until it expires, so that its signature is checked once. Algorithms are
asymmetric ones only: a public key must never do as a shared secret.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import structlog

from services.common.access.callers import Caller, Role, caller_of
from services.common.access.keys import Keys
from services.common.access.token_rules import TokenRules
from services.common.errors import Reason, Refusal

log = structlog.get_logger()

CACHED = 16_384
MOST_TOKEN_CHARACTERS = 8_192
MOST_JWKS_BYTES = 1 << 20
FETCH_S = 5.0
REFRESH_S = 60.0
"""How often keys are read again; a token whose key id is not known has them read sooner, at most every SOON_S."""
SOON_S = 2.0
ROLES = {role.value: role for role in (Role.TENANT, Role.TENANT_ADMIN, Role.OPERATOR)}


class Tokens:
    """Who bears a token. `keys` says which tenants there are: a token of one that is gone is refused."""

    def __init__(self, rules: TokenRules, keys: Keys) -> None:
        self._rules, self._keys = rules, keys
        self._read = b""
        self._found: dict[str, Any] = {}
        self._good: dict[str, tuple[Caller, float]] = {}
        self._wanted = asyncio.Event()

    async def run(self) -> None:
        """Reads the signers' keys, now and every so often, until cancelled."""
        while True:
            self._wanted.clear()
            try:
                self.load(await asyncio.to_thread(fetched, self._rules.jwks))
            except (OSError, ValueError, jwt.PyJWTError) as error:
                # What was read before goes on being good.
                log.warning("the keys of token issuers cannot be read", jwks=self._rules.jwks, error=str(error))
            await asyncio.sleep(SOON_S)
            try:
                async with asyncio.timeout(REFRESH_S - SOON_S):
                    await self._wanted.wait()
            except TimeoutError:
                pass

    def load(self, jwks: bytes) -> None:
        """Takes a JWKS. Keys that are gone from it sign no more. Raises jwt.PyJWTError, ValueError."""
        if jwks == self._read:
            return
        document = jwt.PyJWKSet.from_json(jwks.decode())
        self._found = {key.key_id or "": key for key in document.keys if key.key_type in ("RSA", "EC", "OKP")}
        self._read = jwks
        self._good.clear()

    def caller(self, token: str, now_s: float | None = None) -> Caller:
        """Whose token it is. Raises Refusal: KEY_UNKNOWN, NOT_SERVING while tenants are not known."""
        now_s = time.time() if now_s is None else now_s
        good = self._good.get(token)
        if good is not None and good[1] > now_s and (not good[0].tenant or self._keys.has(good[0].tenant)):
            return good[0]
        self._good.pop(token, None)
        claims = self._claims(token)
        caller = self._caller(claims)
        if caller.tenant and not self._keys.has(caller.tenant):
            raise self._keys.unknown()
        if len(self._good) >= CACHED:
            self._good.clear()
        self._good[token] = (caller, float(claims["exp"]) + self._rules.leeway_s)
        return caller

    def _claims(self, token: str) -> Mapping[str, Any]:
        rules = self._rules
        if len(token) > MOST_TOKEN_CHARACTERS:
            raise _bad("it is too long")
        try:
            key = self._signer(jwt.get_unverified_header(token))
            return jwt.decode(
                token,
                key,
                algorithms=[rules.algorithm],
                audience=rules.audience,
                issuer=rules.issuer,
                leeway=rules.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise _bad(str(error)) from None

    def _signer(self, header: Mapping[str, Any]) -> Any:
        name = header.get("kid")
        if name is None and len(self._found) == 1:
            return next(iter(self._found.values()))
        key = self._found.get(name or "") if isinstance(name, str | None) else None
        if key is None:
            self._wanted.set()
            raise _bad("its key id is not known")
        return key

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        rules = self._rules
        tenant, named = claims.get(rules.tenant_claim, ""), claims.get(rules.role_claim, Role.TENANT.value)
        if not isinstance(tenant, str) or not isinstance(named, str) or named not in ROLES:
            raise _bad(f"its claims {rules.tenant_claim!r} and {rules.role_claim!r} make no role")
        subject = claims["sub"] if isinstance(claims["sub"], str) else ""
        try:
            return caller_of(ROLES[named], tenant, subject[:120])
        except ValueError:
            raise _bad(f"its role {named!r} and its tenant do not go together") from None


def fetched(jwks: str) -> bytes:
    """The bytes of a JWKS. Blocks. Raises OSError, ValueError."""
    if jwks.startswith("https://"):
        with urllib.request.urlopen(jwks, timeout=FETCH_S) as answer:
            content: bytes = answer.read(MOST_JWKS_BYTES + 1)
    else:
        with Path(jwks).expanduser().open("rb") as file:
            content = file.read(MOST_JWKS_BYTES + 1)
    if len(content) > MOST_JWKS_BYTES:
        raise ValueError(f"it has more than {MOST_JWKS_BYTES} bytes")
    return content


def _bad(why: str) -> Refusal:
    return Refusal(Reason.KEY_UNKNOWN, f"authorization: the token is not accepted: {why}")
