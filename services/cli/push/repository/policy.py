"""Which versions of a folder are served, and how many replicas a configuration asks for."""

from __future__ import annotations

from collections.abc import Sequence

from services._proto.apportion.v1 import registry_pb2
from services._proto.inference import model_config_pb2 as triton
from services.cli.errors import CommandError
from services.cli.push.repository.config import FILE_NAME
from services.cli.push.repository.fields import Fields

MOST_WAITING = 1 << 20
MOST_PRIORITY = (1 << 32) - 1
MOST_DEADLINE_US = 86_400_000_000

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


def queue(config: triton.ModelConfig, fields: Fields) -> registry_pb2.QueueLimits:
    """How requests wait. Raises CommandError for priorities that contradict each other."""
    made = registry_pb2.QueueLimits()
    batching, at = config.dynamic_batching, "dynamic_batching"
    default, levels = batching.default_queue_policy, batching.priority_levels
    if default.max_queue_size:
        made.max_waiting = min(default.max_queue_size, MOST_WAITING)
        fields.honour(f"{at}.default_queue_policy.max_queue_size", "so many may wait for a replica, then OVERLOADED")
    if default.default_timeout_microseconds:
        _timeout(default, made, fields)
    if levels:
        if batching.default_priority_level > levels:
            raise CommandError(
                f"{FILE_NAME}: {at}.default_priority_level: {batching.default_priority_level} is beyond "
                f"priority_levels, {levels}"
            )
        made.priority_levels = min(levels, MOST_PRIORITY)
        made.default_priority = min(batching.default_priority_level, MOST_PRIORITY)
        fields.honour(
            f"{at}.priority_levels", f"the parameter `priority`, 1 to {levels}, 1 first; others count as none"
        )
        fields.honour(f"{at}.default_priority_level", "of requests that give none")
    return made


def _timeout(default: triton.ModelQueuePolicy, made: registry_pb2.QueueLimits, fields: Fields) -> None:
    path = "dynamic_batching.default_queue_policy.default_timeout_microseconds"
    if default.timeout_action != triton.ModelQueuePolicy.REJECT:
        fields.ignore(path, "what timeout_action DELAY would put last is not dropped either")
        return
    made.deadline_us = min(default.default_timeout_microseconds, MOST_DEADLINE_US)
    fields.honour(path, "the deadline of requests whose callers allow more")


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
