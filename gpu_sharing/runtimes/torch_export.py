"""Programs saved by `torch.export.save`, run by torch."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_sharing.runtimes.archive import opened
from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, LoadedModel, Run, Tensors
from gpu_sharing.runtimes.program import Program, read_program, write_clean
from gpu_sharing.runtimes.signature import infer
from gpu_sharing.runtimes.torch_tensors import from_torch, to_torch
from gpu_sharing.runtimes.torch_values import Interface, interface_of
from gpu_sharing.runtimes.verification import verified
from gpu_sharing.runtimes.warmup import Ranges
from gpu_sharing.tensors import Signature
from gpu_sharing.units import Bytes

# Inputs are read-only views of shared memory. Programs that write into them are given copies instead.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class TorchExportRuntime:
    """The runtime "torch_export"."""

    name = "torch_export"

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
            write_clean(program, archive, clean, device="cpu")
            clean.flush()
            exported = _loaded(clean.name, path.name)
        mutates = any(
            isinstance(operator, torch._ops.OpOverload) and operator._schema.is_mutable for operator in operators
        )
        return TorchExportModel(exported, program, config, copies_inputs=mutates)


class TorchExportModel:
    """An exported program, run as one segment.

    ranges: legal extents by symbol. unbatched_because: why requests run one at a time, where the artefact would have
    allowed batches; else "".
    """

    segments: tuple[str, ...] = ("program",)

    def __init__(self, exported: Any, program: Program, config: LoadConfig, *, copies_inputs: bool) -> None:
        self._copies_inputs = copies_inputs
        self._interface: Interface = interface_of(exported, program)
        weights = _weights(exported)
        self.weight_bytes: Bytes = sum(
            {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in weights}.values()
        )
        self._module: Any = exported.module(check_guards=False)
        self.ranges: Ranges = self._interface.ranges
        self.signature: Signature = infer(
            self._interface.inputs,
            self._interface.outputs,
            batch_axes=config.batch_axes,
            max_rows=config.max_batch_size,
        )
        self.signature = _within(self.signature, self.ranges)
        before = [tensor._version for tensor in weights]
        found = verified(self.signature, self._execute, config, self.ranges)
        self.signature, self.preferred_extent, self.unbatched_because = found
        if before != [tensor._version for tensor in weights]:
            raise ArtefactRefused("the model changes its own weights while it runs; export it in eval mode")

    def run(self, inputs: Tensors) -> Run:
        """One segment: the whole program, without a boundary inside."""
        yield from ()
        return self._execute(inputs)

    def close(self) -> None:
        """Lets go of the weights."""
        self._module = None

    def _execute(self, inputs: Tensors) -> dict[str, np.ndarray]:
        if self._module is None:
            raise RuntimeError("the model has been closed")
        with torch.inference_mode():
            arguments = self._interface.arguments(inputs, lambda name, value: self._tensor(name, value))
            flat = self._module(*arguments)
            return {name: from_torch(flat[index]) for name, index in self._interface.kept_outputs}

    def _tensor(self, name: str, value: np.ndarray) -> torch.Tensor:
        tensor = to_torch(value, self._interface.datatypes[name])
        return tensor.clone() if self._copies_inputs else tensor


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


def _weights(exported: Any) -> list[torch.Tensor]:
    held = [*exported.state_dict.values(), *exported.constants.values()]
    return [value for value in held if isinstance(value, torch.Tensor)]


def _within(signature: Signature, ranges: Ranges) -> Signature:
    """The same signature with no more rows than the program was exported for."""
    from msgspec.structs import replace

    limits = [
        ranges[spec.symbols[spec.batch_axis]][1]
        for spec in signature.inputs
        if spec.batch_axis is not None and spec.symbols[spec.batch_axis] in ranges
    ]
    rows = min([signature.max_batch_size, *(limit for limit in limits if limit is not None)])
    return replace(signature, max_batch_size=rows)
