"""JSON Web Tokens: every way in which one can be wrong is refused, and keys of issuers come and go."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import issuer
import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from services.common.access import tokens as module
from services.common.access.callers import Caller, Role
from services.common.access.keys import Held, Keys
from services.common.access.token_rules import TokenRules
from services.common.access.tokens import Tokens
from services.common.errors import Reason, Refusal

RULES = TokenRules("unused", issuer.ISSUER, issuer.AUDIENCE, "ES256", leeway_s=5)


def looker(*issuers: issuer.Issuer, tenants: tuple[str, ...] = ("alice",)) -> Tokens:
    keys = Keys()
    keys.replace({tenant: [Held(b"")] for tenant in tenants})
    made = Tokens(RULES, keys)
    made.load(json.dumps({"keys": [each.jwk() for each in issuers]}).encode())
    return made


def refused(tokens: Tokens, token: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        tokens.caller(token)
    return caught.value


def test_a_token_is_its_subjects_in_the_role_and_of_the_tenant_that_it_claims() -> None:
    signs = issuer.Issuer()
    tokens = looker(signs)
    found = tokens.caller(signs.token(tenant="alice", role="tenant-admin", sub="ann"))
    assert (found.role, found.tenant, found.name) == (Role.TENANT_ADMIN, "alice", "ann")
    assert tokens.caller(signs.token(tenant="alice")).role is Role.TENANT
    assert tokens.caller(signs.token(role="operator")).everybodys


def unsigned(claims: dict[str, Any], header: dict[str, Any]) -> str:
    part = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
    return f"{part(header)}.{part(claims)}."


def shared_secret(signs: issuer.Issuer) -> str:
    """The old trick: the public key, which everybody knows, as the secret of a symmetric algorithm."""
    public = signs.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = {"iss": issuer.ISSUER, "aud": issuer.AUDIENCE, "sub": "x", "exp": time.time() + 3600, "role": "operator"}
    head = unsigned(claims, {"alg": "HS256", "kid": signs.kid}).rstrip(".")
    mac = base64.urlsafe_b64encode(hmac.digest(public, head.encode(), hashlib.sha256)).rstrip(b"=").decode()
    return f"{head}.{mac}"


SIGNS = issuer.Issuer()
GOOD = {"iss": issuer.ISSUER, "aud": issuer.AUDIENCE, "sub": "x", "exp": int(time.time()) + 3600, "role": "operator"}
BAD = {
    "of another issuer": SIGNS.token(role="operator", iss="https://else.test"),
    "without an issuer": SIGNS.token(role="operator", iss=None),
    "for another audience": SIGNS.token(role="operator", aud="else"),
    "without an audience": SIGNS.token(role="operator", aud=None),
    "that is over": SIGNS.token(role="operator", exp=int(time.time()) - 6),
    "without an end": SIGNS.token(role="operator", exp=None),
    "without a subject": SIGNS.token(role="operator", sub=None),
    "that is not good yet": SIGNS.token(role="operator", nbf=int(time.time()) + 1800),
    "of a role that there is not": SIGNS.token(role="mesh"),
    "of a service's role": SIGNS.token(role="service"),
    "of a tenant's role without a tenant": SIGNS.token(role="tenant"),
    "of an operator with a tenant": SIGNS.token(role="operator", tenant="alice"),
    "of a tenant that is no text": SIGNS.token(tenant=["alice"]),
    "of a role that is no text": SIGNS.token(tenant="alice", role={"a": 1}),
    "of a tenant that there is not": SIGNS.token(tenant="nobody"),
    "of an empty tenant": SIGNS.token(tenant=""),
    "signed by somebody else under the same name": issuer.Issuer(SIGNS.kid).token(role="operator"),
    "signed by a key that nobody has told of": issuer.Issuer("other").token(role="operator"),
    "without a signature": unsigned(GOOD, {"alg": "none", "kid": SIGNS.kid}),
    "that says none and bears its signature": unsigned(GOOD, {"alg": "none"}) + SIGNS.token().rpartition(".")[2],
    "signed with the public key as a secret": shared_secret(SIGNS),
    "with its claims changed": ".".join(
        [SIGNS.token().split(".")[0], unsigned(GOOD, {}).split(".")[1], SIGNS.token().split(".")[2]]
    ),
    "that is no token": "a.b.c",
    "of empty parts": "..",
    "with a key's name that is a number": unsigned(GOOD, {"alg": "ES256", "kid": 7}),
    "that brings its own key": jwt.encode(
        GOOD, issuer.Issuer().key, "ES256", headers={"jwk": issuer.Issuer().jwk(), "kid": "own"}
    ),
    "that is far too long": SIGNS.token(role="operator", more="x" * 10_000),
}


@pytest.mark.parametrize("what", BAD)
def test_no_token_is_taken(what: str) -> None:
    refusal = refused(looker(SIGNS), BAD[what])
    assert refusal.reason is Reason.KEY_UNKNOWN
    assert "Traceback" not in refusal.message


def test_a_token_is_checked_once_and_ends_on_time_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    signs = issuer.Issuer()
    tokens, token = looker(signs), signs.token(tenant="alice", exp=int(time.time()) + 10)
    found = tokens.caller(token)
    monkeypatch.setattr(jwt, "decode", lambda *_, **__: pytest.fail("its signature was checked again"))
    assert tokens.caller(token) is found
    monkeypatch.undo()
    assert isinstance(tokens.caller(token, time.time() + 14), Caller)
    # Past its end and the clocks' leeway, by the clock that the check itself asks.
    monkeypatch.setattr(module.jwt, "decode", _expired)
    with pytest.raises(Refusal):
        tokens.caller(token, time.time() + 16)


def _expired(*_: Any, **__: Any) -> Any:
    raise jwt.ExpiredSignatureError("Signature has expired")


def test_a_tokens_tenant_that_is_removed_takes_the_token_with_it() -> None:
    signs, keys = issuer.Issuer(), Keys()
    keys.replace({"alice": []})
    tokens = Tokens(RULES, keys)
    tokens.load(json.dumps({"keys": [signs.jwk()]}).encode())
    token = signs.token(tenant="alice")
    assert tokens.caller(token).tenant == "alice"
    keys.change({}, ["alice"])
    assert refused(tokens, token).reason is Reason.KEY_UNKNOWN


async def test_a_key_that_is_withdrawn_signs_no_more_and_a_new_one_is_found_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SOON_S", 0.02)
    monkeypatch.setattr(module, "REFRESH_S", 0.06)
    first, second = issuer.Issuer("first"), issuer.Issuer("second")
    path = issuer.written(tmp_path / "jwks", first)
    keys = Keys()
    keys.replace({"alice": []})
    tokens = Tokens(TokenRules(str(path), issuer.ISSUER, issuer.AUDIENCE, "ES256"), keys)
    running = asyncio.create_task(tokens.run())

    async def until(token: str, good: bool) -> None:
        async with asyncio.timeout(5):
            while True:
                try:
                    tokens.caller(token)
                    if good:
                        return
                except Refusal:
                    if not good:
                        return
                await asyncio.sleep(0.01)

    old, new = first.token(tenant="alice"), second.token(tenant="alice")
    await until(old, good=True)
    issuer.written(path, second)
    await until(new, good=True)
    await until(old, good=False)
    path.write_text("no JSON")
    await asyncio.sleep(0.1)
    await until(new, good=True)
    running.cancel()


def test_rules_that_would_let_anybody_in_are_no_rules() -> None:
    for bad in (
        {"algorithm": "HS256"},
        {"algorithm": "none"},
        {"issuer": ""},
        {"audience": ""},
        {"jwks": "http://issuer.test/jwks"},
    ):
        with pytest.raises(ValueError, match="jwt_"):
            TokenRules(**{"jwks": "x", "issuer": "i", "audience": "a", **bad})
