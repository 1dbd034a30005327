"""A whole folder, read and translated, before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services._proto.apportion.v1 import registry_pb2
from services._proto.inference import model_config_pb2 as triton
from services.cli.errors import CommandError
from services.cli.push.artefact import Artefact
from services.cli.push.repository import policy, tensors
from services.cli.push.repository.config import FILE_NAME, read_config
from services.cli.push.repository.fields import Entry, Fields
from services.cli.push.repository.folder import ModelFolder, scan
from services.cli.push.repository.warmup import warmup

MOST_BATCH_ROWS = 4096


@dataclass(frozen=True)
class Plan:
    """What a folder asks for.

    artefacts: by version, ascending; the last one gets the requests that name none. config: of every version, but for the
    format. replicas: None: not said. notes: what is worth knowing beside the fields.
    """

    artefacts: dict[int, Artefact]
    config: registry_pb2.VersionConfig
    replicas: int | None
    honoured: list[Entry]
    ignored: list[Entry]
    notes: list[str]


def read(root: Path, name: str) -> Plan:
    """Reads a model's folder. name: what the model is pushed as. Raises CommandError for whatever cannot be pushed."""
    folder = scan(root)
    config = read_config(root / FILE_NAME)
    fields, notes = Fields(config), []
    policy.check_served(config)
    chosen = policy.versions(config, folder.numbers, fields)
    artefacts = {number: folder.artefact(number, config.default_model_filename) for number in chosen}
    _check_format(config, artefacts)
    notes += [f"{other}: not pushed" for number in chosen for other in folder.beside(number, artefacts[number])]
    notes += [
        f"{number}/: not pushed, version_policy leaves it out" for number in folder.numbers if number not in chosen
    ]
    if not (root / FILE_NAME).exists():
        notes.append(f"there is no {FILE_NAME}: everything is as the artefact has it")
    translated = _translated(config, folder, fields)
    _names(config, name, fields)
    return Plan(artefacts, translated, policy.replicas(config, fields), fields.honoured, fields.ignored, notes)


def _translated(config: triton.ModelConfig, folder: ModelFolder, fields: Fields) -> registry_pb2.VersionConfig:
    made = registry_pb2.VersionConfig()
    if config.max_batch_size < 0 or config.max_batch_size > MOST_BATCH_ROWS:
        raise CommandError(f"{FILE_NAME}: max_batch_size: {config.max_batch_size} is not within 0 to {MOST_BATCH_ROWS}")
    if config.max_batch_size or config.input:
        made.max_batch_size = config.max_batch_size
        fields.honour("max_batch_size", f"batches of up to {config.max_batch_size} rows")
    declared = tensors.declared(config, folder, fields)
    if declared.inputs or declared.outputs:
        made.declared.CopyFrom(declared)
    made.batch_axes.update(tensors.batch_axes(config))
    made.warmup.extend(warmup(config, folder, fields))
    queue = policy.queue(config, fields)
    if queue.ListFields():
        made.queue.CopyFrom(queue)
    if config.WhichOneof("scheduling_choice") == "dynamic_batching" and not config.dynamic_batching.ListFields():
        fields.honour("dynamic_batching", "requests share batches")
    return made


def _names(config: triton.ModelConfig, name: str, fields: Fields) -> None:
    if config.name == name:
        fields.honour("name", "the model's name")
    else:
        fields.ignore("name", f"it is pushed as {name!r}")
    if config.default_model_filename:
        fields.honour("default_model_filename", "the artefact of every version")
    for field in ("platform", "backend"):
        if getattr(config, field):
            fields.honour(field, "what the artefact is")


def _check_format(config: triton.ModelConfig, artefacts: dict[int, Artefact]) -> None:
    for field in ("platform", "backend"):
        named = getattr(config, field)
        for artefact in artefacts.values():
            if named and artefact.path.suffix.lower() not in policy.PLATFORMS[named]:
                wanted = " or ".join(policy.PLATFORMS[named])
                raise CommandError(
                    f"{FILE_NAME}: {field}: {named!r} goes with a {wanted} file, not with {artefact.path}"
                )
