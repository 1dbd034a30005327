"""API keys by hash: whose they are, when they end, and what a flood of bad ones does to good ones."""

from __future__ import annotations

import hashlib

import pytest

from services.common.access import keys as module
from services.common.access.callers import Caller, Role
from services.common.access.guard import Guard
from services.common.access.keys import Held, Keys
from services.common.errors import Reason, Refusal


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def held(*texts: str, **more: object) -> list[Held]:
    return [Held(digest(text), f"k_{text}", **more) for text in texts]  # type: ignore[arg-type]


def asked(keys: Keys, *metadata: tuple[str, str]) -> Caller:
    """Whose call with this metadata is. Raises Refusal."""
    found = Guard(keys, without=None, public=True).identify(metadata)
    if isinstance(found, Refusal):
        raise found
    assert found is not None
    return found


def test_keys_tell_tenants_apart_and_a_revoked_one_is_unknown_at_once() -> None:
    keys = Keys()
    with pytest.raises(Refusal) as early:
        asked(keys, ("authorization", "Bearer a"))
    assert early.value.reason is Reason.NOT_SERVING
    keys.replace({"one": held("a", "b"), "two": held("c", role=Role.TENANT)})
    shown = (("authorization", "Bearer a"),), (("authorization", " bearer b"),), (("apportion-key", "c"),)
    assert [asked(keys, *each).tenant for each in shown] == ["one", "one", "two"]
    assert asked(keys, ("apportion-key", "c")).role is Role.TENANT
    keys.change({"one": held("b")}, ["two"])
    for bad in (
        ("authorization", "Bearer a"),
        ("apportion-key", "c"),
        ("authorization", "Basic b"),
        ("authorization", "Bearer "),
        ("authorization", "Bearer " + "b" * 10_000),
        ("authorization", "Bearer \udc80"),
    ):
        with pytest.raises(Refusal) as caught:
            asked(keys, bad)
        assert caught.value.reason is Reason.KEY_UNKNOWN
    with pytest.raises(Refusal) as caught:
        asked(keys)
    assert caught.value.reason is Reason.KEY_MISSING


def test_a_key_ends_when_its_time_is_over_though_nobody_says_a_word() -> None:
    keys = Keys()
    keys.tick(0, 100)
    keys.replace({"one": held("a", expires_s=110.0)})
    assert asked(keys, ("apportion-key", "a")).tenant == "one"
    keys.tick(9, 109.9)
    assert asked(keys, ("apportion-key", "a")).tenant == "one"
    keys.tick(10, 110)
    with pytest.raises(Refusal) as caught:
        asked(keys, ("apportion-key", "a"))
    assert caught.value.reason is Reason.KEY_UNKNOWN


def test_keys_of_a_registry_that_is_silent_for_too_long_are_good_no_more_until_it_speaks() -> None:
    keys = Keys(most_age_s=60)
    keys.add("mesh", Caller(Role.MESH))
    keys.heard(0)
    keys.replace({"one": held("a")})
    keys.tick(60, 1000)
    assert asked(keys, ("apportion-key", "a")).tenant == "one"
    keys.tick(60.1, 1000)
    assert not keys.has("one")
    with pytest.raises(Refusal, match="keys_max_age_s") as caught:
        asked(keys, ("apportion-key", "a"))
    assert caught.value.reason is Reason.NOT_SERVING
    assert asked(keys, ("apportion-key", "mesh")).role is Role.MESH, (
        "what was given here is not the registry's to revoke"
    )
    keys.heard(70)
    assert asked(keys, ("apportion-key", "a")).tenant == "one"


def test_bad_keys_are_not_remembered_and_push_no_good_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED", 8)
    keys = Keys()
    keys.replace({"one": held("good")})
    assert asked(keys, ("apportion-key", "good")).tenant == "one"
    for number in range(100):
        with pytest.raises(Refusal):
            asked(keys, ("apportion-key", f"bad{number}"))
    assert keys.cached("good") is not None
    assert keys.cached("bad99") is None


def test_what_is_remembered_is_bounded_however_a_good_key_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED", 8)
    keys = Keys()
    keys.replace({"one": held("good")})
    for spaces in range(1, 50):
        asked(keys, ("authorization", "Bearer" + " " * spaces + "good"))
    assert sum(keys.cached("Bearer" + " " * spaces + "good") is not None for spaces in range(1, 50)) <= 8
