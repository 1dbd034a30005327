"""Models whose weights may be taken away and brought back between batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

from gpu_sharing.memory.streaming import Layout
from gpu_sharing.runtimes.base import Run

Gate: TypeAlias = Callable[[int], None]
"""Called with a segment's number, on the thread that runs it, before it does: returns once its weights can be counted on."""


class Weights(Protocol):
    """A model's weights. See `gpu_sharing.runtimes.torch_weights.TorchWeights`."""

    layout: Layout

    def save(self, host: memoryview) -> None: ...
    def drop(self) -> None: ...
    def lie_over(self, memory: Any) -> None: ...


@runtime_checkable
class Movable(Protocol):
    """A loaded model that can say where its weights are. Models made of it by `again` share them, and its gate."""

    gate: Gate | None

    def weights(self) -> Weights | None:
        """None: they cannot be moved."""
        ...


def gated(run: Run, gate: Gate) -> Run:
    """The same run, each of whose segments waits for its weights."""
    index = 0
    try:
        while True:
            gate(index)
            try:
                next(run)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            index += 1
            yield
    finally:
        run.close()
