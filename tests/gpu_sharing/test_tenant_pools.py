"""Tenants' pools on a lane: what each may draw, by the ledger; who runs out, and who does not notice. On doubles of the driver."""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

pytest.importorskip("llvmlite", reason="llvmlite is not installed")

import torch
from pool_double import WIPER, Memory, PoolsOnDouble

from gpu_sharing.arbiter.switching import IN_FLIGHT_PER_REPLICA
from gpu_sharing.measurements import Profile, ProfilePoint
from gpu_sharing.memory import grants
from gpu_sharing.memory.accounts import RENEWED_AFTER, Accounts
from gpu_sharing.memory.gate import GATE, Gate
from gpu_sharing.memory.grants import LARGE_PIECE, LEAST_TRIAL, SMALL_PIECE, Grant, Grants
from gpu_sharing.memory.ledger import Ledger, LedgerFull
from gpu_sharing.units import GiB, MiB
from gpu_sharing.worker.charges import Charges
from gpu_sharing.worker.faults import OUT_OF_MEMORY, reason_of
from gpu_sharing.worker.messages import Load
from gpu_sharing.worker.shelf import Shelved

# What torch draws.


def test_tensors_are_reckoned_in_the_pieces_that_torch_draws() -> None:
    assert grants.pieces(0) == 0
    assert grants.pieces(1) == SMALL_PIECE
    assert grants.pieces(800 * 1024) == SMALL_PIECE
    assert grants.pieces(MiB) == SMALL_PIECE + LARGE_PIECE
    assert grants.pieces(16 * MiB) == SMALL_PIECE + LARGE_PIECE
    assert grants.pieces(17 * MiB) == SMALL_PIECE + 2 * LARGE_PIECE


@given(one=st.integers(0, GiB), more=st.integers(0, GiB), drawn=st.integers(0, GiB))
def test_a_grant_covers_what_was_seen_and_grows_with_it(one: int, more: int, drawn: int) -> None:
    small, large = grants.activations(one, 2, drawn), grants.activations(one + more, 2, drawn)
    assert drawn <= small <= large
    assert small >= 2 * one


def test_a_trial_takes_what_is_free_but_not_all_of_a_lane() -> None:
    assert grants.trial(3 * GiB, 80 * GiB) == 3 * GiB
    assert grants.trial(70 * GiB, 80 * GiB) == 20 * GiB
    assert grants.trial(0, 80 * GiB) == LEAST_TRIAL
    assert grants.trial(0, 80 * GiB, GiB) == GiB
    assert grants.trial(0, 400 * MiB) == 100 * MiB


def test_graphs_of_all_tenants_share_what_the_lane_has_for_them() -> None:
    found = Grants(100 * MiB)
    assert found.graphs_for(10) == 4 * SMALL_PIECE
    for replica, tenant in ((1, "a"), (2, "b")):
        found.try_out(replica, tenant, 0)
        found.settle(replica, Grant(0, found.graphs_for(MiB)))
    assert (found.graph_limit("a"), found.graph_limit("b")) == (4 * (SMALL_PIECE + LARGE_PIECE), 12 * MiB)
    found.try_out(3, "c", 0)
    assert found.graphs_for(MiB) == 0
    with pytest.raises(ValueError, match="of 104857600 for graphs"):
        found.settle(3, Grant(0, 1))
    with pytest.raises(ValueError, match="is here already"):
        found.try_out(3, "c", 0)


# The callbacks.


def pool_of(make: PoolsOnDouble, limit_bytes: int) -> tuple[Any, Any]:
    budget = make(limit_bytes)
    return budget, budget.pool()


def test_what_is_drawn_counts_in_the_larger_budget_too_and_either_may_be_full() -> None:
    make = PoolsOnDouble()
    whole = make(100)
    one, other = make(80, whole), make(80, whole)
    first, second = one.pool(), other.pool()
    first.draw(60)
    assert (one.used_bytes, other.used_bytes, whole.used_bytes) == (60, 0, 60)
    with pytest.raises(torch.OutOfMemoryError):
        second.draw(50)
    assert (other.used_bytes, whole.used_bytes) == (0, 60), "a refusal leaves nothing behind"
    assert (other.refusals, whole.refusals) == (0, 1)
    with pytest.raises(torch.OutOfMemoryError):
        first.draw(30)
    assert (one.refusals, whole.refusals) == (1, 1)
    second.draw(40)
    ending = [first]
    del first
    one.give_back(ending)
    assert (one.used_bytes, other.used_bytes, whole.used_bytes) == (0, 40, 40)
    assert (one.peak_bytes, whole.peak_bytes) == (60, 100)
    assert sum(make.memory.given.values()) == 40


def test_a_device_that_has_nothing_left_is_out_of_memory_and_every_count_is_taken_back() -> None:
    make = PoolsOnDouble(Memory(capacity_bytes=50))
    whole = make(1000)
    pool = make(1000, whole).pool()
    with pytest.raises(torch.OutOfMemoryError):
        pool.draw(60)
    assert (whole.used_bytes, whole.refusals, make.memory.given) == (0, 0, {})
    assert make.memory.modes == [2, 1], "the thread's mode of capture is as it was"


def test_every_block_is_wiped_before_anybody_sees_it_on_the_stream_that_asks() -> None:
    make = PoolsOnDouble()
    _, pool = pool_of(make, 1000)
    address, _ = pool.draw(300, stream=5)
    assert make.memory.wiped == [(address, 300, 5)]
    assert make.memory.waited == []


def test_what_a_capture_draws_is_wiped_beside_it_and_waited_for() -> None:
    make = PoolsOnDouble()
    _, pool = pool_of(make, 1000)
    make.memory.capturing.add(5)
    address, _ = pool.draw(300, stream=5)
    assert make.memory.wiped == [(address, 300, WIPER)]
    assert make.memory.waited == [WIPER]
    assert make.memory.modes == [2, 1]


def test_a_block_that_cannot_be_wiped_is_not_given() -> None:
    make = PoolsOnDouble()
    budget, pool = pool_of(make, 1000)
    make.memory.fails_to_wipe = True
    with pytest.raises(torch.OutOfMemoryError):
        pool.draw(300)
    assert (budget.used_bytes, make.memory.given) == (0, {})


def test_machine_code_is_used_again_once_nothing_is_drawn_on_it() -> None:
    make = PoolsOnDouble()
    first, pool = pool_of(make, 100)
    pool.draw(10)
    first.close()
    second = make(100)
    assert second._cells is not first._cells, "something is drawn on the first"
    del pool
    GATE.end([])
    third = make(70)
    assert third._cells is first._cells
    assert (third.used_bytes, third.peak_bytes, third.limit_bytes) == (0, 0, 70)
    first.limit_bytes = 5
    assert third.limit_bytes == 70, "who has closed it has no say"


# When pools end.


class Ending:
    """A pool that says when it ends, and whether somebody was inside."""

    def __init__(self, gate: Gate, seen: list[int]) -> None:
        weakref.finalize(self, lambda: seen.append(gate._inside))


def test_a_pool_ends_only_while_no_thread_allocates_from_any() -> None:
    gate, seen = Gate(), list[int]()
    inside, may_leave = threading.Event(), threading.Event()

    def allocates() -> None:
        with gate, gate:
            inside.set()
            may_leave.wait(5)

    other = threading.Thread(target=allocates)
    other.start()
    inside.wait(5)
    ends = threading.Thread(target=lambda: gate.end([Ending(gate, seen)]))
    ends.start()
    ends.join(0.05)
    assert (ends.is_alive(), seen) == (True, [])
    # Whoever comes now waits until it has ended.
    late = threading.Thread(target=lambda: seen.append(-1) if gate.__enter__() is None else None)
    late.start()
    late.join(0.05)
    assert late.is_alive()
    may_leave.set()
    for each in (other, ends, late):
        each.join(5)
    assert seen == [0, -1]


def test_a_pool_that_somebody_refers_to_or_that_ends_within_another_goes_with_the_next() -> None:
    gate, seen = Gate(), list[int]()
    held = Ending(gate, seen)
    gate.end([held])
    with gate:
        gate.end([Ending(gate, seen)])
    assert seen == []
    del held
    gate.end([])
    assert seen == [0, 0]


# Loads.


class Lane:
    """One lane's ledger, pools and charges."""

    def __init__(self, capacity_bytes: int = 4 * GiB, graph_bytes: int = GiB) -> None:
        self.ledger, self.grants = Ledger(capacity_bytes), Grants(graph_bytes)
        self.make = PoolsOnDouble(Memory(capacity_bytes))
        self.reclaims = 0
        self.accounts = Accounts(self.make, self.grants, reclaim=self._reclaim)
        self.charges = Charges(self.ledger, accounts=self.accounts)

    def _reclaim(self) -> None:
        self.reclaims += 1

    def load(
        self, replica: int, tenant: str, weights: int, batch: int, *, drawn: int = 0, kind: str = "torch_export"
    ) -> int:
        """Loads, tries with so much drawn, and settles; what it is charged."""
        told = load_of(replica, tenant, kind)
        self.charges.expect(told, weights)
        self.check()
        if drawn:
            self.accounts.of(tenant).trial_pool().draw(drawn)
        self.check()
        charged = self.charges.settle(told, Shelved(None, weights, 0), batch)  # type: ignore[arg-type]
        self.check()
        return charged

    def check(self) -> None:
        """More is never granted than is reserved, nor reserved than there is, nor drawn than is granted."""
        self.ledger.check_invariants()
        self.grants.check_invariants(self.ledger)
        limits = {tenant: account.budget.limit_bytes for tenant, account in self.accounts._accounts.items()}
        assert limits == {tenant: self.grants.limit(tenant) for tenant in limits}
        assert sum(limits.values()) <= self.ledger.used_bytes <= self.ledger.capacity_bytes
        for account in self.accounts._accounts.values():
            assert account.graphs.limit_bytes <= account.budget.limit_bytes
        assert sum(self.make.memory.given.values()) == self.accounts.used_bytes


def load_of(replica: int, tenant: str, kind: str = "torch_export", profile: Profile | None = None) -> Load:
    return Load(replica, tenant, "m", 1, f"sha256:{replica}", "/m", kind, 0, 1, profile=profile)


def test_a_replica_is_charged_for_its_weights_its_batches_and_its_graphs_and_its_pool_has_the_rest() -> None:
    lane = Lane()
    charged = lane.load(1, "a", 100 * MiB, 10 * MiB)
    needs, graphs = grants.pieces(2 * 10 * MiB), 4 * grants.pieces(10 * MiB)
    assert charged == lane.ledger.reserved(1) == 100 * MiB + needs + graphs
    account = lane.accounts.of("a")
    assert (account.budget.limit_bytes, account.graphs.limit_bytes) == (needs + graphs, graphs)
    lane.charges.release(1)
    assert (lane.ledger.used_bytes, lane.accounts._accounts) == (0, {})


def test_while_a_replica_is_tried_it_cannot_take_what_its_tenants_others_serve_with() -> None:
    lane = Lane()
    lane.load(1, "a", 100 * MiB, 10 * MiB)
    account = lane.accounts.of("a")
    serving = account.budget.limit_bytes
    lane.charges.expect(load_of(2, "a"), 50 * MiB)
    trial = lane.grants.trial_of(2)
    pool = account.trial_pool()
    assert pool is not account.pool()
    pool.draw(trial)
    with pytest.raises(torch.OutOfMemoryError):
        pool.draw(1)
    account.pool().draw(serving)
    lane.check()


def test_what_a_trial_drew_is_given_back_and_granted() -> None:
    lane = Lane()
    charged = lane.load(1, "a", 100 * MiB, MiB, drawn=300 * MiB)
    assert lane.make.memory.given == {}
    assert lane.grants.granted(1) >= 300 * MiB
    assert charged == lane.ledger.reserved(1) >= 400 * MiB


def test_a_load_that_fails_gives_everything_back() -> None:
    lane = Lane()
    lane.load(1, "a", 100 * MiB, 10 * MiB)
    before = (lane.ledger.used_bytes, lane.accounts.of("a").budget.limit_bytes)
    lane.charges.expect(load_of(2, "a"), 50 * MiB)
    lane.accounts.of("a").trial_pool().draw(10 * MiB)
    lane.charges.release(2)
    assert (lane.ledger.used_bytes, lane.accounts.of("a").budget.limit_bytes) == before
    assert lane.make.memory.given == {}
    lane.check()


def test_what_does_not_fit_is_refused_and_changes_nobodys_numbers() -> None:
    lane = Lane(capacity_bytes=GiB)
    lane.load(1, "a", 500 * MiB, 10 * MiB)
    before = (lane.ledger.reserved(1), lane.accounts.of("a").budget.limit_bytes)
    with pytest.raises(LedgerFull):
        lane.charges.expect(load_of(2, "b"), 600 * MiB)
    lane.charges.release(2)
    assert (lane.ledger.reserved(1), lane.accounts.of("a").budget.limit_bytes) == before
    lane.check()


def test_where_there_is_no_room_for_graphs_a_replica_serves_without() -> None:
    lane = Lane(capacity_bytes=600 * MiB)
    lane.load(1, "a", 300 * MiB, 40 * MiB)
    assert lane.accounts.of("a").graphs.limit_bytes == 0
    assert lane.accounts.of("a").budget.limit_bytes == grants.pieces(80 * MiB)


def test_a_replica_whose_artefact_was_measured_for_another_is_charged_alike() -> None:
    lane = Lane()
    shelved = Shelved(None, 100 * MiB, 0)  # type: ignore[arg-type]
    charged = []
    for replica, tenant, drawn in ((1, "a", 200 * MiB), (2, "b", MiB)):
        lane.charges.expect(load_of(replica, tenant), 100 * MiB)
        lane.accounts.of(tenant).trial_pool().draw(drawn)
        charged.append(lane.charges.settle(load_of(replica, tenant), shelved, 10 * MiB))
    assert charged[0] == charged[1]


def test_models_of_python_code_draw_on_a_part_that_torch_and_cupy_share() -> None:
    lane = Lane()
    lane.charges.expect(load_of(1, "a", "python"), 1000)
    part = lane.accounts.part(4 * GiB)
    assert part.limit_bytes == lane.grants.trial_of(1)
    pool = part.pool()
    pool.draw(90 * MiB)
    lane.charges.settle(load_of(1, "a", "python"), Shelved(None, 90 * MiB, 0), MiB)  # type: ignore[arg-type]
    lane.check()
    assert part.limit_bytes == lane.grants.granted(1) == lane.ledger.reserved(1)
    assert lane.accounts.of("a").budget.used_bytes == part.used_bytes == 90 * MiB
    with pytest.raises(torch.OutOfMemoryError):
        pool.draw(part.limit_bytes)
    del pool
    lane.charges.release(1)
    assert lane.make.memory.given == {}


def test_a_library_with_memory_of_its_own_is_told_all_that_is_reserved_for_it() -> None:
    lane = Lane()
    told = load_of(1, "a", "onnx")
    limit = lane.charges.expect(told, 100 * MiB)
    assert limit == lane.ledger.reserved(1) == 100 * MiB + LEAST_TRIAL
    assert lane.charges.settle(told, Shelved(None, 100 * MiB, 0), MiB) == limit == lane.ledger.reserved(1)  # type: ignore[arg-type]
    assert lane.grants.limit("a") == 0
    known = Profile("d", "k", 100 * MiB, (ProfilePoint(1, "2", 1, 5, 5, 1, 300 * MiB),))
    assert lane.charges.expect(load_of(2, "a", "onnx", known), 0) == grants.pieces(IN_FLIGHT_PER_REPLICA * 300 * MiB)


def test_without_pools_a_replica_is_charged_as_ever() -> None:
    ledger = Ledger(1000)
    charges = Charges(ledger)
    assert charges.expect(load_of(1, "a"), 100) is None
    assert charges.settle(load_of(1, "a"), Shelved(None, 100, 0), 10) == ledger.reserved(1) == 120  # type: ignore[arg-type]
    charges.release(1)
    assert ledger.used_bytes == 0


# Running out.


def test_a_tenant_that_runs_out_is_told_in_its_own_numbers_and_the_others_draw_on() -> None:
    lane = Lane()
    for replica, tenant in ((1, "a"), (2, "b")):
        lane.load(replica, tenant, MiB, 10 * MiB)
    one, other = lane.accounts.of("a"), lane.accounts.of("b")
    one.pool().draw(one.budget.limit_bytes)
    with pytest.raises(torch.OutOfMemoryError):
        one.pool().draw(1)
    error = one.ran_out()
    assert reason_of(error) == OUT_OF_MEMORY
    assert (
        str(error)
        == f"out of memory: {one.budget.limit_bytes} of the {one.budget.limit_bytes} bytes that its batches may draw are drawn"
    )
    other.pool().draw(other.budget.limit_bytes)
    assert (one.budget.refusals, other.budget.refusals) == (1, 0)


def test_after_running_out_the_pool_is_begun_anew_once_nothing_lies_in_it_and_not_too_often() -> None:
    lane = Lane()
    lane.load(1, "a", MiB, 10 * MiB)
    account = lane.accounts.of("a")
    for moment, renewed in ((0, True), (RENEWED_AFTER - 1, False)):
        account.begin(moment)
        account.begin(moment)
        account.pool().draw(1000)
        account.ran_out()
        account.end()
        account.begin(moment)
        assert account.budget.used_bytes, "a batch is still in flight"
        account.end()
        account.end()
        account.begin(moment)
        assert (account.budget.used_bytes == 0) is renewed
        account.end()
    account.begin(RENEWED_AFTER)
    assert account.budget.used_bytes == 0


def test_blocks_that_outlive_their_pool_are_reclaimed_with_the_tenants_last_replica() -> None:
    lane = Lane()
    lane.load(1, "a", MiB, MiB)
    held = lane.accounts.of("a").pool()
    held.draw(500)
    lane.charges.release(1)
    assert lane.reclaims == 1
    del held
    GATE.end([])
    lane.load(2, "a", MiB, MiB)
    lane.charges.release(2)
    assert lane.reclaims == 1


# Whatever comes.


class Books(RuleBasedStateMachine):
    """Loads come, fail and go, batches draw: no sum is ever exceeded, and nobody's failure shows in another's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.lane = Lane(capacity_bytes=2 * GiB, graph_bytes=200 * MiB)
        self.loaded: dict[int, tuple[str, str]] = {}
        self.trying: tuple[int, str, str, int] | None = None
        self.numbers = 0

    def others(self, tenant: str) -> dict[str, tuple[int, int, int]]:
        return {
            name: (each.budget.limit_bytes, each.budget.used_bytes, each.budget.refusals)
            for name, each in self.lane.accounts._accounts.items()
            if name != tenant
        }

    @precondition(lambda self: self.trying is None)
    @rule(
        tenant=st.sampled_from("abc"),
        weights=st.integers(0, 900 * MiB),
        kind=st.sampled_from(["torch_export", "python", "onnx"]),
    )
    def expect(self, tenant: str, weights: int, kind: str) -> None:
        self.numbers += 1
        before = self.others(tenant)
        try:
            self.lane.charges.expect(load_of(self.numbers, tenant, kind), weights)
        except LedgerFull:
            self.lane.charges.release(self.numbers)
        else:
            self.trying = (self.numbers, tenant, kind, weights)
        assert self.others(tenant) == before

    @precondition(lambda self: self.trying)
    @rule(size=st.integers(1, 2 * GiB))
    def try_out(self, size: int) -> None:
        assert self.trying
        if self.trying[2] == "torch_export":
            self.draws(self.lane.accounts.of(self.trying[1]).trial_pool(), size, self.trying[1])

    @precondition(lambda self: self.trying)
    @rule(batch=st.integers(0, 300 * MiB), fails=st.booleans())
    def settle(self, batch: int, fails: bool) -> None:
        assert self.trying
        replica, tenant, kind, weights = self.trying
        self.trying = None
        before = self.others(tenant)
        try:
            if fails:
                raise LedgerFull(0, 0, 0)
            shelved = Shelved(None, weights, 0)  # type: ignore[arg-type]
            charged = self.lane.charges.settle(load_of(replica, tenant, kind), shelved, batch)
            assert charged == self.lane.ledger.reserved(replica)
            self.loaded[replica] = (tenant, kind)
        except LedgerFull:
            self.lane.charges.release(replica)
        assert self.others(tenant) == before

    @precondition(lambda self: self.loaded)
    @rule(data=st.data(), size=st.integers(1, GiB), graphs=st.booleans())
    def draw(self, data: st.DataObject, size: int, graphs: bool) -> None:
        tenant, _ = self.loaded[data.draw(st.sampled_from(sorted(self.loaded)))]
        account = self.lane.accounts.of(tenant)
        self.draws(account.graphs.pool() if graphs else account.pool(), size, tenant)

    def draws(self, pool: Any, size: int, tenant: str) -> None:
        before = self.others(tenant)
        with contextlib.suppress(torch.OutOfMemoryError):
            pool.draw(size)
        assert self.others(tenant) == before

    @precondition(lambda self: self.loaded)
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        replica = data.draw(st.sampled_from(sorted(self.loaded)))
        tenant, _ = self.loaded.pop(replica)
        before = self.others(tenant)
        self.lane.charges.release(replica)
        assert self.others(tenant) == before

    @invariant()
    def holds(self) -> None:
        self.lane.check()
        for account in self.lane.accounts._accounts.values():
            assert account.graphs.used_bytes <= account.budget.used_bytes

    def teardown(self) -> None:
        for replica in [*self.loaded, *([self.trying[0]] if self.trying else [])]:
            self.lane.charges.release(replica)
        assert (self.lane.ledger.used_bytes, self.lane.make.memory.given) == (0, {})


def test_no_sum_is_exceeded_and_nobodys_failure_shows_in_anothers_numbers_whatever_comes() -> None:
    case = Books.TestCase
    case.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
    case("runTest").runTest()
