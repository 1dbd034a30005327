"""An exported program on a GPU: each batch eager, or as a chain of graphs, one a segment; the policy says which."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from gpu_sharing.runtimes.base import LoadConfig, LoadedModel, Run, Tensors
from gpu_sharing.runtimes.graphs import GraphPolicy, Key, Way
from gpu_sharing.runtimes.program import Program
from gpu_sharing.runtimes.torch_export import TorchExportModel, TorchExportRuntime
from gpu_sharing.runtimes.torch_place import Backend, Block, Graph, block_of, bring_in, brought_back
from gpu_sharing.runtimes.torch_segments import Segment, run_one
from gpu_sharing.units import Nanoseconds

_MODELS = itertools.count(1)


@dataclass
class _Chain:
    """entry: where a batch's inputs are copied to. flat: the program's outputs, filled by the last graph.

    kept: every value that crosses a boundary: its memory must not be used again by a later graph of the chain.
    """

    pool: Any
    block: Block
    entry: torch.Tensor
    graphs: list[Graph] = field(default_factory=list)
    flat: list[Any] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)


class Graphs:
    """The chains of one lane. Only the lane's thread captures, replays and lets go of them."""

    def __init__(
        self,
        backend: Backend,
        policy: GraphPolicy,
        *,
        partition: int = 0,
        clock: Callable[[], Nanoseconds] = time.monotonic_ns,
    ) -> None:
        """partition: the lane's number, as part of every key."""
        self.backend, self.policy, self.partition = backend, policy, partition
        self._clock = clock
        self._chains: dict[Key, _Chain] = {}
        self._gone: list[int] = []

    def run(
        self, key: Key, parts: Sequence[Segment], slots: Sequence[str], model: CudaExportModel, inputs: Tensors
    ) -> Run:
        """One batch on the lane's thread: one segment at each `next`."""
        self._sweep()
        way = self.policy.begin(key, self._clock())
        if way is Way.REPLAY:
            return (yield from self._replayed(key, model, inputs))
        if way is Way.CAPTURE:
            return (yield from self._captured(key, parts, slots, model, inputs))
        return (yield from model.run_eagerly(inputs))

    def forget(self, model: int) -> None:
        """The model has been closed: its chains go at the next batch, on the lane's thread. Any thread."""
        self._gone.append(model)

    def _sweep(self) -> None:
        while self._gone:
            for key in self.policy.forget(self._gone.pop()):
                self._chains.pop(key, None)

    def _replayed(self, key: Key, model: CudaExportModel, inputs: Tensors) -> Run:
        chain = self._chains[key]
        try:
            bring_in(self.backend, chain.block, inputs, chain.entry)
            last = len(chain.graphs) - 1
            for index, graph in enumerate(chain.graphs):
                graph.replay()
                if index < last:
                    yield
            return model.named(chain.flat)
        finally:
            # The chain may be gone with its model meanwhile.
            if key in self._chains:
                self.policy.end(key)

    def _captured(
        self, key: Key, parts: Sequence[Segment], slots: Sequence[str], model: CudaExportModel, inputs: Tensors
    ) -> Run:
        """Captures each segment and replays it at once: the batch is served by what is captured for it."""
        settled = False
        try:
            chain, values = self._entered(slots, model, inputs)
            for index, part in enumerate(parts):
                try:
                    self._add(chain, part, values)
                except Exception:
                    # What cannot be captured runs as it is; values so far are real, since each graph was replayed.
                    self.policy.failed(key)
                    settled = True
                    return (yield from _finished(parts[index:], values, model))
                if index + 1 < len(parts):
                    yield
            settled = True
            self._keep(key, chain)
            return model.named(chain.flat)
        finally:
            if not settled:
                self.policy.given_up(key)
            elif key in self._chains:
                self.policy.end(key)

    def _entered(self, slots: Sequence[str], model: CudaExportModel, inputs: Tensors) -> tuple[_Chain, dict[str, Any]]:
        block = model.block(inputs)
        pool = self.backend.pool()
        with self.backend.allocating(pool):
            entry = torch.empty(max(block.size_bytes, 1), dtype=torch.uint8, device=self.backend.device)
        bring_in(self.backend, block, inputs, entry[: block.size_bytes])
        chain = _Chain(pool, block, entry[: block.size_bytes])
        values = dict(zip(slots, model.arguments(inputs, block.views(chain.entry)), strict=True))
        chain.kept.append(dict(values))
        return chain, values

    def _add(self, chain: _Chain, part: Segment, values: dict[str, Any]) -> None:
        taken = [values[name] for name in part.takes]

        def work() -> Any:
            with torch.inference_mode():
                return part.compute(*taken)

        graph, given = self.backend.capture(chain.pool, work)
        graph.replay()
        chain.graphs.append(graph)
        chain.kept.append(given)
        for name in part.drops:
            values.pop(name, None)
        if part.gives:
            values.update(zip(part.gives, given, strict=True))
        chain.flat = list(given)

    def _keep(self, key: Key, chain: _Chain) -> None:
        self._chains[key] = chain
        for gone in self.policy.captured(key, self.backend.pool_bytes(chain.pool), self._clock()):
            del self._chains[gone]


def _finished(parts: Sequence[Segment], values: dict[str, Any], model: CudaExportModel) -> Generator[None, None, Any]:
    flat: list[Any] = []
    for index, part in enumerate(parts):
        with torch.inference_mode():
            flat = run_one(part, values)
        if index + 1 < len(parts):
            yield
    return model.named(flat)


class CudaExportModel(TorchExportModel):
    """An exported program on a GPU. Its weights are there; inputs come and outputs go by one copy each, on the thread's stream."""

    def __init__(
        self, exported: Any, program: Program, config: LoadConfig, *, copies_inputs: bool, graphs: Graphs
    ) -> None:
        self._graphs = graphs
        self._number = next(_MODELS)
        super().__init__(exported, program, config, copies_inputs=copies_inputs)

    @property
    def takes_lent(self) -> bool:
        """See `lent.Borrower`: unless a number among the inputs is needed on the host."""
        return not any(is_integer for _, is_integer, _ in self._interface.slots)

    def again(self, config: LoadConfig) -> LoadedModel:
        """The same program over the same weights, with graphs of its own."""
        other = super().again(config)
        assert isinstance(other, CudaExportModel)
        other._number = next(_MODELS)
        return other

    def _run(self, inputs: Tensors) -> Run:
        """One segment launched at each `next`. The arrays that it returns are filled once the stream has come so far."""
        if not self._parts:
            raise RuntimeError("the model has been closed")
        # A number among the inputs would be baked into a graph.
        if not self._graphs.backend.on_lane() or any(is_integer for _, is_integer, _ in self._interface.slots):
            return self.run_eagerly(inputs)
        shape = ",".join("x".join(map(str, value.shape)) for value in inputs.values())
        rows = max((value.shape[0] for value in inputs.values() if value.ndim), default=1)
        key = Key(self._number, self._graphs.partition, rows, shape)
        return self._graphs.run(key, self._parts, self._slots, self, inputs)

    def run_eagerly(self, inputs: Tensors) -> Run:
        """Without graphs."""
        return _finished_from_the_start(self, self._parts, self._values, inputs)

    def close(self) -> None:
        """Lets go of the weights, and of its graphs before the lane's next batch."""
        self._graphs.forget(self._number)
        super().close()

    def block(self, inputs: Tensors) -> Block:
        """How the inputs lie in the memory that one copy fills."""
        return block_of(inputs, self._interface.datatypes)

    def arguments(self, inputs: Tensors, views: dict[str, torch.Tensor]) -> list[Any]:
        """The flat arguments, over tensors that are on the device."""
        return self._interface.arguments(inputs, lambda name, _: views[name])

    def named(self, flat: list[Any]) -> dict[str, np.ndarray]:
        """The outputs by name, on their way to the processor."""
        return brought_back(self._graphs.backend, [(name, flat[index]) for name, index in self._interface.kept_outputs])

    def _values(self, inputs: Tensors) -> dict[str, Any]:
        block, backend = self.block(inputs), self._graphs.backend
        memory = torch.empty(block.size_bytes, dtype=torch.uint8, device=backend.device)
        if block.size_bytes:
            bring_in(backend, block, inputs, memory)
        return dict(zip(self._slots, self.arguments(inputs, block.views(memory)), strict=True))

    def _named(self, flat: list[Any]) -> dict[str, np.ndarray]:
        """For whoever reads them at once."""
        given = self.named(flat)
        self._graphs.backend.synchronize()
        return given

    def _device_settles(self) -> Callable[[], None] | None:
        return self._graphs.backend.synchronize

    def _execute(self, inputs: Tensors) -> dict[str, np.ndarray]:
        given = super()._execute(inputs)
        self._graphs.backend.synchronize()
        return given


def _finished_from_the_start(
    model: CudaExportModel, parts: Sequence[Segment], values_of: Callable[[Tensors], dict[str, Any]], inputs: Tensors
) -> Run:
    return (yield from _finished(parts, values_of(inputs), model))


class CudaExportRuntime(TorchExportRuntime):
    """The runtime "torch_export" on one lane of a GPU."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        self.device = graphs.backend.device.partition(":")[0]

    def _model(self, exported: Any, program: Program, config: LoadConfig, mutates: bool) -> LoadedModel:
        return CudaExportModel(exported, program, config, copies_inputs=mutates, graphs=self._graphs)
