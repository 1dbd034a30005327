"""From the bytes of inference.ModelInferRequest to tensors in an arena that fit the model's signature."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from gpu_sharing.memory.arena import Arena
from gpu_sharing.tensors import Signature
from gpu_sharing.worker.messages import TensorRef
from services._proto.inference.grpc_service_pb2 import ModelInferRequest
from services.common.errors import Reason, Refusal, invalid
from services.executor.core.elements import TEXT_AT_ONCE, walk_elements
from services.executor.core.heads import SHARED_MEMORY, InputHead, Invalid, Limits, OutputHead, Plan, PlannedInput
from services.executor.core.requests import check_length, plan
from services.executor.core.typed import AS_THEY_ARE, Values
from services.executor.core.wire import Malformed, scan

ALIGNMENT = 64
REMEMBERED_HEADS = 256
"""Heads of requests whose plans are kept, a replica: a client's requests differ in little but their tensors."""
REMEMBERED_HEAD_BYTES = 4096
WALKED_AT_ONCE = 4096
"""Elements of BYTES that are checked before others get a turn."""
KEYED_BYTES = 64 << 10
"""Inputs without a batch axis that are longer than this are not compared: such requests run alone."""


class Decoded(NamedTuple):
    """A request that fits. spans: where in the payload each raw content lies."""

    plan: Plan
    model_name: str
    request_id: str
    spans: tuple[tuple[int, int], ...]


class Placed(NamedTuple):
    """A request's tensors in an arena. block: what has to be freed again; None: nothing was allocated."""

    block: int | None
    refs: tuple[TensorRef, ...]
    contents: tuple[bytes | memoryview, ...]


class Decoder:
    """Decodes the requests of one replica."""

    def __init__(self, signature: Signature, limits: Limits | None = None) -> None:
        self._signature, self._limits = signature, limits or Limits()
        self._remembered: dict[tuple[bytes, int], tuple[Plan, str]] = {}

    def decode(self, payload: bytes | memoryview) -> Decoded:
        """Checks everything but the elements of BYTES. Raises Refusal: FIELD_INVALID or UNSUPPORTED, naming the field."""
        try:
            head, request_id, spans = scan(payload)
            found = self._remembered.get((head, len(spans)))
            planned, model_name = found or self._plan(head, len(spans))
            for each, (_, length) in zip(planned.inputs, spans, strict=False):
                if each.length_bytes != length:
                    check_length(each, length)
            return Decoded(planned, model_name, request_id.decode() if request_id else "", spans)
        except Invalid as problem:
            raise as_refusal(problem) from None
        except Malformed as problem:
            raise invalid("payload", f"is no ModelInferRequest: {problem}") from None
        except DecodeError:
            raise invalid("payload", "is no ModelInferRequest: a message inside it cannot be read") from None
        except UnicodeDecodeError:
            raise invalid("id", "is not UTF-8") from None

    def _plan(self, head: bytes, raw_count: int) -> tuple[Plan, str]:
        request = ModelInferRequest.FromString(head)
        inputs = [
            InputHead(
                each.name,
                each.datatype,
                tuple(each.shape),
                _typed(each),
                _shared(each.parameters),
            )
            for each in request.inputs
        ]
        outputs = [OutputHead(each.name, _classes(each), _shared(each.parameters)) for each in request.outputs]
        planned = plan(inputs, outputs, raw_count, self._signature, self._limits)
        if planned.raw and len(head) <= REMEMBERED_HEAD_BYTES:
            if len(self._remembered) >= REMEMBERED_HEADS:
                self._remembered.clear()
            self._remembered[head, raw_count] = planned, request.model_name
        return planned, request.model_name


def _classes(asked: ModelInferRequest.InferRequestedOutputTensor) -> object:
    if "classification" not in asked.parameters:
        return None
    value = asked.parameters["classification"]
    kind = value.WhichOneof("parameter_choice")
    return getattr(value, kind) if kind is not None else ""


def _shared(parameters: Any) -> dict[str, object]:
    """Those that say where in shared memory a tensor lies, with their values."""
    found: dict[str, object] = {}
    for name in SHARED_MEMORY:
        if name in parameters:
            kind = parameters[name].WhichOneof("parameter_choice")
            found[name] = getattr(parameters[name], kind) if kind is not None else None
    return found


def _typed(given: ModelInferRequest.InferInputTensor) -> dict[str, Values] | None:
    if not given.HasField("contents"):
        return None
    typed: dict[str, Values] = {field.name: value for field, value in given.contents.ListFields()}
    if len(typed) == 1 and (kind := next(iter(typed))) in AS_THEY_ARE:
        # Alone in its message and packed: behind a tag and a length lie the elements themselves.
        item = np.dtype("<f4" if kind == "fp32_contents" else "<f8")
        written = given.contents.SerializeToString()
        return {kind: np.frombuffer(written, item, offset=len(written) - len(typed[kind]) * item.itemsize)}
    return typed


def place(arena: Arena, decoded: Decoded, payload: bytes, owner: int = 1) -> Placed:
    """Copies each tensor into the arena, once. owner: see `Arena.allocate`. Raises Refusal (OUT_OF_MEMORY) where there is no room."""
    planned, spans = decoded.plan, decoded.spans
    if not planned.raw:
        return place_typed(arena, planned)
    if len(spans) == 1:
        start, length = spans[0]
        contents: tuple[bytes | memoryview, ...] = (payload[start : start + length],)
    else:
        contents = tuple([payload[start : start + length] for start, length in spans])
    return _copied(arena, planned.inputs, contents, owner)


def place_typed(arena: Arena, planned: Plan, owner: int = 1) -> Placed:
    """Copies tensors that came as typed contents. Raises Refusal (OUT_OF_MEMORY)."""
    return _copied(arena, planned.inputs, tuple([each.typed or b"" for each in planned.inputs]), owner)


def in_place(decoded: Decoded, payload: memoryview, base: int) -> Placed:
    """The tensors of a payload that lies in the arena at `base` already, and stays there. Nothing is copied."""
    inputs, spans = decoded.plan.inputs, decoded.spans
    refs = [
        TensorRef(each.place, each.shape, base + start, length)
        for each, (start, length) in zip(inputs, spans, strict=True)
    ]
    contents = tuple(payload[start : start + length] for start, length in spans)
    return Placed(None, tuple(refs), contents)


def elements_to_walk(planned: Plan) -> int:
    """How many elements of BYTES have to be checked one by one."""
    return sum(each.elements for each in planned.inputs if each.length_bytes is None) if planned.raw else 0


def text_to_check(planned: Plan, contents: Sequence[bytes | memoryview]) -> int:
    """How many bytes have to be UTF-8."""
    if not planned.raw:
        return 0
    return sum(
        len(each) for one, each in zip(planned.inputs, contents, strict=True) if one.length_bytes is None and one.utf8
    )


def check_elements(planned: Plan, contents: Sequence[bytes | memoryview]) -> bool:
    """Checks the elements of BYTES, where there are few. Raises Refusal; False: there are too many to check at once."""
    if elements_to_walk(planned) >= WALKED_AT_ONCE or text_to_check(planned, contents) > TEXT_AT_ONCE:
        return False
    for each, content in zip(planned.inputs, contents, strict=True):
        if each.length_bytes is None and planned.raw:
            try:
                for _ in walk_elements(each, content, WALKED_AT_ONCE):
                    pass
            except Invalid as problem:
                raise as_refusal(problem) from None
    return True


def shape_key(planned: Plan, contents: Sequence[bytes | memoryview], number: int) -> bytes:
    """Equal for requests that may share a batch. number: the call's own, for requests that share with none."""
    if not planned.keyed:
        return planned.shapes_key
    parts: list[bytes | memoryview] = [planned.shapes_key]
    for at in planned.keyed:
        content = contents[at]
        if planned.inputs[at].source is not None:
            # Nobody here knows what lies there.
            parts += (b"!", number.to_bytes(8, "little"))
        elif len(content) <= 64:
            parts += (b"=", len(content).to_bytes(1, "little"), content)
        elif len(content) <= KEYED_BYTES:
            parts += (b"#", hashlib.sha256(content).digest())
        else:
            parts += (b"!", number.to_bytes(8, "little"))
    return b"".join(parts)


def as_refusal(problem: Invalid) -> Refusal:
    """The refusal for a request that does not fit."""
    if problem.unsupported:
        return Refusal(Reason.UNSUPPORTED, str(problem), field=problem.field, facts=problem.facts)
    return invalid(problem.field, problem.problem, **problem.facts)


def out_of_memory(arena: Arena, wanted_bytes: int) -> Refusal:
    """The refusal for a request that finds no room in its worker's arena."""
    return Refusal(
        Reason.OUT_OF_MEMORY,
        f"the worker's memory for requests is full: {wanted_bytes} bytes asked for, "
        f"{arena.largest_free_bytes} free in one piece, {arena.capacity_bytes} in all",
        facts={
            "asked_bytes": wanted_bytes,
            "free_bytes": arena.largest_free_bytes,
            "capacity_bytes": arena.capacity_bytes,
        },
        retry_after_s=0.1,
    )


def _copied(
    arena: Arena, inputs: Sequence[PlannedInput], contents: tuple[bytes | memoryview, ...], owner: int
) -> Placed:
    total = 0
    for content in contents:
        total += (len(content) + ALIGNMENT - 1) & -ALIGNMENT
    if total == 0:
        return Placed(None, tuple([TensorRef(each.place, each.shape, 0, 0) for each in inputs]), contents)
    block = arena.allocate(total, owner)
    if block is None:
        raise out_of_memory(arena, total)
    view, at, refs = arena.view, block, []
    for each, content in zip(inputs, contents, strict=True):
        length = len(content)
        view[at : at + length] = content
        refs.append(TensorRef(each.place, each.shape, at, length))
        at += (length + ALIGNMENT - 1) & -ALIGNMENT
    return Placed(block, tuple(refs), contents)
