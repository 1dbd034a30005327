"""Graphs per segment: the policy by itself, and chains of them on a double of torch's CUDA that runs on a processor."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from artefact_samples import exported, written
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace
from pool_double import PooledBackend, PoolsOnDouble

from gpu_sharing.memory.accounts import Accounts, PoolFull
from gpu_sharing.memory.grants import Grant, Grants
from gpu_sharing.runtimes.base import LoadConfig, Run
from gpu_sharing.runtimes.graphs import GraphPolicy, Key, Way
from gpu_sharing.runtimes.lent import Borrower, LentInputs, Piece
from gpu_sharing.runtimes.torch_cuda import CudaExportModel, CudaExportRuntime, LaneGraphs
from gpu_sharing.runtimes.torch_export import TorchExportModel, TorchExportRuntime
from gpu_sharing.runtimes.torch_place import Block, staged
from gpu_sharing.runtimes.warmup import finish
from gpu_sharing.units import MiB
from gpu_sharing.worker.faults import OUT_OF_MEMORY, reason_of

pytest.importorskip("llvmlite", reason="llvmlite is not installed")

CONFIG = LoadConfig(threads=1, compute_units=1)
KEY = Key(1, 0, 4, "4x8")


def key(number: int) -> Key:
    return Key(number, 0, 1, "1")


# The policy.


def test_a_key_is_run_twice_before_it_is_captured_and_replayed_from_then_on() -> None:
    policy = GraphPolicy(100)
    assert [policy.begin(KEY, 1), policy.begin(KEY, 2), policy.begin(KEY, 3)] == [Way.EAGER, Way.EAGER, Way.CAPTURE]
    assert policy.captured(KEY, 60, 4) == []
    assert policy.begin(KEY, 5) is Way.EAGER, "the batch that captured it still has it"
    policy.end(KEY)
    assert policy.begin(KEY, 6) is Way.REPLAY
    assert policy.begin(KEY, 7) is Way.EAGER, "one batch at a time"
    assert policy.snapshot()[:4] == (1, 60, 1, 1)


def test_the_budget_takes_what_went_unused_for_longest_and_never_what_is_leased() -> None:
    policy = GraphPolicy(100, warm_runs=0)
    for number, moment in ((1, 1), (2, 2), (3, 3)):
        assert policy.begin(key(number), moment) is Way.CAPTURE
        assert policy.captured(key(number), 30, moment) == []
        policy.end(key(number))
    assert policy.begin(key(1), 9) is Way.REPLAY
    assert policy.begin(key(4), 10) is Way.CAPTURE
    assert policy.captured(key(4), 40, 11) == [key(2)]
    assert policy.begin(key(5), 12) is Way.CAPTURE
    assert policy.captured(key(5), 60, 13) == [key(5)], "30 and 40 bytes are leased"
    assert policy.begin(key(5), 14) is Way.EAGER
    policy.check_invariants()


def test_what_cannot_be_captured_is_not_tried_again_until_its_model_comes_anew() -> None:
    policy = GraphPolicy(100, warm_runs=0)
    policy.begin(KEY, 1)
    policy.failed(KEY)
    assert policy.begin(KEY, 2) is Way.EAGER
    policy.forget(KEY.model)
    assert policy.begin(KEY, 3) is Way.CAPTURE


def test_one_key_is_captured_at_a_time_and_an_abandoned_capture_is_tried_again() -> None:
    policy = GraphPolicy(100, warm_runs=0)
    assert policy.begin(key(1), 1) is Way.CAPTURE
    assert policy.begin(key(2), 1) is Way.EAGER
    policy.given_up(key(1))
    assert policy.begin(key(1), 2) is Way.CAPTURE
    with pytest.raises(ValueError, match="is not being captured"):
        policy.captured(key(2), 1, 1)


def test_before_a_capture_there_is_room_for_one_like_its_models_others() -> None:
    policy = GraphPolicy(100, warm_runs=0)
    for rows, moment in ((1, 1), (3, 2)):
        assert policy.begin(Key(1, 0, rows, str(rows)), moment) is Way.CAPTURE
        assert policy.captured(Key(1, 0, rows, str(rows)), 20 * rows, moment) == []
        policy.end(Key(1, 0, rows, str(rows)))
    assert policy.begin(Key(1, 0, 2, "2"), 3) is Way.CAPTURE
    assert policy.make_room(Key(1, 0, 2, "2")) == [Key(1, 0, 1, "1")]
    assert policy.size_bytes == 60


def test_a_capture_without_room_evicts_half_and_is_tried_once_more() -> None:
    policy = GraphPolicy(100, warm_runs=1)
    for number in (1, 2, 3):
        for _ in range(2):
            policy.begin(key(number), number)
        assert policy.captured(key(number), 30, number) == []
        policy.end(key(number))
    assert [policy.begin(key(4), 9), policy.begin(key(4), 9)] == [Way.EAGER, Way.CAPTURE]
    assert policy.crowded(key(4)) == [key(1), key(2)]
    assert [policy.begin(key(4), 10), policy.begin(key(4), 10)] == [Way.EAGER, Way.CAPTURE]
    assert policy.crowded(key(4)) == []
    assert {policy.begin(key(4), moment) for moment in range(11, 20)} == {Way.EAGER}
    assert policy.resize(200) == []
    assert [policy.begin(key(4), 20), policy.begin(key(4), 20)] == [Way.EAGER, Way.CAPTURE], "now it may fit"


def test_without_a_budget_nothing_is_captured() -> None:
    policy = GraphPolicy(0)
    assert {policy.begin(KEY, moment) for moment in range(9)} == {Way.EAGER}


class Books(RuleBasedStateMachine):
    """Whatever comes: the budget holds, and no chain serves two batches."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = GraphPolicy(100, warm_runs=1)
        self.capturing: Key | None = None
        self.leased: set[Key] = set()
        self.now = 0

    @rule(number=st.integers(1, 6))
    def begin(self, number: int) -> None:
        self.now += 1
        way = self.policy.begin(key(number), self.now)
        if way is Way.CAPTURE:
            assert self.capturing is None
            self.capturing = key(number)
        elif way is Way.REPLAY:
            assert key(number) not in self.leased
            self.leased.add(key(number))

    @rule(budget=st.integers(0, 150))
    def resize(self, budget: int) -> None:
        assert not self.leased & set(self.policy.resize(budget))

    @precondition(lambda self: self.capturing)
    @rule()
    def make_room(self) -> None:
        assert not self.leased & set(self.policy.make_room(self.capturing))

    @precondition(lambda self: self.capturing)
    @rule(how=st.sampled_from(["captured", "failed", "given_up", "crowded"]), size=st.integers(0, 120))
    def settle(self, how: str, size: int) -> None:
        chosen, self.capturing = self.capturing, None
        if how != "captured":
            assert not self.leased & set(getattr(self.policy, how)(chosen) or ())
            return
        gone = self.policy.captured(chosen, size, self.now)
        assert not self.leased & set(gone)
        if chosen not in gone:
            self.leased.add(chosen)

    @precondition(lambda self: self.leased)
    @rule()
    def end(self) -> None:
        assert not self.leased & set(self.policy.end(self.leased.pop()))

    @invariant()
    def holds(self) -> None:
        self.policy.check_invariants()


def test_the_books_of_graphs_add_up_whatever_comes() -> None:
    case = Books.TestCase
    case.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
    case("runTest").runTest()


# Chains.


class Replay:
    """What was captured, run again into the same memory."""

    def __init__(self, work: Callable[[], Any], given: Any) -> None:
        self.work, self.given = work, given

    def replay(self) -> None:
        fresh = self.work()
        with torch.inference_mode():
            for target, source in zip(_flat(self.given), _flat(fresh), strict=True):
                target.copy_(source)


def _flat(given: Any) -> list[torch.Tensor]:
    return [value for value in given if isinstance(value, torch.Tensor)]


class Pretended(PooledBackend):
    """torch's CUDA on a processor. A capture leaves nonsense in what it gives, as a real one does: a replay fills it."""

    device = "cpu"
    pins = False

    def __init__(self) -> None:
        super().__init__()
        self.captures = 0
        self.refuse_from: int | None = None
        self.lane = threading.get_ident()

    def capture(self, pool: Any, work: Callable[[], Any]) -> tuple[Replay, Any]:
        if self.refuse_from is not None and self.captures >= self.refuse_from:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        self.captures += 1
        with self.allocating(pool), torch.inference_mode():
            given = work()
            given = tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in given)
            for value in _flat(given):
                value.fill_(float("nan") if value.is_floating_point() else 77)
        return Replay(work, given), given

    def synchronize(self) -> None:
        pass

    def on_lane(self) -> bool:
        return threading.get_ident() == self.lane


class Deep(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(256, 256) for _ in range(12))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        first = x
        for layer in self.layers:
            x = torch.relu(layer(x)) + first
        return {"y": x, "largest": x.argmax(-1)}


@pytest.fixture(scope="module")
def deep() -> bytes:
    return exported(Deep().eval(), (torch.randn(4, 256),), {"x": {0: torch.export.Dim("batch", max=64)}})


class Loaded:
    """One artefact on the processor and, through graphs, on the double, for tenants whose pools may draw so much."""

    def __init__(
        self,
        folder: Path,
        data: bytes,
        monkeypatch: pytest.MonkeyPatch,
        *,
        graphs: int = MiB,
        activations: int = 4 * MiB,
    ) -> None:
        # Several segments, however fast the machine is: a cut after every fourth operator.
        cuts = lambda costs, alive: tuple(range(4, len(costs), 4))
        monkeypatch.setattr("gpu_sharing.runtimes.torch_segments.cut_points", cuts)
        path = written(folder, "deep.pt2", data)
        self.backend = Pretended()
        self.backend.lane = 0
        self.make = PoolsOnDouble()
        self.accounts = Accounts(self.make, Grants(100 * MiB))
        self.graphs_of = LaneGraphs(self.backend, self.accounts)  # type: ignore[arg-type]
        self._numbers, self._sizes = 0, Grant(activations, graphs)
        self.path, self.model = path, self.loaded("a", lambda config: self._runtime().load(path, config))
        self.graphs = self.graphs_of("a")
        self.policy = self.graphs.policy
        # Loading is another thread's.
        self.backend.lane = threading.get_ident()
        plain = TorchExportRuntime().load(path, CONFIG)
        assert isinstance(plain, TorchExportModel)
        self.plain = plain

    def _runtime(self) -> CudaExportRuntime:
        return CudaExportRuntime(self.graphs_of, "cpu")

    def loaded(self, tenant: str, load: Callable[[LoadConfig], Any], sizes: Grant | None = None) -> CudaExportModel:
        """As a replica of the tenant's, tried and settled."""
        self._numbers += 1
        self.accounts.try_out(self._numbers, tenant, 64 * MiB)
        model = load(replace(CONFIG, tenant=tenant))
        assert isinstance(model, CudaExportModel)
        assert self.accounts.tried(self._numbers) > 0, "what was tried was drawn on the tenant's pool"
        self.accounts.settle(self._numbers, sizes or self._sizes)
        return model

    def beside(self, tenant: str, sizes: Grant | None = None) -> CudaExportModel:
        """The same artefact, loaded for another."""
        lane, self.backend.lane = self.backend.lane, 0
        try:
            return self.loaded(tenant, self.model.again, sizes)
        finally:
            self.backend.lane = lane

    def check(self, given: dict[str, np.ndarray], x: np.ndarray) -> None:
        expected = finish(self.plain.run({"x": x}))
        assert set(given) == set(expected)
        for name, value in expected.items():
            assert given[name].dtype == value.dtype
            np.testing.assert_allclose(given[name], value, rtol=1e-5, atol=1e-5)


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 256)).astype(np.float32)


@pytest.fixture
def loaded(tmp_path: Path, deep: bytes, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    return Loaded(tmp_path, deep, monkeypatch)


def test_eager_captured_and_replayed_batches_give_what_the_processor_gives(loaded: Loaded) -> None:
    assert len(loaded.model.segments) > 1
    for turn in range(6):
        x = rows(4, turn)
        loaded.check(finish(loaded.model.run({"x": x})), x)
    chains, size_bytes, replays, captures, *_ = loaded.policy.snapshot()
    assert (chains, replays, captures) == (1, 3, 1)
    assert size_bytes == loaded.accounts.of("a").graphs.used_bytes > 4 * 256 * 4
    assert loaded.backend.captures == len(loaded.model.segments)


def test_every_batch_yields_at_the_same_boundaries_whichever_way_it_runs(loaded: Loaded) -> None:
    for turn in range(5):
        assert sum(1 for _ in loaded.model.run({"x": rows(4, turn)})) == len(loaded.model.segments) - 1


def test_two_batches_of_one_key_may_be_set_aside_for_each_other(loaded: Loaded) -> None:
    for turn in range(3):
        finish(loaded.model.run({"x": rows(4, turn)}))
    one, other = rows(4, 50), rows(4, 51)
    runs = [loaded.model.run({"x": one}), loaded.model.run({"x": other})]
    results: list[Any] = [None, None]
    while any(result is None for result in results):
        for index, run in enumerate(runs):
            if results[index] is None:
                results[index] = advance(run)
    loaded.check(results[0], one)
    loaded.check(results[1], other)
    # The lease is given back: the next one replays again.
    replays = loaded.policy.snapshot().replays
    finish(loaded.model.run({"x": one}))
    assert loaded.policy.snapshot().replays == replays + 1


def advance(run: Run) -> dict[str, np.ndarray] | None:
    try:
        next(run)
    except StopIteration as end:
        return end.value
    return None


@pytest.mark.parametrize("after", [2, 3, 4])
def test_an_abandoned_batch_gives_back_what_it_had(loaded: Loaded, after: int) -> None:
    for turn in range(after):
        finish(loaded.model.run({"x": rows(4, turn)}))
    run = loaded.model.run({"x": rows(4, 9)})
    next(run)
    run.close()
    x = rows(4, 10)
    for _ in range(2):
        loaded.check(finish(loaded.model.run({"x": x})), x)
    assert loaded.policy.snapshot().replays >= 1


@pytest.mark.parametrize("refuse_from", [0, 1])
def test_what_cannot_be_captured_runs_as_it_is_from_that_segment_on(loaded: Loaded, refuse_from: int) -> None:
    loaded.backend.refuse_from = refuse_from
    for turn in range(5):
        x = rows(4, turn)
        loaded.check(finish(loaded.model.run({"x": x})), x)
    assert (loaded.policy.snapshot().chains, loaded.policy.snapshot().refusals) == (0, 1)


def test_other_shapes_have_chains_of_their_own_and_the_budget_holds(
    tmp_path: Path, deep: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(tmp_path, deep, monkeypatch)
    for turn in range(3):
        finish(loaded.model.run({"x": rows(4, turn)}))
    of_four_rows = loaded.policy.snapshot().size_bytes
    budget = loaded.accounts.of("a").graphs
    loaded.accounts.settle(1, Grant(4 * MiB, 2 * of_four_rows))
    for turn in range(27):
        x = rows(2 + turn % 3, turn)
        loaded.check(finish(loaded.model.run({"x": x})), x)
        loaded.policy.check_invariants()
        assert loaded.policy.size_bytes == budget.used_bytes <= budget.limit_bytes
    snapshot = loaded.policy.snapshot()
    assert snapshot.chains == len(loaded.graphs._chains) == 2
    assert snapshot.evictions >= 1


def test_other_threads_never_capture(loaded: Loaded) -> None:
    loaded.backend.lane = 0
    with pytest.raises(PoolFull):
        # Nothing is being tried: there is no pool for such a thread.
        finish(loaded.model.run({"x": rows(2, 0)}))
    loaded.accounts.try_out(9, "a", MiB)
    for turn in range(5):
        finish(loaded.model.run({"x": rows(2, turn)}))
    assert loaded.backend.captures == 0


def test_a_closed_model_takes_its_graphs_with_it(loaded: Loaded) -> None:
    again = loaded.beside("a")
    for turn in range(4):
        finish(again.run({"x": rows(4, turn)}))
        finish(loaded.model.run({"x": rows(4, turn)}))
    assert loaded.policy.snapshot().chains == 2
    both = loaded.accounts.of("a").graphs.used_bytes
    loaded.model.close()
    assert loaded.policy.snapshot().chains == 1
    assert loaded.accounts.of("a").graphs.used_bytes == both // 2
    x = rows(4, 99)
    loaded.check(finish(again.run({"x": x})), x)


# Memory.


def test_everything_that_a_batch_computes_is_drawn_on_its_tenants_pool_and_given_back(loaded: Loaded) -> None:
    account = loaded.accounts.of("a")
    assert account.budget.used_bytes == 0, "what loading drew has gone"
    finish(loaded.model.run({"x": rows(16, 0)}))
    drawn = account.budget.used_bytes
    assert drawn > 16 * 256 * 4
    for turn in range(3):
        finish(loaded.model.run({"x": rows(16, turn)}))
        finish(loaded.model.run({"x": rows(16, turn)}))
    assert account.budget.used_bytes - account.graphs.used_bytes == drawn, "the pool's own memory serves the next batch"
    loaded.model.close()
    loaded.accounts.drop(1)
    assert loaded.make.memory.given == {}


def test_a_batch_that_draws_too_much_fails_alone_and_nobody_else_notices(
    tmp_path: Path, deep: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(tmp_path, deep, monkeypatch, graphs=0, activations=200_000)
    neighbour = loaded.beside("b")
    one, other = loaded.accounts.of("a"), loaded.accounts.of("b")
    x = rows(8, 1)
    for model in (loaded.model, neighbour):
        loaded.check(finish(model.run({"x": x})), x)
    before = (other.budget.used_bytes, other.budget.limit_bytes, other.budget.refusals)
    waiting = loaded.model.run({"x": x})
    next(waiting)
    for _ in range(3):
        with pytest.raises(PoolFull, match="of the 200000 bytes that its batches may draw are drawn") as full:
            finish(loaded.model.run({"x": rows(64, 2)}))
        assert reason_of(full.value) == OUT_OF_MEMORY
        assert "GPU 0" not in str(full.value), "what the device has free is nobody's business"
        del full
    assert one.budget.used_bytes <= one.budget.limit_bytes
    loaded.check(finish(waiting), x)
    loaded.check(finish(loaded.model.run({"x": x})), x)
    loaded.check(finish(neighbour.run({"x": x})), x)
    assert (other.budget.used_bytes, other.budget.limit_bytes, other.budget.refusals) == before
    assert one.budget.refusals == 3
    assert loaded.backend.inside == {}


def test_what_lies_in_pieces_after_running_out_is_begun_anew(
    tmp_path: Path, deep: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(tmp_path, deep, monkeypatch, graphs=0, activations=200_000)
    account = loaded.accounts.of("a")
    with pytest.raises(PoolFull):
        finish(loaded.model.run({"x": rows(64, 1)}))
    assert account.budget.used_bytes > 100_000
    x = rows(4, 2)
    loaded.check(finish(loaded.model.run({"x": x})), x)
    assert account.budget.used_bytes < 100_000, "nothing of what was drawn then is left"


def test_a_capture_that_runs_out_evicts_and_its_batch_is_served_without(
    tmp_path: Path, deep: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(tmp_path, deep, monkeypatch)
    for turn in range(3):
        finish(loaded.model.run({"x": rows(8, turn)}))
    size_bytes = loaded.policy.snapshot().size_bytes
    # Another model of the tenant's, of which nobody knows yet how large its chains are.
    again = loaded.beside("a", Grant())
    loaded.accounts.settle(1, Grant(4 * MiB, size_bytes * 3 // 2))
    for turn in range(3):
        x = rows(8, turn)
        loaded.check(finish(again.run({"x": x})), x)
    gone = loaded.policy.snapshot()
    assert (gone.chains, gone.captures, gone.evictions, gone.refusals) == (0, 1, 1, 1)
    gc.collect()
    assert loaded.accounts.of("a").graphs.used_bytes == 0
    for turn in range(4):
        x = rows(8, turn)
        loaded.check(finish(again.run({"x": x})), x)
    assert loaded.policy.snapshot().chains == 1
    assert loaded.policy.snapshot().replays >= 1


def test_chains_of_one_tenant_are_never_evicted_for_anothers(loaded: Loaded) -> None:
    neighbour = loaded.beside("b", Grant(4 * MiB, MiB))
    for turn in range(4):
        finish(neighbour.run({"x": rows(4, turn)}))
    before = loaded.graphs_of("b").policy.snapshot()
    for turn in range(60):
        finish(loaded.model.run({"x": rows(1 + turn % 20, turn)}))
    assert loaded.policy.snapshot().evictions >= 1
    assert loaded.graphs_of("b").policy.snapshot() == before
    finish(neighbour.run({"x": rows(4, 9)}))
    assert loaded.graphs_of("b").policy.snapshot().replays == before.replays + 1


def test_a_replica_that_is_made_of_a_serving_one_draws_on_its_own_tenants_pool(loaded: Loaded) -> None:
    finish(loaded.model.run({"x": rows(4, 1)}))
    before = loaded.accounts.of("a").budget.used_bytes
    neighbour = loaded.beside("b")
    assert loaded.accounts.of("a").budget.used_bytes == before
    finish(neighbour.run({"x": rows(4, 1)}))
    assert loaded.accounts.of("a").budget.used_bytes == before
    assert loaded.accounts.of("b").budget.used_bytes == before


def test_less_memory_for_graphs_takes_the_oldest_at_once(loaded: Loaded) -> None:
    for count in (1, 2, 3):
        for turn in range(3):
            finish(loaded.model.run({"x": rows(count, turn)}))
    assert loaded.policy.snapshot().chains == 3
    budget = loaded.accounts.of("a").graphs
    loaded.accounts.settle(1, Grant(4 * MiB, budget.used_bytes - 1))
    assert [key.rows for key in loaded.graphs._chains] == [2, 3]
    assert budget.used_bytes == loaded.policy.size_bytes <= budget.limit_bytes


def test_tensors_lie_aligned_in_one_block() -> None:
    block = Block.of(
        [("a", torch.float16, (3, 5)), ("b", torch.bool, ()), ("c", torch.int64, (0, 4)), ("d", torch.float32, (2,))]
    )
    assert [start for *_, start, _ in block.places] == [0, 256, 512, 512]
    inputs = {
        "a": np.arange(15, dtype=np.float16).reshape(3, 5),
        "b": np.asarray(True),
        "c": np.zeros((0, 4), np.int64),
        "d": np.asarray([1.5, 2.5], np.float32),
    }
    views = block.views(staged(Pretended(), block, inputs))
    for name, value in inputs.items():
        assert views[name].shape == value.shape
        assert (views[name].numpy() == value).all()


@pytest.mark.parametrize("on_host", [0, 2])
def test_rows_that_lie_on_the_device_already_are_copied_there_whichever_way_a_batch_runs(
    loaded: Loaded, on_host: int
) -> None:
    assert isinstance(loaded.model, Borrower)
    assert loaded.model.takes_lent
    for turn in range(6):
        x = rows(4, turn)
        nonsense = x.copy()
        nonsense[on_host:] = np.nan
        first, last = (
            x[at : at + (4 - on_host) // 2].reshape(-1).view(np.uint8) for at in (on_host, (on_host + 4) // 2)
        )
        begins = on_host * x.strides[0]
        pieces = [Piece(begins, first.nbytes, first), Piece(begins + first.nbytes, last.nbytes, last)]
        inputs = LentInputs({"x": nonsense}, {"x": pieces})
        assert inputs.is_whole("x") == (on_host == 0)
        loaded.check(finish(loaded.model.run(inputs)), x)
    assert loaded.policy.snapshot()[:4] == (1, 1000, 3, 1), "three eager or captured, the others replayed"
