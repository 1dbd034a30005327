"""Graphs per segment: the policy by itself, and chains of them on a double of torch's CUDA that runs on a processor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from artefact_samples import exported, written
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpu_sharing.runtimes.base import LoadConfig, Run
from gpu_sharing.runtimes.graphs import GraphPolicy, Key, Way
from gpu_sharing.runtimes.lent import Borrower, LentInputs, Piece
from gpu_sharing.runtimes.torch_export import TorchExportModel, TorchExportRuntime
from gpu_sharing.runtimes.torch_graphs import CudaExportModel, CudaExportRuntime, Graphs
from gpu_sharing.runtimes.torch_place import Block, staged
from gpu_sharing.runtimes.warmup import finish

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

    @precondition(lambda self: self.capturing)
    @rule(how=st.sampled_from(["captured", "failed", "given_up"]), size=st.integers(0, 120))
    def settle(self, how: str, size: int) -> None:
        chosen, self.capturing = self.capturing, None
        if how != "captured":
            getattr(self.policy, how)(chosen)
            return
        gone = self.policy.captured(chosen, size, self.now)
        assert not self.leased & set(gone)
        if chosen not in gone:
            self.leased.add(chosen)

    @precondition(lambda self: self.leased)
    @rule()
    def end(self) -> None:
        self.policy.end(self.leased.pop())

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


class Pretended:
    """torch's CUDA on a processor. A capture leaves nonsense in what it gives, as a real one does: a replay fills it."""

    device = "cpu"
    pins = False

    def __init__(self) -> None:
        self.captures = 0
        self.refuse_from: int | None = None
        self.lane = threading.get_ident()
        self.bytes_of_a_pool = 1000

    def pool(self) -> Any:
        return object()

    def pool_bytes(self, pool: Any) -> int:
        return self.bytes_of_a_pool

    @contextmanager
    def allocating(self, pool: Any) -> Iterator[None]:
        yield

    def capture(self, pool: Any, work: Callable[[], Any]) -> tuple[Replay, Any]:
        if self.refuse_from is not None and self.captures >= self.refuse_from:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        self.captures += 1
        given = work()
        with torch.inference_mode():
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
    """One artefact on the processor and, through graphs, on the double."""

    def __init__(self, folder: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, *, budget: int = 10_000) -> None:
        # Several segments, however fast the machine is: a cut after every fourth operator.
        cuts = lambda costs, alive: tuple(range(4, len(costs), 4))
        monkeypatch.setattr("gpu_sharing.runtimes.torch_segments.cut_points", cuts)
        path = written(folder, "deep.pt2", data)
        self.backend = Pretended()
        self.backend.lane = 0
        self.policy = GraphPolicy(budget)
        self.graphs = Graphs(self.backend, self.policy)
        model = CudaExportRuntime(self.graphs).load(path, CONFIG)
        assert isinstance(model, CudaExportModel)
        self.model = model
        # Loading is another thread's.
        self.backend.lane = threading.get_ident()
        plain = TorchExportRuntime().load(path, CONFIG)
        assert isinstance(plain, TorchExportModel)
        self.plain = plain

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
    assert loaded.policy.snapshot()[:4] == (1, 1000, 3, 1)
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
    loaded = Loaded(tmp_path, deep, monkeypatch, budget=2500)
    for turn in range(18):
        x = rows(1 + turn % 3, turn)
        loaded.check(finish(loaded.model.run({"x": x})), x)
        loaded.policy.check_invariants()
    snapshot = loaded.policy.snapshot()
    assert snapshot.chains == 2
    assert snapshot.evictions >= 1
    assert len(loaded.graphs._chains) == 2


def test_other_threads_never_capture(loaded: Loaded) -> None:
    loaded.backend.lane = 0
    for turn in range(5):
        finish(loaded.model.run({"x": rows(2, turn)}))
    assert loaded.backend.captures == 0


def test_a_closed_model_takes_its_graphs_with_it_at_the_next_batch(loaded: Loaded, tmp_path: Path) -> None:
    loaded.backend.lane = 0
    again = loaded.model.again(CONFIG)
    loaded.backend.lane = threading.get_ident()
    for turn in range(4):
        finish(again.run({"x": rows(4, turn)}))
        finish(loaded.model.run({"x": rows(4, turn)}))
    assert loaded.policy.snapshot().chains == 2
    loaded.model.close()
    x = rows(4, 99)
    loaded.check(finish(again.run({"x": x})), x)
    assert loaded.policy.snapshot().chains == 1


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
