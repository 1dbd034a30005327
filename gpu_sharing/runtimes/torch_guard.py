"""Finds tenants' work on streams that are no lane's: kernels of the default stream, and of plain ones, run on every SM."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class WrongStream(RuntimeError):
    """An operator was called on tensors of the device while the thread's current stream was no lane's."""


class StreamGuard(TorchDispatchMode):
    """In `with StreamGuard(streams):` every operator of this thread on the device must be launched on one of these streams.

    For tests: looking at each operator costs more than many of them take. found: the operators that were not, by name.
    """

    def __init__(
        self,
        streams: Collection[int],
        *,
        raises: bool = True,
        current: Callable[[], int] = lambda: int(torch.cuda.current_stream().cuda_stream),
        is_there: Callable[[torch.Tensor], bool] = lambda tensor: tensor.is_cuda,
    ) -> None:
        """streams: by number. raises: WrongStream at once, in place of only noting it."""
        super().__init__()
        self._streams, self._raises = frozenset(streams), raises
        self._current, self._is_there = current, is_there
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Looks at what goes in and what comes out: a factory has no tensor among its arguments."""
        given = kwargs or {}
        made = func(*args, **given)
        if self._touches((args, given, made)):
            stream = self._current()
            if stream not in self._streams:
                self.found.append(str(func))
                if self._raises:
                    raise WrongStream(f"{func} was launched on stream {stream:#x}, which is no lane's")
        return made

    def _touches(self, value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            return self._is_there(value)
        if isinstance(value, dict):
            return any(map(self._touches, value.values()))
        return isinstance(value, (list, tuple)) and any(map(self._touches, value))
