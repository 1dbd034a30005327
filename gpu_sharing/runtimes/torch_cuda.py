"""An exported program on a GPU: weights there, inputs in and outputs back by one copy each, the rest out of its tenant's pool."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gpu_sharing.memory.accounts import Accounts
from gpu_sharing.runtimes.base import LoadConfig, LoadedModel, Run, Tensors
from gpu_sharing.runtimes.graphs import GraphPolicy, Key
from gpu_sharing.runtimes.program import Program
from gpu_sharing.runtimes.torch_export import TorchExportModel, TorchExportRuntime
from gpu_sharing.runtimes.torch_graphs import Graphs, finished
from gpu_sharing.runtimes.torch_place import Backend, Block, block_of, bring_in, brought_back
from gpu_sharing.runtimes.torch_segments import Segment
from gpu_sharing.units import Bytes

_MODELS = itertools.count(1)

GraphsOf = Callable[[str], Graphs]
"""A tenant's chains on the lane."""


class LaneGraphs:
    """Every tenant's chains on one lane: each tenant with a budget of its own, by its account."""

    def __init__(self, backend: Backend, accounts: Accounts, *, partition: int = 0) -> None:
        """partition: the lane's number."""
        self.backend, self._accounts, self._partition = backend, accounts, partition

    def __call__(self, tenant: str) -> Graphs:
        """See `GraphsOf`. While the tenant has a replica here it is the same one."""
        account = self._accounts.of(tenant)
        if account.graphs_on is None:
            policy = GraphPolicy(account.graphs.limit_bytes)
            account.graphs_on = Graphs(self.backend, policy, account, partition=self._partition)
        found: Graphs = account.graphs_on
        return found


class CudaExportModel(TorchExportModel):
    """An exported program on a GPU. What it computes on the lane's thread may be captured; everything is on the thread's stream."""

    def __init__(
        self, exported: Any, program: Program, config: LoadConfig, *, copies_inputs: bool, graphs_of: GraphsOf
    ) -> None:
        self._graphs_of = graphs_of
        self._graphs = graphs_of(config.tenant)
        self._number = next(_MODELS)
        super().__init__(exported, program, config, copies_inputs=copies_inputs)

    @property
    def takes_lent(self) -> bool:
        """See `lent.Borrower`: unless a number among the inputs is needed on the host."""
        return not any(is_integer for _, is_integer, _ in self._interface.slots)

    def again(self, config: LoadConfig) -> LoadedModel:
        """The same program over the same weights, with graphs of its own, on the pool of whoever has it."""
        other = copy.copy(self)
        other._graphs, other._number = self._graphs_of(config.tenant), next(_MODELS)
        other._settle(config)
        return other

    def _run(self, inputs: Tensors) -> Run:
        """One segment launched at each `next`. The arrays that it returns are filled once the stream has come so far."""
        if not self._parts:
            raise RuntimeError("the model has been closed")
        graphs = self._graphs
        if not graphs.backend.on_lane():
            return self.run_eagerly(inputs)
        # A number among the inputs would be baked into a graph.
        if any(is_integer for _, is_integer, _ in self._interface.slots):
            return graphs.counted(self.run_eagerly(inputs))
        shape = ",".join("x".join(map(str, value.shape)) for value in inputs.values())
        rows = max((value.shape[0] for value in inputs.values() if value.ndim), default=1)
        key = Key(self._number, graphs.partition, rows, shape)
        return graphs.counted(graphs.run(key, self._parts, self._slots, self, inputs))

    def run_eagerly(self, inputs: Tensors) -> Run:
        """Without graphs."""
        graphs, parts = self._graphs, self._parts
        with graphs.drawing():
            values = self._values(inputs)
        return (yield from finished(parts, values, self, graphs))

    def close(self) -> None:
        """Lets go of the weights, and of its graphs; none of its batches runs."""
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

    def activation_bytes(self, inputs: Tensors) -> Bytes:
        """See TorchExportModel."""
        with self._graphs.drawing():
            return super().activation_bytes(inputs)

    def _cut(self, module: Any, config: LoadConfig) -> tuple[Segment, ...]:
        with self._graphs.drawing():
            return super()._cut(module, config)

    def _device_settles(self) -> Callable[[], None] | None:
        return self._graphs.backend.synchronize

    def _execute(self, inputs: Tensors) -> dict[str, np.ndarray]:
        given = super()._execute(inputs)
        self._graphs.backend.synchronize()
        return given


class CudaExportRuntime(TorchExportRuntime):
    """The runtime "torch_export" on one lane of a GPU."""

    def __init__(self, graphs_of: GraphsOf, device: str = "cuda:0") -> None:
        """device: as torch names it."""
        self._graphs_of = graphs_of
        self.device = device.partition(":")[0]

    def _model(self, exported: Any, program: Program, config: LoadConfig, mutates: bool) -> LoadedModel:
        return CudaExportModel(exported, program, config, copies_inputs=mutates, graphs_of=self._graphs_of)
