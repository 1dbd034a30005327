"""Which versions of a folder are served, and how many replicas a configuration asks for."""

from __future__ import annotations

from collections.abc import Sequence

from services._proto.inference import model_config_pb2 as triton
from services.cli.errors import CommandError
from services.cli.push.repository.config import FILE_NAME
from services.cli.push.repository.fields import Fields

PLATFORMS: dict[str, tuple[str, ...]] = {
    "onnxruntime_onnx": (".onnx",),
    "onnxruntime": (".onnx",),
    "pytorch_libtorch": (".pt2",),
    "pytorch": (".pt2",),
    "torch_aoti": (".pt2",),
}
"""Artefacts by the platform or backend that a configuration may name."""


def versions(config: triton.ModelConfig, held: Sequence[int], fields: Fields) -> list[int]:
    """The versions that are served, ascending; without a policy, the highest. Raises CommandError."""
    kind = config.version_policy.WhichOneof("policy_choice")
    if kind == "all":
        chosen = list(held)
    elif kind == "specific":
        chosen = sorted(set(config.version_policy.specific.versions))
        missing = [number for number in chosen if number not in held]
        if missing or not chosen:
            have = ", ".join(map(str, held))
            raise CommandError(f"{FILE_NAME}: version_policy.specific: {missing or 'none'}: the folder has {have}")
    else:
        chosen = list(held[-max(1, config.version_policy.latest.num_versions) :])
    if kind is not None:
        told = ", ".join(map(str, chosen))
        fields.honour(
            "version_policy", f"version{'s' if len(chosen) > 1 else ''} {told}; {chosen[-1]} where none is asked for"
        )
    return chosen


def replicas(config: triton.ModelConfig, fields: Fields) -> int | None:
    """Copies on different devices, where the configuration names several; None: it does not."""
    devices = {gpu for group in config.instance_group for gpu in group.gpus}
    if len(devices) < 2:
        return None
    for index, group in enumerate(config.instance_group):
        if group.gpus:
            fields.honour(f"instance_group[{index}].gpus", f"{len(devices)} replicas, each on a device of its own")
    return len(devices)


def check_served(config: triton.ModelConfig) -> None:
    """Raises CommandError, with what to do, for a kind of model that is not served."""
    if config.platform == "ensemble" or config.WhichOneof("scheduling_choice") == "ensemble_scheduling":
        raise CommandError(
            f"{FILE_NAME}: ensembles are not served: push each step as a model, and call one after another"
        )
    for field in ("platform", "backend"):
        named = getattr(config, field)
        if named and named not in PLATFORMS:
            raise CommandError(
                f"{FILE_NAME}: {field}: {named!r} is not served: push the model as model.onnx or model.pt2"
            )
