"""The budget of further attempts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.frontend.core.retries import Retries


def test_as_many_requests_as_an_executor_may_hold_are_tried_again_at_once():
    retries = Retries(ratio=0.1, burst=50)
    for _ in range(50):
        retries.requested("t")
    assert [retries.take("t") for _ in range(51)] == [True] * 50 + [False]


def test_in_the_long_run_a_tenth_of_the_requests_may_be_tried_again():
    retries = Retries(ratio=0.1, burst=10)
    tried = 0
    for _ in range(10_000):
        retries.requested("t")
        tried += retries.take("t")
    assert 1_000 <= tried <= 1_010


def test_a_tenant_that_fails_uses_up_nobody_elses_budget():
    retries = Retries(burst=3)
    for tenant in ("one", "other"):
        retries.requested(tenant)
    while retries.take("one"):
        pass
    assert retries.take("other")


def test_a_tenant_that_never_asked_has_nothing_to_try_again():
    assert not Retries().take("nobody")


def test_a_ratio_of_nothing_and_no_burst_forbid_every_further_attempt():
    retries = Retries(ratio=0, burst=0)
    retries.requested("t")
    assert not retries.take("t")


@pytest.mark.parametrize(("ratio", "burst"), [(-0.1, 1), (1.1, 1), (0.1, -1)])
def test_a_budget_that_makes_no_sense_is_refused(ratio, burst):
    with pytest.raises(ValueError, match=r"ratio|burst"):
        Retries(ratio, burst)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=300), st.floats(0, 1), st.integers(0, 20))
def test_never_more_is_tried_again_than_burst_and_ratio_allow(events, ratio, burst):
    retries, requests, taken = Retries(ratio, burst), dict.fromkeys("ab", 0), dict.fromkeys("ab", 0)
    for tenant, again in events:
        if again:
            taken[tenant] += retries.take(tenant)
        else:
            retries.requested(tenant)
            requests[tenant] += 1
        assert 0 <= retries.left(tenant) <= burst
        assert taken[tenant] <= burst + ratio * requests[tenant] + 1e-6
