"""A request's head: what it says of its inputs and outputs, the plan that follows, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from gpu_sharing.tensors import TensorSpec
from gpu_sharing.units import Bytes
from gpu_sharing.worker.messages import RegionPart
from services.executor.core.typed import Values

SHARED_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
"""Parameters that say where in shared memory a tensor lies. Of system memory frontends resolve them; of a device's they put the
region's id in place of its name."""


class Invalid(Exception):
    """A request that cannot be served as it is.

    field: as the protocol spells it, with the tensor's name: "inputs[1] 'state'.shape". problem: what is wrong, with the
    limit. unsupported: the protocol allows it, this server does not.
    """

    def __init__(self, field: str, problem: str, *, unsupported: bool = False, **facts: object) -> None:
        super().__init__(f"{field}: {problem}")
        self.field, self.problem, self.unsupported, self.facts = field, problem, unsupported, facts


class Limits(NamedTuple):
    """What one request may be, whatever its model does. element_bytes: the longest element of BYTES.

    utf8: elements of BYTES are text to the model's runtime, as onnxruntime's strings are: it takes and gives them as UTF-8,
    and one element that is none would fail the whole batch.
    """

    rows: int = 4096
    element_bytes: Bytes = 16 << 20
    utf8: bool = False


class InputHead(NamedTuple):
    """One input as the request names it.

    typed: the fields of `contents` that hold anything, with their values; None: there is no `contents`. shared: the values of those
    of its parameters that are in SHARED_MEMORY.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    typed: dict[str, Values] | None = None
    shared: Mapping[str, object] = MappingProxyType({})


class OutputHead(NamedTuple):
    """One output as the request asks for it. classes: the value of its parameter `classification`, if there is one. shared: see
    InputHead."""

    name: str
    classes: object = None
    shared: Mapping[str, object] = MappingProxyType({})


class PlannedInput(NamedTuple):
    """An input that fits.

    place: its index in the signature. length_bytes: None for BYTES, whose elements have to be walked. elements: how many.
    field: what to call it in a message. typed: its bytes, where they came as typed contents. most_bytes, utf8: of an element
    of BYTES, see Limits. source: where its bytes lie in a region; then none may come with the request.
    """

    place: int
    shape: tuple[int, ...]
    elements: int
    length_bytes: Bytes | None
    field: str
    typed: bytes | None
    most_bytes: Bytes = Limits().element_bytes
    utf8: bool = False
    source: RegionPart | None = None


class Plan(NamedTuple):
    """A request's head, checked. Requests with equal heads have equal plans.

    outputs: indices in the signature, in the order wanted. rows: extent at the batch axis. shapes_key: what shapes add to
    the key of a batch. keyed: positions of the inputs whose bytes add to it too. classes: for each output, how many of its
    largest values are wanted in its place, 0 standing for the output itself; empty: none is wanted so. sinks: where outputs go that
    go to regions. in_regions: whether anything of the request lies in one.
    """

    inputs: tuple[PlannedInput, ...]
    outputs: tuple[int, ...]
    rows: int
    shapes_key: bytes
    keyed: tuple[int, ...]
    raw: bool
    classes: tuple[int, ...] = ()
    sinks: tuple[RegionPart, ...] = ()
    in_regions: bool = False

    @property
    def sources(self) -> tuple[RegionPart, ...]:
        """Where inputs lie that lie in regions."""
        return tuple(each.source for each in self.inputs if each.source is not None)


def names_of(specs: Sequence[TensorSpec]) -> str:
    """The tensors' names, as a message lists them."""
    return quoted([spec.name for spec in specs]) or "none"


def quoted(names: Sequence[str]) -> str:
    """Names as a message lists them, the first sixteen."""
    return ", ".join(repr(name) for name in names[:16])
