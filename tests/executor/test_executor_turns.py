"""Credits and turns: who may send how much, and whose chunk goes next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.worker.messages import Statistics, Used
from services.executor.core.credits import Credits
from services.executor.core.load import expected_wait_ns, smoothed
from services.executor.core.turns import Transfer, Turns
from services.executor.core.usage import UsageLedger


def test_a_tenant_draws_up_to_its_credit_and_what_is_granted_again() -> None:
    budget = Credits(100)
    budget.draw("a", 60)
    assert not budget.can_draw("a", 41)
    with pytest.raises(ValueError, match=r"41 bytes drawn for 'a', who has drawn 60 of 100"):
        budget.draw("a", 41)
    budget.draw("b", 100)
    budget.grant("a", 60)
    assert budget.can_draw("a", 100)


def test_a_payload_above_the_whole_credit_goes_alone() -> None:
    budget = Credits(100)
    budget.draw("a", 500)
    assert not budget.can_draw("a", 1)
    budget.grant("a", 500)
    assert budget.can_draw("a", 1)


def test_nobody_grants_what_was_never_drawn() -> None:
    with pytest.raises(ValueError, match="granted"):
        Credits(100).grant("a", 1)


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(1, 30))
def test_a_transfer_cut_into_chunks_is_what_it_was(parts: list[bytes], most: int) -> None:
    transfer = Transfer(1, "a", parts)
    cuts = []
    while transfer.left:
        cuts.append(transfer.cut(most))
    assert b"".join(cuts) == b"".join(parts)
    assert all(len(cut) == most for cut in cuts[:-1])


def test_transfers_take_turns_and_those_without_credit_wait_behind_their_own_tenant_only() -> None:
    turns = Turns(budget := Credits(10))
    assert [each.call for each in turns.add(Transfer(1, "a", [b"1" * 6]))] == [1]
    assert turns.add(Transfer(2, "a", [b"2" * 6])) == []
    assert [each.call for each in turns.add(Transfer(3, "b", [b"3" * 6]))] == [3]
    sent = []
    while (chunk := turns.next_chunk(2)) is not None:
        sent.append((chunk[0].call, chunk[1]))
    assert sent == [(1, 0), (3, 0), (1, 2), (3, 2), (1, 4), (3, 4)]
    budget.grant("a", 6)
    assert [each.call for each in turns.start("a")] == [2]


def test_only_what_has_not_started_can_be_withdrawn() -> None:
    turns = Turns(Credits(10))
    turns.add(Transfer(1, "a", [b"1" * 6]))
    turns.add(Transfer(2, "a", [b"2" * 6]))
    assert not turns.withdraw(1, "a")
    assert turns.withdraw(2, "a")
    assert not turns.withdraw(2, "a")
    assert len(turns) == 1


def test_the_expected_wait_is_bounded_by_the_replica_s_own_bandwidth() -> None:
    assert expected_wait_ns(10, 100, 500) == 20
    assert expected_wait_ns(10, 15, 500) == 15
    assert expected_wait_ns(10, 100, 0) == 100
    assert smoothed(0, 80) == 80
    assert smoothed(80, 160) == 90


def test_usage_goes_on_counting_when_a_worker_is_replaced() -> None:
    ledger = UsageLedger({0: 2}, models={1: ("a", "m")})
    ledger.take(0, Statistics(50, 0, (Used(1, 40, 4, 2, 0),), 7), 50)
    ledger.take(0, Statistics(60, 0, (Used(1, 45, 5, 3, 0),), 7), 60)
    ledger.ended(0, None, 60)
    ledger.started(0, 60)
    ledger.take(0, Statistics(10, 0, (Used(1, 10, 1, 1, 0),), 7), 70)
    total = ledger.totals["a", "m"]
    assert (total.device_ns, total.compute_unit_ns, total.requests, total.batches) == (55, 110, 6, 4)
    assert ledger.lanes[0].busy_ns == 70
