"""A tenant's chains of graphs on one lane: each batch eager, or as a chain, one graph a segment; the policy says which."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from gpu_sharing.memory.accounts import Account
from gpu_sharing.memory.capped import Budget
from gpu_sharing.runtimes.base import Run, Tensors
from gpu_sharing.runtimes.graphs import GraphPolicy, Key, Way
from gpu_sharing.runtimes.torch_place import Backend, Block, Graph, bring_in
from gpu_sharing.runtimes.torch_segments import Segment, run_one
from gpu_sharing.units import Nanoseconds


class Capturable(Protocol):
    """A model whose batches may be captured."""

    def run_eagerly(self, inputs: Tensors) -> Run:
        """Without graphs."""
        ...

    def block(self, inputs: Tensors) -> Block:
        """How the inputs lie in the memory that one copy fills."""
        ...

    def arguments(self, inputs: Tensors, views: dict[str, torch.Tensor]) -> list[Any]:
        """The flat arguments, over tensors that are on the device."""
        ...

    def named(self, flat: list[Any]) -> dict[str, np.ndarray]:
        """The outputs by name, on their way to the processor."""
        ...


@dataclass
class _Chain:
    """entry: where a batch's inputs are copied to. flat: the program's outputs, filled by the last graph.

    kept: every value that crosses a boundary: its memory must not be used again by a later graph of the chain.
    """

    pool: Any
    block: Block
    entry: Any
    graphs: list[Graph] = field(default_factory=list)
    flat: list[Any] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)

    def close(self, budget: Budget) -> None:
        """Gives its memory back: what lies in the pool goes first, since a pool that is gone keeps what is still in use."""
        self.flat, self.kept, self.entry = [], [], None
        self.graphs = []
        ending, self.pool = [self.pool], None
        budget.give_back(ending)


class Graphs:
    """One tenant's on one lane. Only the lane's thread captures and replays; chains that no batch has may be let go of on any."""

    def __init__(
        self,
        backend: Backend,
        policy: GraphPolicy,
        account: Account,
        *,
        partition: int = 0,
        clock: Callable[[], Nanoseconds] = time.monotonic_ns,
    ) -> None:
        """account: what everything here is drawn on. partition: the lane's number, as part of every key."""
        self.backend, self.policy, self.account, self.partition = backend, policy, account, partition
        self._clock = clock
        self._chains: dict[Key, _Chain] = {}
        self._lock = threading.Lock()
        account.resized = self._resize

    def run(self, key: Key, parts: Sequence[Segment], slots: Sequence[str], model: Capturable, inputs: Tensors) -> Run:
        """One batch on the lane's thread: one segment at each `next`."""
        with self._lock:
            way = self.policy.begin(key, self._clock())
        if way is Way.REPLAY:
            return (yield from self._replayed(key, model, inputs))
        if way is Way.CAPTURE:
            return (yield from self._captured(key, parts, slots, model, inputs))
        return (yield from model.run_eagerly(inputs))

    def counted(self, run: Run) -> Run:
        """The same run, on the lane's thread, as one that the account knows of."""
        self.account.begin(self._clock())
        try:
            return (yield from run)
        finally:
            self.account.end()

    def drawing(self) -> _Drawing:
        """Within it, what this thread's operators allocate is drawn on the tenant's pool. memory.accounts.PoolFull beyond it."""
        return _Drawing(self.backend, self.account)

    def forget(self, model: int) -> None:
        """The model has been closed, and none of its batches runs: its chains go. May wait for the device. Any thread."""
        with self._lock:
            gone = self._taken(self.policy.forget(model))
        self._close(gone)

    def _resize(self, budget_bytes: int) -> None:
        with self._lock:
            gone = self._taken(self.policy.resize(budget_bytes))
        self._close(gone)

    def _close(self, chains: Sequence[_Chain]) -> None:
        for chain in chains:
            chain.close(self.account.graphs)

    def _taken(self, keys: Sequence[Key]) -> list[_Chain]:
        return [self._chains.pop(key) for key in keys if key in self._chains]

    def _replayed(self, key: Key, model: Capturable, inputs: Tensors) -> Run:
        with self._lock:
            chain = self._chains[key]
        try:
            bring_in(self.backend, chain.block, inputs, chain.entry)
            last = len(chain.graphs) - 1
            for index, graph in enumerate(chain.graphs):
                graph.replay()
                if index < last:
                    yield
            with self.drawing():
                return model.named(chain.flat)
        finally:
            self._ended(key)

    def _ended(self, key: Key) -> None:
        with self._lock:
            # The chain may be gone with its model meanwhile.
            gone = self._taken(self.policy.end(key)) if key in self._chains else []
        self._close(gone)

    def _captured(
        self, key: Key, parts: Sequence[Segment], slots: Sequence[str], model: Capturable, inputs: Tensors
    ) -> Run:
        """Captures each segment and replays it at once: the batch is served by what is captured for it."""
        settled, kept, chain, values = False, False, None, dict[str, Any]()
        before = self._make_room(key)
        try:
            try:
                chain = self._entered(model, inputs)
            except torch.OutOfMemoryError:
                settled = True
                self._crowded(key)
                return (yield from model.run_eagerly(inputs))
            values.update(zip(slots, model.arguments(inputs, chain.block.views(chain.entry)), strict=True))
            chain.kept.append(dict(values))
            for index, part in enumerate(parts):
                if not self._add(key, chain, part, values):
                    # It runs as it is; values so far are real, since each graph was replayed.
                    settled = True
                    return (yield from finished(parts[index:], values, model, self))
                if index + 1 < len(parts):
                    yield
            settled = True
            kept = self._keep(key, chain, self.account.graphs.used_bytes - before)
            with self.drawing():
                return model.named(chain.flat)
        finally:
            if not settled:
                with self._lock:
                    self.policy.given_up(key)
            if kept:
                self._ended(key)
            elif chain is not None:
                values.clear()
                chain.close(self.account.graphs)

    def _make_room(self, key: Key) -> int:
        """What graphs hold before the capture."""
        with self._lock:
            gone = self._taken(self.policy.make_room(key))
        self._close(gone)
        return self.account.graphs.used_bytes

    def _entered(self, model: Capturable, inputs: Tensors) -> _Chain:
        block = model.block(inputs)
        pool = self.account.graphs.pool()
        try:
            with self.backend.allocating(pool):
                entry = torch.empty(max(block.size_bytes, 1), dtype=torch.uint8, device=self.backend.device)
        except BaseException:
            ending = [pool]
            del pool
            self.account.graphs.give_back(ending)
            raise
        bring_in(self.backend, block, inputs, entry[: block.size_bytes])
        return _Chain(pool, block, entry[: block.size_bytes])

    def _add(self, key: Key, chain: _Chain, part: Segment, values: dict[str, Any]) -> bool:
        """Whether the segment could be captured; the policy has been told if not."""
        taken = [values[name] for name in part.takes]

        def work() -> Any:
            with torch.inference_mode():
                return part.compute(*taken)

        try:
            graph, given = self.backend.capture(chain.pool, work)
        except torch.OutOfMemoryError:
            self._crowded(key)
            return False
        except Exception:
            with self._lock:
                self.policy.failed(key)
            return False
        graph.replay()
        chain.graphs.append(graph)
        chain.kept.append(given)
        for name in part.drops:
            values.pop(name, None)
        if part.gives:
            values.update(zip(part.gives, given, strict=True))
        chain.flat = list(given)
        return True

    def _crowded(self, key: Key) -> None:
        with self._lock:
            gone = self._taken(self.policy.crowded(key))
        self._close(gone)

    def _keep(self, key: Key, chain: _Chain, size_bytes: int) -> bool:
        """Whether there is room for it."""
        with self._lock:
            gone = self.policy.captured(key, size_bytes, self._clock())
            kept = key not in gone
            if kept:
                self._chains[key] = chain
            closing = self._taken(gone)
        self._close(closing)
        return kept


class _Drawing:
    """See `Graphs.drawing`. By hand, since every segment of a batch without graphs is in one."""

    __slots__ = ("_account", "_allocating", "_on_lane")

    def __init__(self, backend: Backend, account: Account) -> None:
        self._account, self._on_lane = account, backend.on_lane()
        self._allocating = backend.allocating(account.pool() if self._on_lane else account.trial_pool())

    def __enter__(self) -> None:
        self._allocating.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._allocating.__exit__(kind, error, trace)
        if isinstance(error, torch.OutOfMemoryError):
            raise (self._account.ran_out() if self._on_lane else self._account.full()) from error


def finished(parts: Sequence[Segment], values: dict[str, Any], model: Capturable, graphs: Graphs) -> Run:
    """The rest of a batch without graphs, on the tenant's pool."""
    flat: list[Any] = []
    for index, part in enumerate(parts):
        with graphs.drawing(), torch.inference_mode():
            flat = run_one(part, values)
        if index + 1 < len(parts):
            yield
    with graphs.drawing():
        return model.named(flat)
