"""A model's signature as the protocol's clients expect it."""

from __future__ import annotations

from services.frontend.core.routes import Signature, Tensor

TYPES = {
    "BOOL": "TYPE_BOOL",
    "UINT8": "TYPE_UINT8",
    "UINT16": "TYPE_UINT16",
    "UINT32": "TYPE_UINT32",
    "UINT64": "TYPE_UINT64",
    "INT8": "TYPE_INT8",
    "INT16": "TYPE_INT16",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "FP16": "TYPE_FP16",
    "BF16": "TYPE_BF16",
    "FP32": "TYPE_FP32",
    "FP64": "TYPE_FP64",
    "BYTES": "TYPE_STRING",
}
"""Data types of the protocol by their names in a model's configuration."""


def batch_rows(signature: Signature) -> int:
    """`max_batch_size` as clients read it: rows along axis 0 of every tensor; 0 where some tensor is batched otherwise.

    A client that reads more than 0 puts the batch in front of every tensor's `dims`, so anything else has to be 0 and
    spelt out in full.
    """
    tensors = (*signature.inputs, *signature.outputs)
    return signature.max_batch_size if all(tensor.batch_axis == 0 for tensor in tensors) else 0


def shape(tensor: Tensor) -> list[int]:
    """The whole shape, -1 for what varies between requests, the batch axis among it."""
    return [-1 if size is None or axis == tensor.batch_axis else size for axis, size in enumerate(tensor.shape)]


def dims(tensor: Tensor, rows: int) -> list[int]:
    """The shape as a model's configuration has it: without the batch axis where there is one for all tensors."""
    whole = shape(tensor)
    return whole[1:] if rows > 0 else whole
