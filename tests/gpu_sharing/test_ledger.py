from __future__ import annotations

import pytest

from gpu_sharing.memory.ledger import Ledger, LedgerFull


def test_a_reservation_that_does_not_fit_says_its_numbers_and_changes_nothing() -> None:
    ledger = Ledger(100)
    ledger.reserve(1, 70)
    with pytest.raises(LedgerFull, match="needs 40 bytes; 30 of 100 are free") as caught:
        ledger.reserve(2, 40)
    assert (caught.value.asked_bytes, caught.value.free_bytes, caught.value.capacity_bytes) == (40, 30, 100)
    assert ledger.used_bytes == 70
    ledger.check_invariants()


def test_a_second_reservation_of_a_replica_replaces_the_first() -> None:
    ledger = Ledger(100)
    ledger.reserve(1, 70)
    ledger.reserve(1, 100)
    assert ledger.free_bytes == 0
    assert ledger.release(1) == 100
    assert ledger.release(1) == 0
    assert ledger.free_bytes == 100


def test_a_negative_reservation_is_an_error() -> None:
    with pytest.raises(ValueError, match="asked_bytes"):
        Ledger(100).reserve(1, -1)
