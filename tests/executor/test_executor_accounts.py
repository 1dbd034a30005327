"""On whose account lanes worked, over the lives of their workers."""

from __future__ import annotations

from gpu_sharing.worker.messages import Account
from services.executor.core.accounts import Accounted, Accounts


def test_counts_go_on_where_a_worker_starts_from_nothing() -> None:
    accounts = Accounts()
    accounts.take(0, [Account("a", 5, 3, 1, 4)], {"a"})
    accounts.take(0, [Account("a", 7, 3, 2, 6, refused=1)], {"a"})
    accounts.ended(0)
    accounts.take(0, [Account("a", 2, 0, 0, 1)], {"a"})
    assert accounts.totals == {(0, "a"): Accounted(9, 3, 2, 7, refused=1)}


def test_lanes_and_tenants_are_kept_apart_and_the_end_of_one_worker_is_not_anothers() -> None:
    accounts = Accounts()
    accounts.take(0, [Account("a", 5), Account("b", 1)], {"a", "b"})
    accounts.take(1, [Account("a", 2)], {"a"})
    accounts.ended(0)
    accounts.take(1, [Account("a", 3)], {"a"})
    assert {key: total.guaranteed_ns for key, total in accounts.totals.items()} == {
        (0, "a"): 5,
        (0, "b"): 1,
        (1, "a"): 3,
    }


def test_a_worker_is_not_believed_of_tenants_that_are_not_there_nor_that_time_was_given_back() -> None:
    accounts = Accounts()
    accounts.take(0, [Account("a", 5), Account("nobody", 7)], {"a"})
    accounts.take(0, [Account("a", 1)], {"a"})
    assert accounts.totals == {(0, "a"): Accounted(5)}
