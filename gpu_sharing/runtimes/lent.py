"""A batch's inputs of which some rows lie on the device already, for models that can take them from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from gpu_sharing.units import Bytes


class Piece(NamedTuple):
    """Bytes of an input. at: where they belong in it. bytes: what torch makes a tensor of bytes of, without a copy."""

    at: Bytes
    length_bytes: Bytes
    bytes: object


class LentInputs(dict[str, np.ndarray]):
    """Tensors by name, of whose bytes those in `lent` are nothing yet: whoever computes on the device copies them there, before
    anything reads them, on the stream that it computes on."""

    def __init__(self, inputs: Mapping[str, np.ndarray], lent: Mapping[str, Sequence[Piece]]) -> None:
        super().__init__(inputs)
        self.lent = lent

    def is_whole(self, name: str) -> bool:
        """Whether nothing of the input lies on the host."""
        return sum(piece.length_bytes for piece in self.lent.get(name, ())) == self[name].nbytes


@runtime_checkable
class Borrower(Protocol):
    """A model whose `run` takes LentInputs."""

    takes_lent: bool
