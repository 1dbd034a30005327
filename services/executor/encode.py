"""From output tensors in an arena to the bytes of inference.ModelInferResponse, without a copy of their own."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_sharing.tensors import Signature, byte_count
from gpu_sharing.worker.messages import TensorRef
from services._proto.inference.grpc_service_pb2 import ModelInferResponse
from services.common.errors import Reason, Refusal
from services.executor.core.turns import Part
from services.executor.core.wire import varint

REMEMBERED_HEADS = 256

_ID_TAG = bytes((3 << 3 | 2,))
_RAW_TAG = bytes((6 << 3 | 2,))


class Encoder:
    """Encodes the answers of one replica."""

    def __init__(self, signature: Signature, version: int) -> None:
        self._signature, self._version = signature, str(version)
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

    def _head(self, model_name: str, outputs: Sequence[TensorRef]) -> bytes:
        response = ModelInferResponse(model_name=model_name, model_version=self._version)
        for ref in outputs:
            if not 0 <= ref.index < len(self._signature.outputs) or any(extent < 0 for extent in ref.shape):
                raise Refusal(Reason.MODEL_FAILED, f"the worker answered with output {ref.index} of shape {ref.shape}")
            spec = self._signature.outputs[ref.index]
            expected = byte_count(spec.datatype, ref.shape)
            if expected is not None and expected != ref.length_bytes:
                raise Refusal(
                    Reason.MODEL_FAILED,
                    f"output {spec.name!r}: shape {list(ref.shape)} needs {expected} bytes, not {ref.length_bytes}",
                )
            response.outputs.add(name=spec.name, datatype=spec.datatype, shape=ref.shape)
        return response.SerializeToString()
