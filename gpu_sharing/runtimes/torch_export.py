"""Programs saved by `torch.export.save`, run by torch."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace

from gpu_sharing.runtimes.archive import opened
from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, LoadedModel, Run, Tensors
from gpu_sharing.runtimes.movable import Gate, Weights, gated
from gpu_sharing.runtimes.program import Program, read_program, write_clean
from gpu_sharing.runtimes.signature import infer
from gpu_sharing.runtimes.torch_segments import (
    Segment,
    cut,
    cut_again,
    peak_bytes,
    placeholders,
    run_all,
    run_one,
    whole,
)
from gpu_sharing.runtimes.torch_tensors import from_torch, to_torch
from gpu_sharing.runtimes.torch_values import Interface, interface_of
from gpu_sharing.runtimes.torch_weights import TorchWeights
from gpu_sharing.runtimes.verification import verified
from gpu_sharing.runtimes.warmup import Ranges, finish, made_up
from gpu_sharing.tensors import Signature
from gpu_sharing.units import Bytes

# Inputs are read-only views of shared memory. Programs that write into them are given copies instead.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class TorchExportRuntime:
    """The runtime "torch_export"."""

    name = "torch_export"
    starts_threads = False
    device = "cpu"

    def check(self, path: Path) -> None:
        """Raises ArtefactRefused unless every member of the .pt2 file is harmless to load. Deserialises none of them."""
        with opened(path) as archive:
            program = read_program(archive)
            archive.check_all()
        resolved_operators(program)

    def load(self, path: Path, config: LoadConfig) -> LoadedModel:
        """Loads a clean copy made of what was checked, and tries its batch axes. Raises ArtefactRefused where it cannot be served."""
        torch.set_num_threads(config.threads)
        with opened(path) as archive, tempfile.NamedTemporaryFile(suffix=".pt2") as clean:
            program = read_program(archive)
            operators = resolved_operators(program)
            write_clean(program, archive, clean, device=self.device)
            clean.flush()
            exported = _loaded(clean.name, path.name)
        mutates = any(
            isinstance(operator, torch._ops.OpOverload) and operator._schema.is_mutable for operator in operators
        )
        return self._model(exported, program, config, mutates)

    def _model(self, exported: Any, program: Program, config: LoadConfig, mutates: bool) -> LoadedModel:
        return TorchExportModel(exported, program, config, copies_inputs=mutates)


class TorchExportModel:
    """An exported program, cut into segments of about one quantum.

    ranges: legal extents by symbol. unbatched_because: why requests run one at a time, where the artefact would have
    allowed batches; else "". gate: see `movable.Movable`; None: its weights stay.
    """

    gate: Gate | None = None

    def __init__(self, exported: Any, program: Program, config: LoadConfig, *, copies_inputs: bool) -> None:
        self._copies_inputs = copies_inputs
        self._interface: Interface = interface_of(exported, program)
        weights = _weights(exported)
        self.weight_bytes: Bytes = _bytes_of(weights)
        module: Any = _unlifted(exported)
        self._module = module
        self._slots = placeholders(module)
        self._parts = whole(module)
        self.ranges: Ranges = self._interface.ranges
        before = [tensor._version for tensor in weights]
        ran = self._settle(config)
        if before != [tensor._version for tensor in weights]:
            raise ArtefactRefused("the model changes its own weights while it runs; export it in eval mode")
        if ran:
            self._parts = self._cut(module, config)
        self.segments: tuple[str, ...] = tuple(part.name for part in self._parts)

    def _settle(self, config: LoadConfig) -> bool:
        """Finds the signature. Whether a made-up input, or the operator's, ran."""
        found = infer(
            self._interface.inputs,
            self._interface.outputs,
            batch_axes=config.batch_axes,
            max_rows=config.max_batch_size,
        )
        settled = verified(_within(found, self.ranges), self._execute, config, self.ranges)
        self.signature: Signature = settled.signature
        self.preferred_extent, self.unbatched_because = settled.extent, settled.unbatched_because
        return settled.ran

    def again(self, config: LoadConfig) -> LoadedModel:
        """The same program over the same weights, for another replica."""
        other = copy.copy(self)
        other._settle(config)
        return other

    def run(self, inputs: Tensors) -> Run:
        """One segment at each `next`; inference mode never spans a boundary, since the thread runs other models there."""
        return self._run(inputs) if self.gate is None else gated(self._run(inputs), self.gate)

    def weights(self) -> Weights | None:
        """See `movable.Movable`."""
        try:
            return TorchWeights(self._module, [part.compute for part in self._parts])
        except ValueError:
            return None

    def _run(self, inputs: Tensors) -> Run:
        if not self._parts:
            raise RuntimeError("the model has been closed")
        parts, values, flat = self._parts, self._values(inputs), []
        for index, part in enumerate(parts):
            with torch.inference_mode():
                flat = run_one(part, values)
            if index + 1 < len(parts):
                yield
        return self._named(flat)

    def close(self) -> None:
        """Lets go of the weights; a run in flight still ends."""
        self._parts = ()
        self._module = None

    def activation_bytes(self, inputs: Tensors) -> Bytes:
        """The most memory that a batch of these inputs holds at once, its weights not counted. Runs the batch, slowly."""
        return peak_bytes(self._module, list(self._values(inputs).values()))

    def _device_settles(self) -> Callable[[], None] | None:
        return None

    def _execute(self, inputs: Tensors) -> dict[str, np.ndarray]:
        return finish(self.run(inputs))

    def _values(self, inputs: Tensors) -> dict[str, Any]:
        return dict(zip(self._slots, self._interface.arguments(inputs, self._tensor), strict=True))

    def _tensor(self, name: str, value: np.ndarray) -> torch.Tensor:
        tensor = to_torch(value, self._interface.datatypes[name])
        return tensor.clone() if self._copies_inputs else tensor

    def _named(self, flat: list[Any]) -> dict[str, np.ndarray]:
        return {name: from_torch(flat[index]) for name, index in self._interface.kept_outputs}

    def _cut(self, module: Any, config: LoadConfig) -> tuple[Segment, ...]:
        """The segments, if they compute to the bit what the whole program does; else the whole program as one."""
        inputs = made_up(self.signature, 1, warmup=config.warmup, ranges=self.ranges, extent=self.preferred_extent)
        parts = cut_again(module, config.segments) if config.segments is not None else None
        if parts is None:
            parts = cut(module, list(self._values(inputs).values()), self._device_settles())
        if len(parts) == 1:
            return self._parts
        with torch.inference_mode():
            expected = self._named(run_all(self._parts, self._values(inputs)))
            given = self._named(run_all(parts, self._values(inputs)))
        same = all(given[name].tobytes() == value.tobytes() for name, value in expected.items())
        return parts if same else self._parts


def resolved_operators(program: Program) -> list[Any]:
    """The operators that a program calls. Raises ArtefactRefused for one that this torch does not have or that is no operator."""
    found = []
    for name in sorted(program.operators):
        target: Any = torch
        if name.startswith("torch.ops."):
            for part in name.split(".")[1:]:
                target = getattr(target, part, None)
            if not isinstance(target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
                raise ArtefactRefused(f"models/model.json: operator {name} does not exist in torch {torch.__version__}")
            found.append(target)
    return found


def _loaded(clean: str, name: str) -> Any:
    from torch.export.pt2_archive._package import load_pt2

    try:
        # torch.export.load would answer an error with a try at older, pickled formats, and hide what was wrong.
        return load_pt2(clean).exported_programs["model"]
    except Exception as broken:  # torch raises many kinds for programs that do not fit together
        reason = (str(broken).strip().splitlines() or [type(broken).__name__])[-1]
        raise ArtefactRefused(f"{name}: torch {torch.__version__} cannot load it: {reason[:400]}") from broken


def _unlifted(exported: Any) -> Any:
    """The program with its weights inside. Its guards are text of the file, which would be evaluated: they stay out."""
    return exported.module(check_guards=False)


def _bytes_of(weights: list[torch.Tensor]) -> Bytes:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in weights}
    return sum(storages.values())


def _weights(exported: Any) -> list[torch.Tensor]:
    held = [*exported.state_dict.values(), *exported.constants.values()]
    return [value for value in held if isinstance(value, torch.Tensor)]


def _within(signature: Signature, ranges: Ranges) -> Signature:
    """The same signature with no more rows than the program was exported for."""
    limits = [
        ranges[spec.symbols[spec.batch_axis]][1]
        for spec in signature.inputs
        if spec.batch_axis is not None and spec.symbols[spec.batch_axis] in ranges
    ]
    rows = min([signature.max_batch_size, *(limit for limit in limits if limit is not None)])
    return replace(signature, max_batch_size=rows)
