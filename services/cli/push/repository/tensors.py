"""The tensors of a configuration, as a push declares them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from services._proto.apportion.v1 import common_pb2
from services._proto.inference import model_config_pb2 as triton
from services.cli.errors import CommandError
from services.cli.push.repository.config import FILE_NAME
from services.cli.push.repository.fields import Fields
from services.cli.push.repository.folder import ModelFolder

DATATYPES: dict[int, str] = {
    triton.TYPE_BOOL: "BOOL",
    triton.TYPE_UINT8: "UINT8",
    triton.TYPE_UINT16: "UINT16",
    triton.TYPE_UINT32: "UINT32",
    triton.TYPE_UINT64: "UINT64",
    triton.TYPE_INT8: "INT8",
    triton.TYPE_INT16: "INT16",
    triton.TYPE_INT32: "INT32",
    triton.TYPE_INT64: "INT64",
    triton.TYPE_FP16: "FP16",
    triton.TYPE_FP32: "FP32",
    triton.TYPE_FP64: "FP64",
    triton.TYPE_STRING: "BYTES",
    triton.TYPE_BF16: "BF16",
}
MOST_LABEL_FILE_BYTES = 4 << 20
MOST_LABELS = 65_536
CHECKED = "checked against the artefact once it is loaded"


def declared(config: triton.ModelConfig, folder: ModelFolder, fields: Fields) -> common_pb2.Signature:
    """What the configuration says of inputs and outputs: whole shapes, the batch axis first where there is one.

    Raises CommandError for what cannot be meant.
    """
    batched, signature = config.max_batch_size > 0, common_pb2.Signature()
    for index, tensor in _named("input", config.input):
        at = f"input[{index}]"
        spec = signature.inputs.add()
        _declare(tensor, spec, at, fields, batched=batched)
        if tensor.optional:
            spec.optional = True
            fields.honour(f"{at}.optional", "requests may leave it out where the artefact itself has a value for it")
    for index, tensor in _named("output", config.output):
        at = f"output[{index}]"
        spec = signature.outputs.add()
        _declare(tensor, spec, at, fields, batched=batched)
        if tensor.label_filename:
            spec.labels.extend(_labels(tensor.label_filename, at, folder))
            fields.honour(f"{at}.label_filename", f"{len(spec.labels)} class names")
    return signature


def _named(kind: str, tensors: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Each with its place; names must be there, and differ."""
    names: set[str] = set()
    for index, tensor in enumerate(tensors):
        if not tensor.name or tensor.name in names:
            raise CommandError(
                f"{FILE_NAME}: {kind}[{index}].name: {tensor.name!r} is empty, or that of another {kind}"
            )
        names.add(tensor.name)
        yield index, tensor


def _declare(tensor: Any, spec: common_pb2.TensorSpec, at: str, fields: Fields, *, batched: bool) -> None:
    if tensor.data_type not in DATATYPES:
        raise CommandError(f"{FILE_NAME}: {at}.data_type: must be set for {tensor.name!r}")
    spec.name, spec.datatype = tensor.name, DATATYPES[tensor.data_type]
    spec.shape.extend(_dimensions(tensor, at, batched=batched))
    for part in ("name", "data_type", "dims"):
        fields.honour(f"{at}.{part}", CHECKED)


def batch_axes(config: triton.ModelConfig) -> dict[str, int]:
    """The batch axis by tensor: the first one of each, where the model takes batches."""
    names = [*(tensor.name for tensor in config.input), *(tensor.name for tensor in config.output)]
    return dict.fromkeys(names, 0) if config.max_batch_size > 0 else {}


def _dimensions(tensor: Any, at: str, *, batched: bool) -> list[common_pb2.Dimension]:
    """What the artefact has: the reshaped extents where there are such."""
    reshaped = tensor.HasField("reshape")
    dims = list(tensor.reshape.shape if reshaped else tensor.dims)
    if not tensor.dims:
        raise CommandError(f"{FILE_NAME}: {at}.dims: must be set for {tensor.name!r}; -1 stands for any extent")
    if any(extent < -1 or extent == 0 for extent in (*tensor.dims, *dims)):
        raise CommandError(f"{FILE_NAME}: {at}.dims: {list(tensor.dims)}: an extent is 1 or more, or -1 for any")
    whole = [-1, *dims] if batched else dims
    return [common_pb2.Dimension() if extent == -1 else common_pb2.Dimension(size=extent) for extent in whole]


def _labels(name: str, at: str, folder: ModelFolder) -> list[str]:
    field = f"{at}.label_filename"
    raw = folder.read(name, field, most_bytes=MOST_LABEL_FILE_BYTES)
    try:
        labels = [line.strip() for line in raw.decode().splitlines()]
    except UnicodeDecodeError:
        raise CommandError(f"{FILE_NAME}: {field}: {name} is not UTF-8") from None
    while labels and not labels[-1]:
        labels.pop()
    if len(labels) > MOST_LABELS:
        raise CommandError(f"{FILE_NAME}: {field}: {name} has {len(labels)} lines, more than {MOST_LABELS}")
    return labels
