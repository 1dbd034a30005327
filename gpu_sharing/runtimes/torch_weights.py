"""A torch program's weights, laid out in the order in which its segments need them, wherever they are to lie."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gpu_sharing.memory.streaming import Layout, placed


class TorchWeights:
    """All tensors that segments hold. layout: of their storages; tensors that share one go on sharing it."""

    def __init__(self, module: Any, segments: Sequence[Any]) -> None:
        """segments: what each runs, in order. ValueError for weights that are not plain, dense memory."""
        parts = [list(_tensors(each)) for each in segments]
        self._tensors = list({id(tensor): tensor for tensor in [*itertools.chain(*parts), *_tensors(module)]}.values())
        if any(tensor.layout is not torch.strided or tensor.is_quantized for tensor in self._tensors):
            raise ValueError("weights that are sparse or quantised stay where they are")
        storages = {_key(tensor): tensor.untyped_storage() for tensor in self._tensors}
        offsets, size_bytes = placed([storage.nbytes() for storage in storages.values()])
        self._offsets = dict(zip(storages, offsets, strict=True))
        self._lengths = {key: storage.nbytes() for key, storage in storages.items()}
        self._shapes = [
            (_key(tensor), tensor.size(), tensor.stride(), tensor.storage_offset()) for tensor in self._tensors
        ]
        self.layout = Layout(size_bytes, tuple(self._upto(parts)))

    def save(self, host: memoryview) -> None:
        """Copies them there, once. host: at least `layout.size_bytes`."""
        flat = torch.frombuffer(host, dtype=torch.uint8)
        for tensor in self._tensors:
            key = _key(tensor)
            if (length := self._lengths[key]) > 0:
                source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
                flat[self._offsets[key] : self._offsets[key] + length].copy_(source[:length])

    def drop(self) -> None:
        """Lets go of where they were; nothing may run until `lie_over`."""
        for tensor in self._tensors:
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        if any(tensor.is_cuda for tensor in self._tensors):
            # torch would keep the memory for itself. Giving it back may make the driver wait for the device: at a load, only.
            torch.cuda.empty_cache()

    def lie_over(self, memory: Any) -> None:
        """From now on they lie there, whatever is in it. memory: a writable buffer, or what has `__cuda_array_interface__`."""
        flat = _flat(memory)
        storage = flat.untyped_storage()
        for tensor, (key, size, stride, offset) in zip(self._tensors, self._shapes, strict=True):
            start = self._offsets[key] // tensor.element_size()
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=flat.device).set_(
                storage, start + offset, size, stride
            )

    def _upto(self, parts: Sequence[Sequence[torch.Tensor]]) -> Iterator[int]:
        end = 0
        for tensors in parts:
            ends = (self._offsets[_key(tensor)] + self._lengths[_key(tensor)] for tensor in tensors)
            end = max([end, *ends])
            yield end


def _key(tensor: torch.Tensor) -> int:
    """Of a storage. Empty ones have no address, and share nothing."""
    return tensor.untyped_storage().data_ptr() or -id(tensor)


def _flat(memory: Any) -> torch.Tensor:
    if hasattr(memory, "__cuda_array_interface__"):
        return torch.as_tensor(memory, device="cuda")
    return torch.frombuffer(memory, dtype=torch.uint8)


def _tensors(module: Any) -> Iterator[torch.Tensor]:
    """Those that a module and what is in it hold, in the order in which its graph names them first."""
    graph = getattr(module, "graph", None)
    for node in graph.nodes if graph is not None else ():
        if node.op == "get_attr" and isinstance(found := _attribute(module, node.target), torch.Tensor):
            yield found
    for each in module.modules():
        for held in (each._parameters, each._buffers, each.__dict__):
            yield from (value for value in held.values() if isinstance(value, torch.Tensor))


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module
