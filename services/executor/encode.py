"""From output tensors in an arena to the bytes of inference.ModelInferResponse, without a copy of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gpu_sharing.tensors import Signature, byte_count
from gpu_sharing.worker.messages import RegionPart, TensorRef
from services._proto.inference.grpc_service_pb2 import ModelInferResponse
from services.common.errors import Reason, Refusal
from services.executor.core.classes import MOST_ELEMENTS, classify
from services.executor.core.turns import Part
from services.executor.core.wire import varint

REMEMBERED_HEADS = 256

_ID_TAG = bytes((3 << 3 | 2,))
_RAW_TAG = bytes((6 << 3 | 2,))


class Encoder:
    """Encodes the answers of one replica. labels: class names by output, for the classification extension."""

    def __init__(self, signature: Signature, version: int, labels: Mapping[str, Sequence[str]] | None = None) -> None:
        self._signature, self._version, self._labels = signature, str(version), labels or {}
        self._remembered: dict[tuple[str, tuple[tuple[int, tuple[int, ...], int], ...]], bytes] = {}

    def parts(
        self, model_name: str, request_id: str, outputs: Sequence[TensorRef], memory: memoryview
    ) -> tuple[list[Part], int]:
        """The answer in pieces, in order, and its length. Tensors are views of `memory`, in the order of `outputs`.

        Raises Refusal (MODEL_FAILED) where the worker's outputs do not fit the signature.
        """
        key = (model_name, tuple([(ref.index, ref.shape, ref.length_bytes) for ref in outputs]))
        head = self._remembered.get(key)
        if head is None:
            head = self._head(model_name, outputs)
            if len(self._remembered) >= REMEMBERED_HEADS:
                self._remembered.clear()
            self._remembered[key] = head
        if request_id:
            text = request_id.encode()
            head = b"".join((head, _ID_TAG, varint(len(text)), text))
        parts: list[Part] = [head]
        total = len(head)
        for ref in outputs:
            length = ref.length_bytes
            prefix = _RAW_TAG + varint(length)
            parts += (prefix, memory[ref.offset : ref.offset + length])
            total += len(prefix) + length
        return parts, total

    def classified(
        self, model_name: str, request_id: str, outputs: Sequence[TensorRef], classes: Sequence[int], memory: memoryview
    ) -> tuple[list[Part], int]:
        """As `parts`, with the largest values of some outputs in their place; classes: how many of each, 0: the output."""
        response = ModelInferResponse.FromString(self._head(model_name, outputs))
        response.id = request_id
        for ref, told, most in zip(outputs, response.outputs, classes, strict=True):
            content: Part = memory[ref.offset : ref.offset + ref.length_bytes]
            if most:
                content = self._ranked(ref, told, most, content)
            response.raw_output_contents.append(bytes(content))
        written = response.SerializeToString()
        return [written], len(written)

    def stored(
        self,
        model_name: str,
        request_id: str,
        outputs: Sequence[TensorRef],
        sinks: Sequence[RegionPart],
        memory: memoryview,
    ) -> tuple[list[Part], int]:
        """As `parts`, for outputs of which some went to regions: of these it tells how many bytes."""
        room = {sink.place: sink.length_bytes for sink in sinks}
        response = ModelInferResponse.FromString(self._head(model_name, outputs, room))
        response.id = request_id
        for place, (ref, told) in enumerate(zip(outputs, response.outputs, strict=True)):
            if place in room:
                size_bytes = byte_count(told.datatype, ref.shape) or 0
                told.parameters["shared_memory_byte_size"].int64_param = size_bytes
                response.raw_output_contents.append(b"")
            else:
                response.raw_output_contents.append(bytes(memory[ref.offset : ref.offset + ref.length_bytes]))
        written = response.SerializeToString()
        return [written], len(written)

    def _ranked(self, ref: TensorRef, told: ModelInferResponse.InferOutputTensor, most: int, content: Part) -> bytes:
        spec = self._signature.outputs[ref.index]
        elements = math.prod(ref.shape)
        if elements > MOST_ELEMENTS:
            raise Refusal(
                Reason.UNSUPPORTED,
                f"output {spec.name!r} has {elements} elements; classes are told of {MOST_ELEMENTS} at most: "
                "leave the parameter `classification` out and rank them yourself",
                facts={"elements": elements, "limit": MOST_ELEMENTS},
            )
        batched = bool(self._signature.max_batch_size) and spec.batch_axis == 0
        labels = self._labels.get(spec.name, ())
        ranked, shape = classify(content, spec.datatype, ref.shape, most, batched=batched, labels=labels)
        told.datatype = "BYTES"
        told.shape[:] = shape
        return ranked

    def _head(self, model_name: str, outputs: Sequence[TensorRef], room: Mapping[int, int] | None = None) -> bytes:
        """room: by place, of the outputs that went to regions."""
        response = ModelInferResponse(model_name=model_name, model_version=self._version)
        for place, ref in enumerate(outputs):
            if not 0 <= ref.index < len(self._signature.outputs) or any(extent < 0 for extent in ref.shape):
                raise Refusal(Reason.MODEL_FAILED, f"the worker answered with output {ref.index} of shape {ref.shape}")
            spec = self._signature.outputs[ref.index]
            expected = byte_count(spec.datatype, ref.shape)
            if room is not None and place in room:
                if expected is None or expected > room[place]:
                    raise Refusal(Reason.MODEL_FAILED, f"output {spec.name!r} cannot have gone to its region")
            elif expected is not None and expected != ref.length_bytes:
                raise Refusal(
                    Reason.MODEL_FAILED,
                    f"output {spec.name!r}: shape {list(ref.shape)} needs {expected} bytes, not {ref.length_bytes}",
                )
            response.outputs.add(name=spec.name, datatype=spec.datatype, shape=ref.shape)
        return response.SerializeToString()
