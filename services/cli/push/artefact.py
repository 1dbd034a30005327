"""What an artefact is, told from its name and its first bytes. Nothing is ever deserialised here."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services._proto.apportion.v1 import registry_pb2
from services.cli.errors import CommandError

CHUNK_BYTES = 1 << 20
"""What one message of an upload may carry."""

FORMATS: dict[str, int] = {
    ".onnx": registry_pb2.ARTEFACT_FORMAT_ONNX,
    ".pt2": registry_pb2.ARTEFACT_FORMAT_TORCH_EXPORT,
    ".py": registry_pb2.ARTEFACT_FORMAT_PYTHON,
    ".pyz": registry_pb2.ARTEFACT_FORMAT_PYTHON,
}
"""Code (".py", or ".pyz" with its files) is taken where an operator has approved its digest: docs/python.md."""

CODE = "model.py"
ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
ONNX = b"\x08"
"""The tag of ir_version, with which exporters start a ModelProto."""
UNREADABLE = (zipfile.BadZipFile, NotImplementedError)
"""What zipfile raises for a directory that is broken, and for one whose members need a later zip format than it reads."""


@dataclass(frozen=True)
class Artefact:
    """A file that may be pushed. digest: "sha256:" and 64 hexadecimal digits."""

    path: Path
    format: Any
    size_bytes: int
    digest: str


def inspect(path: Path) -> Artefact:
    """Looks at the file. Raises CommandError in one line for whatever is neither ONNX, nor a torch.export archive, nor code."""
    if path.is_dir():
        raise CommandError(f"{path} is a folder: push a .onnx or a .pt2 file")
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise CommandError(
            f"{path}: {path.suffix or 'a file without an extension'} is refused: push a .onnx or a .pt2 file"
        )
    with path.open("rb") as file:
        head = file.read(4)
    problem = _problem(kind, path, head)
    if problem is not None:
        raise CommandError(f"{path}: {problem}")
    return Artefact(path, kind, path.stat().st_size, digest(path))


def digest(path: Path) -> str:
    """The file's content address."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def chunks(path: Path) -> Iterator[bytes]:
    """The file's bytes, as an upload carries them."""
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece


def _problem(kind: int, path: Path, head: bytes) -> str | None:
    if kind == registry_pb2.ARTEFACT_FORMAT_ONNX:
        return _not_onnx(head)
    return _not_torch_export(path, head) if kind == registry_pb2.ARTEFACT_FORMAT_TORCH_EXPORT else _not_code(path)


def _not_code(path: Path) -> str | None:
    """What it is, if it can be no code. What it does is for the operator to know who approves it."""
    if path.suffix.lower() == ".py":
        with path.open("rb") as file:
            return "is a zip archive: call it .pyz" if file.read(4) == ZIP else None
    try:
        with zipfile.ZipFile(path) as archive:
            return None if CODE in archive.namelist() else f"has no member {CODE}"
    except UNREADABLE as error:
        return f"is a broken archive: {error}"


def _not_onnx(head: bytes) -> str | None:
    if head.startswith(ZIP):
        return "is a zip archive, not an ONNX model"
    if head.startswith(PICKLE):
        return "is a pickle, which could run code: it is refused; export the model to ONNX"
    return None if head.startswith(ONNX) else "is not an ONNX model"


def _not_torch_export(path: Path, head: bytes) -> str | None:
    if head.startswith(PICKLE):
        return "is a pickle, which could run code: it is refused; save the model with torch.export.save"
    if not head.startswith(ZIP):
        return "is not a torch.export archive"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            first = min((member.header_offset for member in archive.infolist()), default=0)
    except UNREADABLE as error:
        return f"is a broken archive: {error}"
    if first:
        # What was read is the directory of an archive inside: the file's own, at its end, is missing.
        return "is a broken archive: it is cut short"
    members = {name.partition("/")[2] for name in names} | set(names)
    if any(name.startswith("models/") and name.endswith(".json") for name in members):
        return None
    if "data.pkl" in members:
        return (
            "is a pickled checkpoint (torch.save), which could run code: it is refused; save it with torch.export.save"
        )
    return "is a zip archive, but not one of torch.export"
