"""What an exported program takes and gives, read from its placeholders and its output node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gpu_sharing.runtimes.base import ArtefactRefused, Tensors
from gpu_sharing.runtimes.program import Program
from gpu_sharing.runtimes.torch_tensors import DATATYPES
from gpu_sharing.runtimes.warmup import Ranges
from gpu_sharing.tensors import TensorSpec

LENIENT_LEAST = 2
"""Export writes a least extent of 2 for dimensions that it never saw as 0 or 1; they take 1 all the same."""


@dataclass(frozen=True)
class Interface:
    """kept_outputs: (name, index among the flat outputs); None outputs are left out.

    slots: per flat input, the name of a tensor, of an integer, or None with a constant.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kept_outputs: tuple[tuple[str, int], ...]
    slots: tuple[tuple[str | None, bool, Any], ...]
    ranges: Ranges
    datatypes: Mapping[str, str]

    def arguments(self, inputs: Tensors, tensor: Callable[[str, np.ndarray], torch.Tensor]) -> list[Any]:
        """The flat arguments of one call. KeyError where an input is missing, ValueError where its shape does not fit."""
        check_shapes(self.inputs, inputs, self.ranges)
        flat: list[Any] = []
        for name, is_integer, constant in self.slots:
            if name is None:
                flat.append(constant)
            else:
                flat.append(int(inputs[name]) if is_integer else tensor(name, inputs[name]))
        return flat


def check_shapes(specs: Sequence[TensorSpec], inputs: Tensors, ranges: Ranges) -> None:
    """Raises ValueError for an extent that the program was not exported for: its operators would read past their tables."""
    seen: dict[str, int] = {}
    for spec in specs:
        shape = inputs[spec.name].shape
        if len(shape) != len(spec.shape):
            raise ValueError(f"input {spec.name!r}: {len(shape)} dimensions where the model takes {len(spec.shape)}")
        for axis, (extent, fixed) in enumerate(zip(shape, spec.shape, strict=True)):
            symbol = spec.symbols[axis] if fixed is None else ""
            least, most = ranges.get(symbol, (0, None)) if fixed is None else (fixed, fixed)
            if extent < least or (most is not None and extent > most):
                limit = str(least) if least == most else f"{least} to {'any' if most is None else most}"
                raise ValueError(f"input {spec.name!r}: axis {axis} is {extent}; the model takes {limit}")
            if symbol and seen.setdefault(symbol, extent) != extent:
                raise ValueError(f"input {spec.name!r}: axis {axis} is {extent} where another input has {seen[symbol]}")


def interface_of(exported: Any, program: Program) -> Interface:
    """Reads the shapes that export traced. Raises ArtefactRefused for a tensor of a type that cannot be served."""
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    inputs: list[TensorSpec] = []
    slots: list[tuple[str | None, bool, Any]] = []
    for name, argument in program.inputs:
        if "as_tensor" in argument or "as_sym_int" in argument:
            spec = _spec(name, nodes[name].meta["val"])
            inputs.append(spec)
            slots.append((name, "as_sym_int" in argument, None))
        else:
            ((kind, value),) = argument.items()
            slots.append((None, False, None if kind == "as_none" else value))
    outputs, kept = _outputs(exported, program)
    return Interface(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        kept_outputs=tuple(kept),
        slots=tuple(slots),
        ranges={str(symbol): _range(bound) for symbol, bound in exported.range_constraints.items()},
        datatypes={spec.name: spec.datatype for spec in inputs},
    )


def _outputs(exported: Any, program: Program) -> tuple[list[TensorSpec], list[tuple[str, int]]]:
    (node,) = [node for node in exported.graph.nodes if node.op == "output"]
    specs, kept = [], []
    for index, (name, value) in enumerate(zip(program.output_names, node.args[0], strict=True)):
        traced = value.meta["val"] if isinstance(value, torch.fx.Node) else value
        if traced is not None and not isinstance(traced, str):
            specs.append(_spec(name, traced))
            kept.append((name, index))
    return specs, kept


def _spec(name: str, traced: Any) -> TensorSpec:
    if isinstance(traced, (bool, torch.SymBool)):
        return TensorSpec(name=name, datatype="BOOL", shape=())
    if isinstance(traced, (int, torch.SymInt)):
        return TensorSpec(name=name, datatype="INT64", shape=())
    if isinstance(traced, (float, torch.SymFloat)):
        return TensorSpec(name=name, datatype="FP64", shape=())
    if traced.dtype not in DATATYPES:
        raise ArtefactRefused(f"tensor {name!r}: type {traced.dtype} cannot be served")
    shape = tuple(extent if isinstance(extent, int) else None for extent in traced.shape)
    symbols = tuple("" if isinstance(extent, int) else str(extent.node.expr) for extent in traced.shape)
    return TensorSpec(name=name, datatype=DATATYPES[traced.dtype], shape=shape, symbols=symbols)


def _range(bound: Any) -> tuple[int, int | None]:
    least = 1 if not bound.lower.is_finite or int(bound.lower) <= LENIENT_LEAST else int(bound.lower)
    # Unbounded means either infinity or torch's own greatest index.
    most = int(bound.upper) if bound.upper.is_finite and int(bound.upper) < 1 << 31 else None
    return least, most
