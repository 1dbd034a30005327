"""Between NumPy arrays and torch tensors, without copying on the processor."""

from __future__ import annotations

import numpy as np
import torch

DATATYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}


def to_torch(value: np.ndarray, datatype: str) -> torch.Tensor:
    """A tensor over the array's own memory; BF16 arrays are its bits as uint16."""
    tensor = torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape)
    return tensor.view(torch.bfloat16) if datatype == "BF16" else tensor


def from_torch(value: object) -> np.ndarray:
    """An array over the tensor's memory, row-major; a plain number becomes a scalar."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    dense = value.detach().contiguous()
    if dense.dtype is torch.bfloat16:
        return dense.view(torch.uint16).numpy()
    return dense.resolve_neg().resolve_conj().numpy()
