"""The tests of the arbiter can fail: each of these wrong arbiters is caught by one of them, at least."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import test_arbiter_admission as admission
import test_arbiter_batching as batching
import test_arbiter_promise as promise
import test_arbiter_scenarios as scenarios
import test_arbiter_sharing as sharing
import test_arbiter_stories as stories
from arbiter_mutants import MUTANTS
from arbiter_world import World

from gpu_sharing.arbiter import Arbiter

Story = Callable[[], object]


def checks() -> dict[str, Story]:
    """Small tests, by name, that can be run from here, and all stories."""
    found: dict[str, Story] = {}
    for module in (admission, batching, sharing):
        for name, test in inspect.getmembers(module, inspect.isfunction):
            wants = list(inspect.signature(test).parameters)
            if name.startswith("test_") and wants in ([], ["world"]):
                found[name] = (lambda test=test: test(World(Arbiter(), audit_every=10**9))) if wants else test
    for path in stories.STORIES:
        found[path.stem] = lambda path=path: stories.test_the_arbiter_still_decides_as_written_down(path)
    found["the promise"] = promise.test_the_promise_holds_in_workloads_drawn_by_chance
    found["a full queue"] = lambda: scenarios.test_what_is_past_its_deadline_is_dropped_and_never_started(
        scenarios.made()
    )
    found["a broken batch"] = lambda: (
        scenarios.test_the_requests_of_a_broken_batch_run_again_alone_and_only_what_breaks_again_fails(scenarios.made())
    )
    return found


CAUGHT_BY = {
    "deadline_not_postponed_on_overrun": "test_an_overrun_is_paid_by_its_own_tenant",
    "surplus_counted_as_guaranteed": "test_what_the_reservation_pays_for_in_time_is_guaranteed_and_the_rest_is_surplus",
    "earliest_deadline_replaced_by_order_of_arrival": "test_the_earliest_deadline_of_a_reservation_goes_first_at_the_next_boundary",
    "no_preemption_at_boundaries": "within_its_reservation_beside_a_flood",
    "budget_never_replenished": "test_a_reservation_is_renewed_as_time_passes",
    "unused_time_is_saved_up": "the promise",
    "bandwidth_per_replica_rather_than_tenant": "test_all_replicas_of_a_tenant_share_its_reservation",
    "revocation_missing": "guaranteed_revokes_surplus",
    "late_work_is_started": "deadlines_and_objectives",
    "batches_whatever_is_due": "test_no_more_than_leave_the_earliest_in_time",
    "weights_ignored": "surplus_by_weight",
    "more_is_granted_than_there_is": "test_more_bandwidth_than_the_lane_has_is_refused_with_the_numbers",
    "idle_tenants_collect_a_claim_on_the_surplus": "test_who_was_idle_has_no_claim_on_the_surplus_of_the_past",
    "a_cancelled_request_keeps_its_budget": "what_is_not_needed_is_given_back",
    "a_broken_batch_takes_all_its_requests_along": "a broken batch",
    "a_broken_batch_runs_again_together": "a broken batch",
    "what_runs_again_is_paid_by_nobody": "test_what_runs_again_is_guaranteed_only_where_its_reservation_pays_for_it",
    "nothing_is_learnt_from_surplus_that_was_late": "test_after_surplus_was_late_less_of_it_is_admitted_and_none_is_kept_from_an_empty_lane",
    "riders_are_paid_by_the_reservation": "test_surplus_does_not_ride_at_the_expense_of_the_reservation",
}
"""Of each mutant, one check that must catch it."""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_an_arbiter_that_is_wrong_in_one_way_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = checks()[CAUGHT_BY[mutant]]
    check()
    MUTANTS[mutant](monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)):
        check()
