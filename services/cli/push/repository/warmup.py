"""The warm-up of a configuration as the one request of one row that warms a version up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from services._proto.apportion.v1 import registry_pb2
from services._proto.inference import model_config_pb2 as triton
from services.cli.errors import CommandError
from services.cli.push.parse import TYPES
from services.cli.push.repository.config import FILE_NAME
from services.cli.push.repository.fields import Fields, named
from services.cli.push.repository.folder import ModelFolder
from services.cli.push.repository.tensors import DATATYPES

MOST_BYTES = 1 << 20
"""What the tensors of a warm-up may take together."""
DATA_FOLDER = "warmup"
_SEED = 0


def warmup(config: triton.ModelConfig, folder: ModelFolder, fields: Fields) -> list[registry_pb2.WarmupTensor]:
    """The tensors of the first warm-up. Raises CommandError for what cannot be meant."""
    if not config.model_warmup:
        return []
    first, at = config.model_warmup[0], "model_warmup[0]"
    made = [_tensor(config, name, first.inputs[name], folder, fields, at) for name in sorted(first.inputs)]
    size_bytes = sum(len(tensor.data) for tensor in made)
    if size_bytes > MOST_BYTES:
        raise CommandError(f"{FILE_NAME}: {at}: has {size_bytes} bytes of data, more than {MOST_BYTES}")
    fields.honour(f"{at}.name", "a request of one row warms the version up")
    if first.batch_size == 1:
        fields.honour(f"{at}.batch_size", "a request of one row warms the version up")
    return made


def _tensor(
    config: triton.ModelConfig, name: str, told: Any, folder: ModelFolder, fields: Fields, at: str
) -> registry_pb2.WarmupTensor:
    path = named(f"{at}.inputs", name)
    if told.data_type not in DATATYPES or any(extent < 1 for extent in told.dims):
        raise CommandError(f"{FILE_NAME}: {path}: needs a data_type, and dims of 1 or more each")
    datatype, dims = DATATYPES[told.data_type], _dims(config, name, list(told.dims))
    shape = [1, *dims] if config.max_batch_size > 0 else dims
    tensor = registry_pb2.WarmupTensor(name=name, shape=shape)
    fields.honour(path, "in the warm-up request")
    kind = told.WhichOneof("input_data_type")
    if datatype not in TYPES:
        # What it holds is made up: strings have no bytes of fixed length, and NumPy no bfloat16.
        if kind not in (None, "zero_data"):
            fields.honour(f"{path}.{kind}", f"{datatype} of zeros, or of empty strings, in its place")
        return tensor
    elements = math.prod(shape)
    if kind == "random_data":
        tensor.data = _random(datatype, elements)
    elif kind == "input_data_file":
        tensor.data = _file(told.input_data_file, datatype, elements, folder, path)
    return tensor


def _dims(config: triton.ModelConfig, name: str, dims: list[int]) -> list[int]:
    """As the artefact has them: the reshaped extents, where these are all told and hold as many elements."""
    reshaped = next(
        (each.reshape.shape for each in config.input if each.name == name and each.HasField("reshape")), None
    )
    if reshaped is None or any(extent < 1 for extent in reshaped) or math.prod(reshaped) != math.prod(dims):
        return dims
    return list(reshaped)


def _random(datatype: str, elements: int) -> bytes:
    """Numbers from 0 to 1, the same for each push, so that pushing again is pushing the same; ones for whole numbers, which
    are legal as token ids, masks and indices of nearly every model."""
    kind = np.dtype(TYPES[datatype])
    if kind.kind == "f":
        return np.random.default_rng(_SEED).random(elements).astype(kind).tobytes()
    return np.ones(elements, kind).tobytes()


def _file(name: str, datatype: str, elements: int, folder: ModelFolder, path: str) -> bytes:
    wanted = elements * np.dtype(TYPES[datatype]).itemsize
    data = folder.read(name, f"{path}.input_data_file", most_bytes=64 * MOST_BYTES, under=DATA_FOLDER)
    if len(data) < wanted or len(data) % wanted:
        raise CommandError(f"{FILE_NAME}: {path}.input_data_file: {name} has {len(data)} bytes; one row has {wanted}")
    return data[:wanted]
